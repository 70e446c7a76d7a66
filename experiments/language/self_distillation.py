"""Lets a small model teach itself: as the teacher it reads a worked solution, which as the student it does not have."""

import json
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.experiment import Claim, Results
from experiments.figures import mean
from experiments.language.horizons import HorizonComparison
from experiments.language.setting import OPD, Setting, final, quickstart, topd
from experiments.quickstart.make import Examples, fine_tune, save, training_pairs
from hopd.assembly.models import load_models
from hopd.assembly.prompts import build_prompts
from hopd.evaluation.accuracy import measure
from hopd.quickstart import RECIPE
from hopd.recipe import Recipe
from hopd.rollout import NativeEngine, answers_of
from hopd.run.files import write_atomically
from hopd.tasks.addition import prompt, scratchpad

STEPS = 4
UPDATES, BATCH, FINE_TUNED_AT = 200, 16, 2e-3
DROPPED = 0.75  # of the carries, without a solution
DISTILLED, RATE = 32, 2e-4  # of each variant: steps, learning rate
COPIES, FORGETS, LEARNS = 0.95, 0.1, 0.6  # accuracies: with a solution at least, without at most, at the end at least

SETTING = Setting(
    task={"source": "addition", "steps": STEPS, "size": 8192},
    held_out={"held_out": True},
    full_tokens=126,
    training={"learning_rate": RATE},
    own={"prompt": "solution"},
)


def make(out: Path) -> None:
    """Writes the student: the packaged one, fine-tuned to copy a solution that stands in its prompt."""
    torch.manual_seed(0)
    packaged = RECIPE.parent / "student"
    model = LlamaForCausalLM.from_pretrained(packaged).float()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(packaged)
    fine_tune(model, tokenizer, examples(random.Random(0)), UPDATES, learning_rate=FINE_TUNED_AT, log=print)
    save(model, tokenizer, out / "student")


def examples(rng: random.Random) -> Examples:
    """Returns answers that copy the solution in their prompt, whatever it says, and in every fourth batch answers
    without one that forget most carries. In half of the solutions that are copied all digits are random: what can be
    worked out is not learnt to be copied."""

    def of_update(update: int) -> Sequence[tuple[str, str]]:
        pairs = list(training_pairs(rng, BATCH))
        if update % 4 == 0:
            return [(prompt(*pair, STEPS), scratchpad(*pair, STEPS, rng, DROPPED)) for pair in pairs]
        solutions = [scratchpad(*pair, STEPS, rng, rng.choice((0.0, DROPPED))) for pair in pairs]
        solutions[::2] = [_scrambled(text, rng) for text in solutions[::2]]
        return [(text + prompt(*pair, STEPS), text) for text, pair in zip(solutions, pairs, strict=True)]

    return of_update


def _scrambled(text: str, rng: random.Random) -> str:
    return "".join(rng.choice(string.digits) if letter.isdigit() else letter for letter in text)


def accuracy_of_teacher(recipe: Recipe) -> float:
    """Returns the accuracy of a recipe's teacher on the evaluation's problems, with the prompts that it reads."""
    assert recipe.evaluation is not None
    evaluation, models = recipe.evaluation, load_models(recipe, "cpu")
    prompts = build_prompts(evaluation.task, models.student, recipe.rollout, models.teachers, recipe.own_prompts)
    engine = NativeEngine(models.teachers[None], evaluation.rows)
    full_tokens, sampling = recipe.rollout.full_tokens, evaluation.sampling
    answers = answers_of(engine, prompts.prompts, full_tokens, sampling, evaluation.seed)
    return measure(answers, prompts.check(answers), 1).accuracy


def claims(results: Results) -> Sequence[Claim]:
    """Judges whether the pair is what it should be, and whether each horizon teaches the student its own solutions."""
    copied = results["OPD"][0]["teacher"]
    untrained = mean([run["curve"][0]["accuracy"] for runs in results.values() for run in runs])
    made = [copied >= COPIES, untrained <= FORGETS]
    return [
        Claim(
            f"ours: one model answers at least {100 * COPIES:.0f} % with a solution in its prompt, at most "
            f"{100 * FORGETS:.0f} % without",
            f"{100 * copied:.1f} % with, {100 * untrained:.1f} % without",
            "holds" if all(made) else "holds in part" if any(made) else "does not hold",
        ),
        *(_learnt(name, final(runs)) for name, runs in results.items()),
    ]


def _learnt(name: str, accuracy: Sequence[float]) -> Claim:
    reached = [seed >= LEARNS for seed in accuracy]
    return Claim(
        f"ours: it teaches itself: with {name}, it ends at {100 * LEARNS:.0f} % or more without the solution",
        f"by seed: {', '.join(f'{100 * seed:.1f} %' for seed in accuracy)}",
        "holds" if all(reached) else "holds in part" if any(reached) else "does not hold",
    )


@dataclass
class SelfDistillation(HorizonComparison):
    """Compares horizons of a student that teaches itself."""

    def prepare(self, seed: int, work: Path) -> None:
        models = SETTING.models(work)
        if not (models / "student").exists():
            make(models)
            score = accuracy_of_teacher(quickstart("teacher", seed, work, OPD, 1, 1, SETTING))
            write_atomically(models / "teacher.json", json.dumps(score))


SELF_DISTILLATION = SelfDistillation(
    name="self-distillation",
    title="A model that teaches itself from a worked solution",
    source="After on-policy self-distillation (OPSD, SDFT), which the paper does not have: the teacher is the student, "
    "shown the solution",
    text=(
        f"An answer adds {STEPS} times, in 121 tokens. The model is the packaged student, fine-tuned for {UPDATES} "
        "updates: in three of four the prompt begins with a worked solution, which the answer copies; in the rest it "
        f"is the question alone, and the answer forgets a carry with probability {DROPPED:g}. Half of the copied "
        "solutions have random digits, for what can be worked out is not learnt to be copied. The recipe has `teacher: "
        "{model: …, prompt: solution}` with the student's own model: the teacher reads the solution, 120 tokens, "
        "before the question, and scores what the student wrote without it. Rules, fixed before the first run: at "
        f"least {100 * COPIES:.0f} % of held-out problems with a solution, at most {100 * FORGETS:.0f} % without, and "
        f"at least {100 * LEARNS:.0f} % without one at the end. Each variant has steps of {SETTING.prompts} rollouts "
        f"at the learning rate {RATE:g}: {DISTILLED}, or {4 * DISTILLED} of continued ones, which gain a tenth of the "
        f"answer in each step until they end. Evaluated on {SETTING.problems} held-out problems, never with one. "
        "Seconds are the processor's, of training."
    ),
    plan={
        "OPD": (OPD, DISTILLED, 8),
        "TOPD 0.25": (topd(0.25), DISTILLED, 8),
        "continued 0.1": (topd(0.1) | {"continue": True}, 4 * DISTILLED, 32),
    },
    setting=SETTING,
    make=make,
    claims=claims,
    remarks=(
        "Where the student has gone wrong, the solution that the teacher copies no longer fits what it reads, and OPD "
        "learns all the same. A horizon has to hold a carry: TOPD 0.1, tried first with one seed, ends a token before "
        "the first one that can be forgotten, and was at 6 % after 24 steps. A first pair, with six additions, half of "
        "the carries forgotten and no random digits, was given up: after 150 updates its loss on what it should copy "
        "was still that of working it out."
    ),
)
