"""The drift alarm rings where the end of answers gets worse, and is quiet on runs that go well."""

import json
import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hopd.distiller import Distiller
from hopd.horizon import Block, Decision, Evidence
from hopd.recipe import Recipe
from hopd.run import drift
from hopd.run.drift import DriftAlarm
from hopd.run.progress import Progress

FULL, WIDTH = 100, 10
MIX = Decision(10, "", rollouts=20, whole=4)
CONTINUED = Decision(10, "", whole=None, continues=True)
WHOLE = Decision(FULL, "")


def evidence(step: int, divergences: Sequence[float], reached: Sequence[int], stopped: Sequence[int] = ()) -> Evidence:
    """What 20 rollouts show of which so many reach each tenth."""
    ended = (*stopped, *[0] * (len(reached) - len(stopped)))
    blocks = tuple(
        Block(WIDTH * i, WIDTH * (i + 1), n, ended[i], n * WIDTH, divergence if n else 0.0)
        for i, (divergence, n) in enumerate(zip(divergences, reached, strict=True))
    )
    return Evidence(step, WIDTH, 20, sum(ended), 1.0, (), (), (), blocks)


def ring(courses: Sequence[Sequence[float]], reached=(20, *[4] * 9), decision=MIX, alarm=None) -> list[str | None]:
    """The sentences of a run in which the tenths have these divergences, step by step."""
    alarm = alarm or DriftAlarm()
    return [
        alarm.sentence(step + 1, decision, evidence(step, divergences, reached))
        for step, divergences in enumerate(courses)
    ]


def counting_bits(steps: int = 300) -> list[list[float]]:
    """The early tenths are learnt; the last one falls to .001 within 40 steps, and from step 150 rises to .12."""
    early = [[max(0.02, 0.8 * 0.97**step)] * 9 for step in range(steps)]
    falling = [0.3 * (0.001 / 0.3) ** min(1, step / 40) for step in range(150)]
    rising = [0.001 * 120 ** min(1, step / 100) for step in range(steps - 150)]
    return [[*row, last] for row, last in zip(early, falling + rising, strict=True)]


@pytest.mark.parametrize("decision", [MIX, CONTINUED, WHOLE])
def test_it_rings_where_the_last_tenth_drifts_while_the_mean_falls(decision):
    courses = counting_bits()
    assert sum(courses[290]) < sum(courses[20])
    sentences = ring(courses, decision=decision)
    first = next(step for step, sentence in enumerate(sentences) if sentence)
    assert 190 < first < 250
    assert all(sentences[first:])
    assert sentences[-1] is not None
    assert sentences[-1].startswith(
        "step 300: the divergence of response tokens 90 to 100 has grown to 0.12 nats, at least 15 times its lowest, "
        "while that of the tokens before fell from 0.8 to 0.02; "
    )


def test_its_sentence_says_what_to_write():
    remedies = {
        MIX: "let more rollouts run whole, horizon: {whole: 8}, or let them continue, horizon: {continue: true}",
        Decision(50, ""): "let more rollouts run whole, horizon: {whole: 2}, or let them continue, horizon: {contin",
        CONTINUED: "late tokens need more rollouts in a step (horizon.rollouts), or a lower training.learning_rate",
        WHOLE: "late tokens need more rollouts in a step (horizon.rollouts), or a lower training.learning_rate",
    }
    for decision, remedy in remedies.items():
        assert remedy in str(ring(counting_bits(), decision=decision)[-1])


def test_of_a_growing_horizon_it_looks_at_the_tenths_that_it_has_come_to():
    courses = [row for row in counting_bits() for _ in range(2)]
    alarm, sentences = DriftAlarm(), []
    for step, divergences in enumerate(courses):
        horizon = min(FULL, 10 + step)
        reached = [20 if place * WIDTH < horizon else 0 for place in range(10)]
        sentences.append(alarm.sentence(step + 1, Decision(horizon, ""), evidence(step, divergences, reached)))
    assert not any(sentences[:380])
    assert "tokens 90 to 100" in str(sentences[-1])


falling = st.lists(st.floats(0, 3), min_size=12, max_size=24).map(lambda values: sorted(values, reverse=True))
tenths = st.tuples(falling, falling, falling)


@settings(max_examples=25)
@given(tenths, st.lists(st.tuples(*[st.integers(0, 20)] * 3), min_size=24, max_size=24))
def test_a_divergence_that_falls_everywhere_never_rings_whoever_gets_there(columns, reached):
    alarm = DriftAlarm()
    for step, divergences in enumerate(zip(*columns, strict=False)):
        assert alarm.sentence(step, CONTINUED, evidence(step, divergences, reached[step])) is None


@settings(max_examples=25)
@given(tenths, st.integers(0, 10**6))
def test_noise_of_a_fifth_never_rings(columns, seed):
    noise = random.Random(seed)
    courses = [*zip(*columns, strict=False)]
    courses += [courses[-1]] * 60
    noisy = [[divergence * noise.uniform(0.8, 1.2) for divergence in divergences] for divergences in courses]
    assert not any(ring(noisy, reached=(20, 4, 4)))


def test_a_run_that_diverges_everywhere_is_not_drift():
    courses = [[0.5 * 0.95**step] * 10 for step in range(80)] + [[0.008 * 1.1**step] * 10 for step in range(40)]
    assert not any(ring(courses))


def test_a_late_tenth_that_rises_before_the_early_ones_fall_is_not_drift():
    assert not any(ring([[0.5] * 9 + [0.01 * 1.05**step] for step in range(100)]))


def test_few_rollouts_left_at_the_end_are_no_drift():
    alarm = DriftAlarm()
    for step in range(200):
        last, many = (0.01, 10) if step < 100 else (0.12, 2)
        divergences = [max(0.02, 0.8 * 0.97**step)] * 9 + [last]
        assert alarm.sentence(step, CONTINUED, evidence(step, divergences, [20] * 9 + [many])) is None


def test_the_first_few_that_got_there_are_no_yardstick_for_many():
    alarm = DriftAlarm()
    for step in range(200):
        last, many = (0.01, 1) if step < 100 else (0.1, 20)
        divergences = [max(0.02, 0.8 * 0.97**step)] * 9 + [last]
        assert alarm.sentence(step, CONTINUED, evidence(step, divergences, [20] * 9 + [many])) is None


def test_it_falls_silent_where_nobody_gets_to_the_end_any_more():
    alarm = DriftAlarm()
    assert ring(counting_bits(), alarm=alarm)[-1]
    assert not any(ring([[0.02] * 10] * 20, reached=[20] * 9 + [0], alarm=alarm)[10:])


def test_estimates_below_zero_are_no_drift():
    noise = random.Random(5)
    courses = [[max(0.02, 0.9**step)] * 9 + [noise.gauss(0.0, 0.01)] for step in range(400)]
    assert not any(ring(courses))


def test_it_rings_where_the_rollouts_behind_the_horizon_stop_no_longer():
    alarm, sentences = DriftAlarm(), []
    for step in range(80):
        reached, stopped = ((20, 4, 4, *[0] * 7), (0, 0, 4)) if step < 40 else ((20, *[4] * 9), ())
        sentences.append(alarm.sentence(step, MIX, evidence(step, [0.1] * 10, reached, stopped)))
    assert not any(sentences[:41])
    assert sentences[-1] == (
        "step 79: of the rollouts that go on behind token 10, 1% stop by themselves, 89 tokens later; at first, 100% "
        "did, 20 tokens later; the horizon teaches the beginning at the cost of the end: let more rollouts run whole, "
        "horizon: {whole: 8}, or let them continue, horizon: {continue: true}"
    )


@pytest.mark.parametrize("often", [0.05, 0.3, 0.5, 0.9, 1.0])
def test_rollouts_that_stop_as_often_as_before_never_ring(often):
    chance = random.Random(7)
    for whole in (1, 4):
        alarm, decision = DriftAlarm(), Decision(10, "", rollouts=20, whole=whole)
        for step in range(300):
            stopped = sum(chance.random() < often for _ in range(whole))
            seen = evidence(step, [0.1] * 10, (20, *[whole] * 9), (*[0] * 9, stopped))
            assert alarm.sentence(step, decision, seen) is None


def test_of_hundreds_of_rollouts_a_few_more_that_do_not_stop_are_no_alarm():
    alarm, decision = DriftAlarm(), Decision(10, "", rollouts=300, whole=200)
    for step in range(80):
        seen = evidence(step, [0.1] * 10, (20, *[200] * 9), (*[0] * 9, 180 if step < 40 else 100))
        assert alarm.sentence(step, decision, seen) is None


@pytest.mark.parametrize(
    "decision", [CONTINUED, Decision(10, "", whole=4, end=50), Decision(10, "", whole=4, continues=True)]
)
def test_rollouts_that_are_cut_by_a_decision_are_not_taken_for_some_that_do_not_stop(decision):
    alarm = DriftAlarm()
    for step in range(80):
        stopped = (0, 0, 4) if step < 40 else ()
        assert alarm.sentence(step, decision, evidence(step, [0.1] * 10, (20, 4, 4, *[0] * 7), stopped)) is None


def test_of_a_student_that_is_its_teacher_it_makes_nothing():
    rounding = [[1e-8 * 0.9**step] * 9 + [1e-9 * 1.05**step] for step in range(60)]
    assert not any(ring(rounding))
    assert not any(ring([[5e-324] * 10, *[[0.0] * 10] * 12]))


def test_without_tenths_and_without_late_tokens_it_is_quiet():
    assert DriftAlarm().sentence(1, MIX, Evidence(0, 10, 4, 4, 1.0, (), (), ())) is None
    assert not any(ring(counting_bits(), reached=(20, *[0] * 9)))


@pytest.mark.parametrize("saved", [0, 1, 9, 10, 160, 250])
def test_an_alarm_saved_at_any_step_goes_on_as_the_one_that_was_not(saved):
    courses = counting_bits()
    whole = DriftAlarm()
    sentences = ring(courses, alarm=whole)
    begun = DriftAlarm()
    ring(courses[:saved], alarm=begun)
    resumed = DriftAlarm.restored(json.loads(json.dumps(begun.state_dict())))
    again = [
        resumed.sentence(step + 1, MIX, evidence(step, courses[step], (20, *[4] * 9)))
        for step in range(saved, len(courses))
    ]
    assert again == sentences[saved:]
    assert json.dumps(resumed.state_dict()) == json.dumps(whole.state_dict())


def lines(directory) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_all_alarms_shows_each_once_and_resumes_them(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(drift, "STEPS", 1)
    monkeypatch.setattr(drift, "SEVERAL", 1e-9)  # so that it rings as soon as the early tokens' divergence falls
    changes = ["horizon.whole=1", "training.learning_rate=1e-3", "rollout.mismatch_alarm=1e-12"]

    def train(name: str, steps: int) -> list[dict[str, object]]:
        recipe = Recipe.load(tiny, [*changes, f"name={name}", f"training.steps={steps}"])
        Distiller.of(recipe, resume=True, progress=Progress(console=Console(width=10_000))).train()
        return lines(tmp_path / "runs" / name)

    uninterrupted = train("whole", 8)
    shown = capsys.readouterr().out
    rung = [line for line in uninterrupted if "has grown to" in str(line.get("alarm"))]
    assert rung
    assert all(str(line["alarm"]).count("\n") == 1 for line in rung)
    assert all(f"step {line['step']}: the engine's" in str(line["alarm"]) for line in rung)
    assert shown.count("above rollout.mismatch_alarm") == 1
    rings = ["has grown to" in str(line.get("alarm")) for line in uninterrupted]
    risings = sum(now and not before for before, now in pairwise([False, *rings]))
    assert shown.count("has grown to") == risings
    train("parts", 5)
    assert [line.get("alarm") for line in train("parts", 8)] == [line.get("alarm") for line in uninterrupted]
    saved = json.loads((tmp_path / "runs" / "parts" / "checkpoints" / "step-000008" / "state.json").read_text())
    assert [course["steps"] for course in saved["drift"]["courses"]][:2] == [8, 8]
