"""Runs prefix continuation (Fig. 9 and 10) and the position probe (Fig. 13), before and after TOPD."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.experiment import Claim, Page, Results, table
from experiments.figures import interval, mean, save
from experiments.language.setting import SEEDS, quickstart, student_after, topd, train
from hopd.analysis.continuation import RATIOS, continuation_recipe
from hopd.analysis.probe import probe_recipe
from hopd.recipe import Recipe

STEPS = 48
PAPER = {"before": (31.3, 31.8, 33.3, 35.2, 38.5, 42.1), "after": (50.5, 51.0, 51.1, 50.3, 51.5, 50.8)}
FLAT = 0.03  # accuracies closer than this are called the same: two standard errors of 256 problems at 0.94


class PrefixContinuation:
    name = "prefix-continuation"
    seeds = SEEDS

    def prepare(self, seed: int, work: Path) -> None:
        train(self._recipe(seed, work))

    def variants(self) -> Sequence[str]:
        return ["before", "after"]

    def run(self, variant: str, seed: int, work: Path) -> dict[str, Any]:
        recipe = self._recipe(seed, work)
        if variant == "after":
            recipe = recipe.with_changes(student={"model": student_after(recipe)})
        found = continuation_recipe(recipe).accuracy["before"]
        assert recipe.evaluation is not None
        probed = probe_recipe(recipe.with_changes(task=recipe.evaluation.task), prompts=128)
        return {
            "accuracy": [found[ratio].accuracy for ratio in RATIOS],
            "probe": asdict(probed),
            "sentences": probed.sentences(),
        }

    def page(self, results: Results, out: Path) -> Page:
        _draw(results, out)
        columns = {
            variant: [[run["accuracy"][i] for run in runs] for i in range(len(RATIOS))]
            for variant, runs in results.items()
        }
        rises = [run["accuracy"][-1] - run["accuracy"][0] for run in results["before"]]
        left = [run["accuracy"][-1] - run["accuracy"][0] for run in results["after"]]
        kl = {
            variant: [(run["probe"]["bins"][0]["reverse_kl"], run["probe"]["bins"][-2]["reverse_kl"]) for run in runs]
            for variant, runs in results.items()
        }
        grows = [late / early for early, late in kl["before"]]
        rows = [
            [f"{variant} TOPD", *(interval(values) for values in columns[variant])] for variant in ("before", "after")
        ]
        rows += [[f"paper, {variant}", *(f"{value} %" for value in PAPER[variant])] for variant in ("before", "after")]
        return Page(
            title="Prefix continuation and the position probe",
            source="Fig. 9, 10 and 13 of the paper",
            setting=(
                "The teacher writes the first ρ · T tokens of an answer, the student the rest; the quickstart's "
                f"pair, before and after {STEPS} steps of TOPD 0.1, on held-out problems. The probe reads the "
                "student's own full answers: the reverse KL by position (`hopd probe` does the same for any pair)."
            ),
            tables=[
                "Accuracy by the teacher's share ρ, mean of the seeds (lowest to highest):\n\n"
                + table(["", *(f"{ratio:g}" for ratio in RATIOS)], rows),
                "The probe's two sentences, first seed, before: "
                + " ".join(results["before"][0]["sentences"])
                + " After: "
                + " ".join(results["after"][0]["sentences"]),
            ],
            figures={"prefix-continuation.png": "Accuracy by the teacher's share, and reverse KL by position"},
            claims=[
                Claim(
                    "before distillation accuracy rises with the teacher's prefix",
                    f"from ρ = 0 to 0.5 by {', '.join(f'{100 * rise:+.1f}' for rise in rises)} points",
                    "holds" if min(rises) > FLAT else "holds in part" if mean(rises) > FLAT else "does not hold",
                ),
                Claim(
                    "after TOPD prefixes no longer matter",
                    f"from ρ = 0 to 0.5 by {', '.join(f'{100 * rise:+.1f}' for rise in left)} points",
                    "holds" if max(left) <= FLAT else "holds in part" if mean(left) < mean(rises) else "does not hold",
                ),
                Claim(
                    "the divergence from the teacher grows with position",
                    f"reverse KL late over early, before: {', '.join(f'{ratio:.2f}' for ratio in grows)}",
                    "holds" if min(grows) > 1.25 else "holds in part" if mean(grows) > 1.25 else "does not hold",
                ),
            ],
        )

    def _recipe(self, seed: int, work: Path) -> Recipe:
        return quickstart("TOPD", seed, work, topd(0.1), STEPS, every=STEPS)


def _draw(results: Results, out: Path) -> None:
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for colour, (variant, runs) in zip(("0.5", "tab:blue"), results.items(), strict=True):
        for i, run in enumerate(runs):
            label = f"{variant} TOPD" if i == 0 else None
            panels[0].plot(RATIOS, [100 * a for a in run["accuracy"]], color=colour, marker="o", ms=3, label=label)
            bins = run["probe"]["bins"]
            middle = [(bin["start"] + bin["end"]) / 2 for bin in bins]
            panels[1].plot(middle, [bin["reverse_kl"] for bin in bins], color=colour, label=label)
    panels[0].set(xlabel="the teacher's share of the answer", ylabel="accuracy, %")
    panels[1].set(xlabel="position", ylabel="reverse KL, nats a token", yscale="log")
    panels[0].legend(frameon=False)
    save(figure, out / "prefix-continuation.png")
