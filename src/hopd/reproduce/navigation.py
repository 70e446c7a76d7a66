"""Simple navigation (Fig. 3, 4 and 14): token-level against sequence-level signals as the two tasks move apart."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hopd.control.course import DISTANCE, STEPS, Course
from hopd.control.distillation import as_json, distil
from hopd.control.policy import MlpPolicy, OptimalPolicy, Policy
from hopd.control.reinforce import LEARNT, reinforce
from hopd.horizon import Full
from hopd.reproduce.experiment import Claim, Page, Results, table
from hopd.reproduce.figures import draw_paths, interval, save

ANGLES = (30, 45, 60, 75, 90)
GAMMAS = {"token": 0.0, "0.5": 0.5, "0.9": 0.9, "sequence": 1.0}
STEPS_OF_DISTILLATION = 300
SHOWN = 8  # rollouts that are drawn


class SimpleNavigation:
    name = "simple-navigation"
    seeds = 5

    def prepare(self, seed: int, work: Path) -> None:
        torch.manual_seed(seed)
        reached = {}
        for task in ("student", *map(str, ANGLES)):
            policy = MlpPolicy()
            reached[task] = reinforce(policy, _course(task), steps=3000, seed=seed)
            if reached[task] < LEARNT:
                raise RuntimeError(f"REINFORCE reached {reached[task]:.3f} on task {task} with seed {seed}")
            torch.save(policy.state_dict(), work / f"{task}.pt")

    def variants(self) -> Sequence[str]:
        reinforced = [f"reinforced-{name}-{angle}" for angle in ANGLES for name in GAMMAS]
        return reinforced + [f"optimal-{name}-{angle}" for angle in ANGLES for name in ("token", "sequence")]

    def run(self, variant: str, seed: int, work: Path) -> dict[str, Any]:
        kind, gamma, angle = variant.split("-")
        course = _course(angle)
        student, teacher = _load(work / "student.pt"), _load(work / f"{angle}.pt")
        if kind == "optimal":
            teacher = OptimalPolicy(course.target, DISTANCE)
        before = copy.deepcopy(student)
        curve = distil(
            student,
            teacher,
            course,
            Full(STEPS),
            STEPS_OF_DISTILLATION,
            seed,
            ledger=work / f"{variant}-ledger.json",
            gamma=GAMMAS[gamma],
        )
        paths = {}
        if seed == 0 and angle in ("30", "90") and kind == "reinforced" and gamma in ("token", "sequence"):
            for name, policy in {"teacher": teacher, "before": before, "after": student}.items():
                taken = course.sample(policy, SHOWN, STEPS, torch.Generator().manual_seed(seed))
                paths[name] = taken.positions.tolist()
        return {"curve": as_json(curve), "paths": paths}

    def page(self, results: Results, out: Path) -> Page:
        last = {variant: [run["curve"][-1]["success"] for run in runs] for variant, runs in results.items()}
        _draw(results, last, out)
        rows = []
        for kind, names in (("reinforced", tuple(GAMMAS)), ("optimal", ("token", "sequence"))):
            for name in names:
                cells = [interval(last[f"{kind}-{name}-{angle}"]) for angle in ANGLES]
                rows.append([f"{kind} teacher, γ = {GAMMAS[name]:g}", *cells])
        worst = {
            (kind, name): {angle: min(last[f"{kind}-{name}-{angle}"]) for angle in ANGLES}
            for kind in ("reinforced", "optimal")
            for name in ("token", "sequence")
        }
        mean = {angle: _mean(last[f"reinforced-sequence-{angle}"]) for angle in ANGLES}
        failing = [angle for angle in ANGLES if mean[angle] < 0.5]
        token, sequence = worst["reinforced", "token"], worst["optimal", "sequence"]
        fails_from = failing and failing == list(ANGLES[ANGLES.index(failing[0]) :])
        claims = [
            Claim(
                "token-level signals work at every mismatch (at least 95 %)",
                f"the worst seed ends at {100 * min(token.values()):.0f} %",
                "holds"
                if min(token.values()) >= 0.95
                else "holds in part"
                if _mean(list(token.values())) >= 0.8
                else "does not hold",
            ),
            Claim(
                "sequence-level signals work at 30 and 45 degrees and fail from 60 on",
                f"mean success below a half at {', '.join(map(str, failing)) or 'no angle'}; "
                + ", ".join(f"{angle}°: {100 * mean[angle]:.0f} %" for angle in ANGLES),
                "holds" if failing == [60, 75, 90] else "holds in part" if fails_from else "does not hold",
            ),
            Claim(
                "with an analytic optimal teacher sequence-level signals also learn",
                f"the worst seed ends at {100 * min(sequence.values()):.0f} %",
                "holds"
                if min(sequence.values()) >= 0.95
                else "holds in part"
                if _mean(list(sequence.values())) >= 0.8
                else "does not hold",
            ),
        ]
        return Page(
            title="Simple navigation: how far ahead a signal should look",
            source="Fig. 3, 4 and 14 of the paper",
            setting=SETTING,
            tables=[
                f"Success at the end, mean of the seeds (lowest to highest), {STEPS_OF_DISTILLATION} steps:\n\n"
                + table(["", *(f"{angle}°" for angle in ANGLES)], rows)
            ],
            figures={"simple-navigation.png": "Success by mismatch and over steps, and paths before and after"},
            claims=claims,
        )


SETTING = f"""A point moves {STEPS} times by an action of scale 0.8; noise σ = 0.01. The student knows a target at 0°,
the teacher one at the mismatch's angle, both {DISTANCE:g} away; success is to end within 1.0 of the teacher's. Each
seed has its own student and teachers, trained by REINFORCE until 99 % of 1024 rollouts succeed: that rule, and nothing
that distillation did, chose what the paper leaves open (distances, noise, 64 rollouts a step, Adam at 1e-3)."""


def _course(task: str) -> Course:
    """The student's own task has id 0, the teacher's 1."""
    return Course(angle=0.0) if task == "student" else Course(angle=float(task), task=1.0)


def _load(path: Path) -> Policy:
    policy = MlpPolicy()
    policy.load_state_dict(torch.load(path, weights_only=True))
    return policy


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _draw(results: Results, last: dict[str, list[float]], out: Path) -> None:
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 3, figsize=(12, 7.2), layout="constrained")
    for name, gamma in GAMMAS.items():
        values = [[100 * v for v in last[f"reinforced-{name}-{angle}"]] for angle in ANGLES]
        panels[0, 0].plot(ANGLES, [_mean(v) for v in values], marker="o", markersize=4, label=f"γ = {gamma:g}")
    panels[0, 0].plot(
        ANGLES, [100 * _mean(last[f"optimal-sequence-{a}"]) for a in ANGLES], "k--", label="γ = 1, optimal teacher"
    )
    panels[0, 0].set(xlabel="mismatch, degrees", ylabel="success at the end, %", title="by mismatch")
    panels[0, 0].legend(frameon=False, fontsize=8)
    for panel, angle in zip((panels[0, 1], panels[0, 2]), (30, 90), strict=True):
        for name, gamma in GAMMAS.items():
            curves = [run["curve"] for run in results[f"reinforced-{name}-{angle}"]]
            steps = [point["step"] for point in curves[0]]
            means = [100 * _mean([curve[i]["success"] for curve in curves]) for i in range(len(steps))]
            panel.plot(steps, means, label=f"γ = {gamma:g}")
        panel.set(xlabel="steps", ylabel="success, %", title=f"{angle} degrees")
    shown = [("token", 30), ("token", 90), ("sequence", 90)]
    for panel, (name, angle) in zip(panels[1], shown, strict=True):
        draw_paths(panel, results[f"reinforced-{name}-{angle}"][0]["paths"], _course(str(angle)))
        panel.set_title(f"γ = {GAMMAS[name]:g}, {angle} degrees")
    save(figure, out / "simple-navigation.png")
