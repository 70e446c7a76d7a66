"""Runs the position probe (Fig. 13): measures student and teacher position by position, and suggests a horizon.

The student answers prompts to the full length, and both models score the answers. Nothing is trained.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopd.analysis.alignment import Alignment, alignment
from hopd.assembly.models import load_models
from hopd.assembly.prompts import build_prompts
from hopd.errors import ModelError, RecipeError
from hopd.model import LanguageModel
from hopd.objective.divergence import forward_kl, reverse_kl
from hopd.objective.head import BLOCK_BYTES, chunks
from hopd.processes import Processes
from hopd.recipe import ModelSource, Recipe
from hopd.rollout import NativeEngine, Rollout, pack
from hopd.run.files import json_text
from hopd.teacher import LocalTeacher

TOP = 16
QUANTILES = (0.5, 0.9, 0.99)
MEASURES = (
    "reverse_kl",
    "forward_kl",
    "log_ratio",
    "overlap",
    "shared_mass",
    "student_entropy",
    "teacher_entropy",
    "gradient",
)
FACTOR = 2.0  # the horizon ends at the first bin whose reverse KL is this multiple of the mean before it,
STANDARD_ERRORS = 2.0  # by this many standard errors,
REACH = 0.5  # among the bins that this fraction of the first bin's rollouts reaches


@dataclass(frozen=True)
class Bin:
    """Holds means over the tokens at positions `start` <= t < `end`, over all rollouts that reach them.

    `reverse_kl`, `forward_kl` and the entropies are over the whole vocabulary, in nats. `error` is the standard error
    of `reverse_kl` over rollouts. `log_ratio` holds the quantiles 0.5, 0.9 and 0.99 of |r_t|. `overlap` is the fraction
    of the student's 16 most likely tokens that are among the teacher's 16, and `shared_mass` the student's probability
    of these. `gradient_share` is this bin's fraction of the sum of all tokens' gradient norms (of the reverse KL, with
    respect to the logits), and `token_share` its fraction of all tokens.
    """

    start: int
    end: int
    tokens: int
    rollouts: int
    reverse_kl: float
    error: float
    forward_kl: float
    log_ratio: tuple[float, ...]
    overlap: float
    shared_mass: float
    student_entropy: float
    teacher_entropy: float
    gradient_share: float
    token_share: float


@dataclass(frozen=True)
class Probe:
    """Holds the bins. `horizon` is the suggested number of tokens, or None if there is no reason to shorten it."""

    bins: tuple[Bin, ...]
    rollouts: int
    horizon: int | None

    def sentences(self) -> tuple[str, str]:
        """Says where the teacher becomes less reliable, and which horizon that suggests."""
        longest = self.bins[-1].end
        if self.horizon is None:
            return (
                f"In {self.rollouts} rollouts the student is as close to the teacher late as early: up to {longest} "
                f"tokens, the reverse KL never reaches {FACTOR:g} times its mean before.",
                "This is no evidence for or against a shorter horizon: compare a short one with the full one.",
            )
        bin = next(bin for bin in self.bins if bin.start >= self.horizon)
        before = _mean_before(self.bins, self.horizon)
        return (
            f"From token {bin.start} on, the teacher is less reliable: the reverse KL is {bin.reverse_kl:.3f} nats per "
            f"token there, {bin.reverse_kl / before:.1f} times that of the tokens before ({before:.3f}).",
            f"That suggests rollouts of {self.horizon} tokens: the end of the last bin before the KL first is "
            f"{FACTOR:g} times its mean so far, by {STANDARD_ERRORS:g} standard errors.",
        )

    def save(self, out: Path) -> None:
        """Writes `out/probe.json` and `out/probe.png`."""
        out.mkdir(parents=True, exist_ok=True)
        content = {"sentences": self.sentences(), "quantiles": QUANTILES, **asdict(self)}
        (out / "probe.json").write_text(json_text(content, indent=1), encoding="utf-8")
        draw(self, out / "probe.png")


def probe(
    student: LanguageModel,
    teacher: LanguageModel,
    rollouts: Sequence[Rollout],
    bins: int = 20,
    tokens_per_batch: int = 8192,
) -> Probe:
    """Probes the student's own `rollouts` at temperature 1, in `bins` bins of equal width; the last may be shorter."""
    longest = max(rollout.length for rollout in rollouts)
    width = max(1, -(-longest // bins))
    measured, position, row = measure(student, teacher, rollouts, tokens_per_batch)
    by_bin = position // width
    total = max(float(measured["gradient"].sum()), 1e-30)
    made = []
    for index in range(int(by_bin.max()) + 1):
        here = by_bin == index
        kl = measured["reverse_kl"][here]
        _, of_rollout = np.unique(row[here], return_inverse=True)
        means = np.bincount(of_rollout, kl) / np.bincount(of_rollout)
        made.append(
            Bin(
                start=index * width,
                end=min((index + 1) * width, longest),
                tokens=int(here.sum()),
                rollouts=len(means),
                reverse_kl=float(kl.mean()),
                error=float(means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else float("inf"),
                forward_kl=float(measured["forward_kl"][here].mean()),
                log_ratio=tuple(np.quantile(np.abs(measured["log_ratio"][here]), QUANTILES).tolist()),
                overlap=float(measured["overlap"][here].mean()),
                shared_mass=float(measured["shared_mass"][here].mean()),
                student_entropy=float(measured["student_entropy"][here].mean()),
                teacher_entropy=float(measured["teacher_entropy"][here].mean()),
                gradient_share=float(measured["gradient"][here].sum() / total),
                token_share=float(here.mean()),
            )
        )
    return Probe(tuple(made), len(rollouts), suggested_horizon(made))


@dataclass(frozen=True)
class Answers:
    """Holds the student's rollouts on prompts of a recipe, and both models."""

    recipe: Recipe
    student: LanguageModel
    teacher: LanguageModel
    rollouts: list[Rollout]

    def probe(self, bins: int = 20) -> Probe:
        """Probes the student, position by position."""
        return probe(self.student, self.teacher, self.rollouts, bins)

    def alignment(self) -> Alignment:
        """Compares the gradients of the tenths, of the recipe's loss. Raises `ModelError` if that cannot be done."""
        rollout, tokens = self.recipe.rollout, self.recipe.training.tokens_per_batch
        teacher = LocalTeacher(self.teacher, rollout.temperature)
        objective, full_tokens = self.recipe.objective, rollout.full_tokens
        return alignment(self.student, teacher, self.rollouts, objective, full_tokens, rollout.temperature, tokens)

    def compared(self, out: Path) -> list[str]:
        """Compares the tenths, writes `out/alignment.json`, and returns lines for a person; one where it cannot."""
        try:
            found = self.alignment()
        except ModelError as error:
            return [f"the gradients of tenths are not compared: {error}"]
        found.save(out)
        return [*found.lines(), f"{out}/alignment.json"]


def probe_recipe(recipe: Recipe, prompts: int = 64, bins: int = 20, student: str | None = None) -> Probe:
    """Probes the recipe's student (or another, given by its source) against its teacher: see `answer`."""
    return answer(recipe, prompts, student).probe(bins)


def answer(recipe: Recipe, prompts: int = 64, student: str | None = None) -> Answers:
    """Lets the recipe's student (or another, given by its source) answer the first `prompts` prompts of the task, with
    the recipe's sampling and to its full length. Raises `RecipeError` unless the recipe has exactly one local teacher.
    """
    if not isinstance(recipe.teacher, ModelSource):
        raise RecipeError(
            "a probe needs the whole distribution of one teacher; write teacher: {model: ...}, not several teachers "
            "and no server, which returns log-probs of a few tokens only"
        )
    if student is not None:
        recipe = recipe.with_changes(student={"model": student})
    device = Processes.start().device
    models = load_models(recipe.unsharded(), device)
    chosen = build_prompts(recipe.task, models.student, recipe.rollout, models.teachers, recipe.own_prompts)
    engine = NativeEngine(models.student, recipe.rollout.rows)
    rollouts = engine.sample(chosen.prompts[:prompts], recipe.rollout.full_tokens, recipe.rollout.sampling, recipe.seed)
    return Answers(recipe, models.student, models.teachers[None], rollouts)


def suggested_horizon(bins: Sequence[Bin]) -> int | None:
    """Returns the start of the first bin whose reverse KL is `FACTOR` times the mean of all tokens before it, by more
    than `STANDARD_ERRORS`; bins that few rollouts reach are ignored. Returns None if there is no such bin."""
    for bin in bins[1:]:
        if bin.rollouts < REACH * bins[0].rollouts:
            return None
        if bin.reverse_kl - STANDARD_ERRORS * bin.error > FACTOR * _mean_before(bins, bin.start):
            return bin.start
    return None


def _mean_before(bins: Sequence[Bin], position: int) -> float:
    earlier = [bin for bin in bins if bin.end <= position]
    return sum(bin.reverse_kl * bin.tokens for bin in earlier) / sum(bin.tokens for bin in earlier)


@torch.no_grad()
def measure(
    student: LanguageModel, teacher: LanguageModel, rollouts: Sequence[Rollout], tokens_per_batch: int = 8192
) -> tuple[dict[str, Float[np.ndarray, " N"]], Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Returns the `MEASURES` of each token, its position, and the index of its rollout; N is the number of tokens."""
    index_of = {id(rollout): index for index, rollout in enumerate(rollouts)}
    parts: list[Float[Tensor, "n M"]] = []
    positions, rows = [], []
    for batch in pack(rollouts, [(0, rollout.length) for rollout in rollouts], tokens_per_batch, student.device):
        both = (student, batch), (teacher, batch.of_teacher)
        hidden = [read.states(model.hidden(read.ids)) for model, read in both]
        for part in chunks(len(batch.at.tokens), student.head.vocabulary, 8 * BLOCK_BYTES):
            s = student.head.logits(hidden[0][part]).log_softmax(-1)
            g = teacher.head.logits(hidden[1][part]).log_softmax(-1)
            parts.append(_token_measures(s, g, batch.at.tokens[part]).cpu())
        positions.append(batch.at.position.cpu())
        rows.append(torch.tensor([index_of[id(rollout)] for rollout in batch.rollouts])[batch.at.row.cpu()])
    columns = torch.cat(parts).double().unbind(-1)
    values = {name: column.numpy() for name, column in zip(MEASURES, columns, strict=True)}
    return values, torch.cat(positions).numpy(), torch.cat(rows).numpy()


def _token_measures(
    s: Float[Tensor, "n V"], g: Float[Tensor, "n V"], tokens: Int[Tensor, " n"]
) -> Float[Tensor, "n M"]:
    """Computes the `MEASURES` of n tokens from log π_θ and log π_g."""
    kl, p = reverse_kl(s, g), s.exp()
    ours, theirs = (x.topk(min(TOP, x.shape[-1]), dim=-1).indices for x in (s, g))
    shared = (ours[:, :, None] == theirs[:, None, :]).any(-1)
    log_ratio = (g - s).gather(-1, tokens[:, None])[:, 0]
    gradient = (p * (s - g - kl[:, None])).norm(dim=-1)  # of the reverse KL, with respect to the student's logits
    return torch.stack(
        [
            kl,
            forward_kl(s, g),
            log_ratio,
            shared.float().mean(-1),
            (p.gather(-1, ours) * shared).sum(-1),
            -(p * s).sum(-1),
            -(g.exp() * g).sum(-1),
            gradient,
        ],
        dim=-1,
    )


def draw(probe: Probe, path: Path) -> None:
    """Plots divergence, log-ratio, overlap, entropies and gradient by position, with the suggested horizon."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(10, 6.4), sharex=True, layout="constrained")
    middle = [(bin.start + bin.end) / 2 for bin in probe.bins]
    divergence, ratio, shared, rest = panels.flat
    kl, error = ([getattr(bin, name) for bin in probe.bins] for name in ("reverse_kl", "error"))
    divergence.errorbar(middle, kl, yerr=error, marker="o", markersize=3, label="reverse KL")
    divergence.plot(middle, [bin.forward_kl for bin in probe.bins], label="forward KL")
    divergence.set_ylabel("nats per token")
    for i, quantile in enumerate(QUANTILES):
        ratio.plot(middle, [bin.log_ratio[i] for bin in probe.bins], label=f"|r|, {quantile:g} quantile")
    ratio.set_ylabel("nats")
    shared.plot(middle, [bin.overlap for bin in probe.bins], label=f"top-{TOP} overlap")
    shared.plot(middle, [bin.shared_mass for bin in probe.bins], label="shared mass")
    shared.set(ylim=(0, 1.02), xlabel="position")
    rest.plot(middle, [bin.student_entropy for bin in probe.bins], label="student's entropy, nats")
    rest.plot(middle, [bin.teacher_entropy for bin in probe.bins], label="teacher's entropy, nats")
    excess = [bin.gradient_share / bin.token_share for bin in probe.bins]
    rest.plot(middle, excess, "k:", label="gradient share / token share")
    rest.set(xlabel="position")
    for panel in panels.flat:
        if probe.horizon is not None:
            panel.axvline(probe.horizon, color="tab:red", linewidth=0.8)
        panel.legend(frameon=False, fontsize=8)
        panel.grid(alpha=0.2)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
