"""Writes the page "Horizon or batch?": what each spend reached at its best rate, and what that cost on both axes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import Any

from experiments.experiment import Claim, Page, Verdict, table
from experiments.figures import interval, mean
from experiments.spending.case import CASES, TEST
from experiments.spending.search import chosen
from hopd.forecast.machine import Machine

POINT = 0.01 + 1e-9
HALF = 0.5
NODE = Machine.named("8xh100")
COSTS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "tokens": itemgetter("generated_tokens"),
    "serial tokens": itemgetter("serial_tokens"),
    "FLOPs": itemgetter("training_flops"),
    "seconds of 8 × H100": lambda point: NODE.seconds(point["serial_tokens"], point["training_flops"]),
}
Runs = Mapping[str, Sequence[dict[str, Any]]]
"""Maps each spend to its tested runs, one for each seed."""


def runs_of(lines: Sequence[dict[str, Any]], case: str, end_game: bool = False) -> Runs:
    """Returns the tested runs of each spend, in the order of their seeds; without any, the run of the search that had
    the best rate."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: int(line["seed"])):
        if line["case"] == case and line["end_game"] == end_game and "test" in line:
            runs.setdefault(line["spend"], []).append(line)
    if end_game:
        return runs
    rates = chosen(lines)
    for line in lines:
        key = line["case"], line["spend"]
        if line["case"] == case and not line["tested"] and rates.get(key) == line["rate"]:
            runs.setdefault(line["spend"], [line])
    return runs


def score(run: Mapping[str, Any]) -> float:
    """Returns the accuracy on the test; of a run of the search, the mean of its last two evaluations."""
    if "test" in run:
        return float(run["test"])
    return mean([point["accuracy"] for point in run["curve"][-2:]])


def shown(runs: Sequence[dict[str, Any]]) -> str:
    """Writes the accuracy: of one run, or the mean over seeds with the lowest and the highest."""
    scores = [score(run) for run in runs]
    return interval(scores) if len(scores) > 1 else f"{100 * scores[0]:.1f} %"


def margin(runs: Runs, spend: str) -> str:
    """Writes half the width of a 95 % confidence interval of the points over OPD, over all problems and seeds, where
    both were tested."""
    if not all("test" in run for name in (spend, "OPD") for run in runs[name]):
        return ""
    variance = 0.0
    for name in (spend, "OPD"):
        problems = TEST * len(runs[name])
        share = (problems * mean([score(run) for run in runs[name]]) + 1) / (problems + 2)  # never quite 0 or 1
        variance += share * (1 - share) / problems
    return f" ± {100 * 1.96 * variance**0.5:.1f}"


def to_target(runs: Runs, spend: str) -> list[dict[str, Any] | None]:
    """Returns, for each seed, the first evaluation within a point of OPD's last two; None if there is none."""
    reached = []
    for run in runs[spend]:
        opd = next((one for one in runs["OPD"] if one["seed"] == run["seed"]), None)
        target = mean([point["accuracy"] for point in opd["curve"][-2:]]) - POINT if opd else 2.0
        reached.append(next((point for point in run["curve"] if point["accuracy"] >= target), None))
    return reached


def ratios(runs: Runs, spend: str, cost: str) -> list[float | None]:
    """Returns, for each seed, the cost of coming within a point of where OPD ends, over OPD's own."""
    by_seed = {run["seed"]: point for run, point in zip(runs["OPD"], to_target(runs, "OPD"), strict=True)}
    found: list[float | None] = []
    for run, point in zip(runs[spend], to_target(runs, spend), strict=True):
        opd = by_seed.get(run["seed"])
        found.append(COSTS[cost](point) / COSTS[cost](opd) if point and opd else None)
    return found


def written(values: Sequence[float | None]) -> str:
    """Writes ratios, with "never" for those that do not exist."""
    return ", ".join("never" if value is None else f"{value:.2f}" for value in values)


def rows(lines: Sequence[dict[str, Any]], case: str) -> list[list[str]]:
    """Returns the table of a case: rate, accuracy on the test without and with the end game, costs to the target."""
    constant, ended = runs_of(lines, case), runs_of(lines, case, end_game=True)
    made = []
    for spend, runs in constant.items():
        end = shown(ended[spend]) if spend in ended else "–"
        costs = [written(ratios(constant, spend, cost)) for cost in COSTS]
        tried = {line["rate"] for line in lines if (line["case"], line["spend"]) == (case, spend)}
        made.append([spend, f"{runs[0]['rate']:g} of {len(tried)}", shown(runs), end, *costs])
    return made


def verdict(held: Sequence[bool]) -> Verdict:
    """Says whether something held on all cases, on some, or on none."""
    return "holds" if all(held) and held else "holds in part" if any(held) else "does not hold"


def claims(lines: Sequence[dict[str, Any]]) -> list[Claim]:
    """Judges what a short horizon is said to save, against controls of the same tokens a step."""
    cases = [case for case in CASES if {"OPD", "TOPD"} <= set(runs_of(lines, case))]
    runs = {case: runs_of(lines, case) for case in cases}

    def accuracy(case: str, spend: str) -> float:
        return mean([score(run) for run in runs[case][spend]])

    def sooner(case: str, spend: str) -> bool:
        pairs = list(zip(ratios(runs[case], spend, "tokens"), ratios(runs[case], "TOPD", "tokens"), strict=False))
        return all(mine is not None and (other is None or mine <= other) for mine, other in pairs)

    def over(spend: str) -> str:
        return ", ".join(
            f"{case} {100 * (accuracy(case, spend) - accuracy(case, 'OPD')):+.1f}{margin(runs[case], spend)}"
            for case in cases
            if spend in runs[case]
        )

    def against(case: str, spend: str) -> str:
        mine, topd = (written(ratios(runs[case], name, "tokens")) for name in (spend, "TOPD"))
        return f"{case} {mine} (TOPD {topd})"

    shorts = [accuracy(case, "TOPD") >= accuracy(case, "OPD") - POINT for case in cases]
    made = [Claim("at its best rate, TOPD 0.1 ends within a point of OPD", f"points: {over('TOPD')}", verdict(shorts))]
    for spend, what in {"few full": "a tenth of the rollouts, all full", "continued": "continued rollouts"}.items():
        if not (there := [case for case in cases if spend in runs[case]]):
            continue
        found = "tokens to within a point of OPD's end, over OPD's, by seed: "
        found += "; ".join(against(case, spend) for case in there)
        claim = f"what TOPD saves is its horizon: {what}, at as many tokens a step, need more tokens than TOPD"
        made.append(Claim(claim, found, verdict([not sooner(case, spend) for case in there])))
        ends = [accuracy(case, spend) >= accuracy(case, "OPD") - POINT for case in there]
        made.append(Claim(f"{what} end within a point of OPD", f"points: {over(spend)}", verdict(ends)))
    if not (there := [case for case in cases if "adaptive" in runs[case]]):
        return made
    ends = [accuracy(case, "adaptive") >= accuracy(case, "OPD") - POINT for case in there]
    made.append(Claim("ours: adaptive ends within a point of OPD", f"points: {over('adaptive')}", verdict(ends)))
    shares, cheaper = [], []
    for case in there:
        costs = [ratios(runs[case], "adaptive", cost) for cost in ("tokens", "serial tokens")]
        shares.append(f"{case} {written(costs[0])} and {written(costs[1])}")
        cheaper.append(all(ratio is not None and ratio <= HALF for of_seeds in costs for ratio in of_seeds))
    claim = "ours: adaptive gets within a point of OPD's end at half of its tokens and half of its serial tokens"
    made.append(Claim(claim, f"over OPD's, by seed: {'; '.join(shares)}", verdict(cheaper)))
    return made


def write(lines: Sequence[dict[str, Any]], out: Path, machine: str) -> Path:
    """Writes the page, and its numbers beside it."""
    columns = [
        "",
        "rate, of so many tried",
        "test",
        "with the end game",
        *(f"{cost} to OPD − 1 point" for cost in COSTS),
    ]
    tables = [f"### {case}\n\n" + table(columns, rows(lines, case)) for case in CASES if runs_of(lines, case)]
    seeds = {line["seed"] for line in lines}
    page = Page(
        title="Horizon or batch? Spends of the same tokens a step, each at its best rate",
        source="The control that the paper and its followers lack",
        setting=TEXT,
        tables=tables,
        figures={},
        claims=claims(lines),
    )
    name = "horizon-or-batch"
    content = {"title": page.title, "claims": [asdict(claim) for claim in page.claims], "results": list(lines)}
    (out / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    path = out / f"{name}.md"
    seconds = sum(line["seconds"] for line in lines if "seconds" in line)
    text = page.markdown(name, len(seeds), seconds, machine)
    path.write_text(text.replace(f"python -m experiments {name}", "python -m experiments.spending"), encoding="utf-8")
    return path


TEXT = (
    "The paper compares horizons at an equal number of rollouts and at one learning rate, so a shorter horizon is also "
    "a smaller step. Here each spend has its best learning rate (the last two evaluations on 128 validation problems "
    "decide, with one seed), and controls have about as many tokens in a step as TOPD: a tenth of the rollouts, all of "
    "them full; as many rollouts, which continue by a tenth of the full length in each step; and the adaptive "
    "controller, which has one rate for all tasks, the best in the mean. Runs at the best rate are then tested on "
    f"{TEST} other problems, to the full length, with three seeds; where a table shows one number without a range, "
    "that is still the run of the search, on the validation problems. "
    "OPD trains for as many steps as on the task's own page, POPD with three quarters of OPD's tokens, the others with "
    "about four tenths. The end game is a rate that falls to zero over the last fifth of the steps, and an average of "
    "the weights (0.9 a step). Costs are those of the first evaluation within a point of the mean of OPD's last two, "
    "over OPD's own cost to there. Seconds are modelled as those of a node of 8 × H100 that decodes a model of 1.5B: "
    "for models as small as these, they follow the serial tokens."
)
