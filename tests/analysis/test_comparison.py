"""The comparison of finished runs: on short real runs, on written files, and the refusals."""

import json
import re
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from hopd.analysis.comparison import Run, compare
from hopd.distiller import Distiller
from hopd.errors import RecipeError
from hopd.forecast.machine import Machine
from hopd.recipe import Recipe

EVALUATION = "evaluation={task: {source: addition, steps: 1, size: 32, seed: 9}, every: 1}"


@pytest.fixture
def run(tiny):
    """Trains the tiny recipe under another name, with changes, and returns the run's directory."""

    def trained(name, *changes):
        return Distiller.of(Recipe.load(tiny, [f"name={name}", EVALUATION, *changes])).train().directory.path

    return trained


def test_two_ways_of_training(run, command, tmp_path):
    sides = {
        "short": [run(f"short-{seed}", f"seed={seed}") for seed in (0, 1)],
        "long": [run(f"long-{seed}", f"seed={seed}", "horizon.tokens=16") for seed in (1, 0)],
    }
    found = compare(("short", sides["short"]), ("long", sides["long"]))
    assert found.seeds == (0, 1)
    assert found.cost["long"]["generated_tokens"] > found.cost["short"]["generated_tokens"]
    assert (found.cost["long"]["serial_tokens"], found.cost["short"]["serial_tokens"]) == ((32, 32), (16, 16))
    last = {
        name: [json.loads((path / "evaluations.jsonl").read_text().splitlines()[-1])["score"] for path in paths]
        for name, paths in (("short", sides["short"]), ("long", sides["long"][::-1]))
    }
    assert found.scores == {name: tuple(scores) for name, scores in last.items()}
    assert found.difference == pytest.approx(np.mean(last["long"]) - np.mean(last["short"]))
    assert found.target == pytest.approx(np.mean(last["short"]))
    named = [f"{name}={','.join(map(str, paths))}" for name, paths in sides.items()]
    ended = command("compare", *named, "--machine", "8xh100", "--out", "found.json")
    assert ended.code == 0, ended.err
    assert "serial tokens: 32 against 16 (2.00)" in ended.out
    assert "modelled seconds (a=0.0044,b=3.12e-16): 0.141 against 0.0704 (2.00)" in ended.out  # next to no FLOPs
    assert "long − short" in ended.out
    assert "32 problems, paired" in ended.out
    low, high = found.over_problems
    assert low <= found.difference <= high
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["seeds"] == [0, 1]
    assert written["machine"] == asdict(Machine.named("8xh100"))
    assert written["cost"]["long"]["modelled_seconds"] == pytest.approx([0.1408, 0.1408], rel=1e-4)
    ended = command("compare", *named, "--machine", "8xh10")
    assert (ended.code, ended.out) == (2, "")
    assert "no machine is named '8xh10' (did you mean '8xh100'?)" in ended.err


def fake(path, seed, scores, problems="the same", by_problem=None, costs=None, **changes):
    """Writes a finished run's files, with these evaluations; each step adds to `costs`."""
    path.mkdir()
    recipe = {"seed": seed, "training": {"steps": len(scores)}, "rollout": {"full_tokens": 10}, "task": {"size": 1}}
    (path / "recipe.yaml").write_text(json.dumps(recipe | changes))
    points = [
        {"step": i + 1, "score": score, "training_seconds": i + 1.0, "generated_tokens": 10, "training_flops": 1e9}
        | {name: (i + 1) * cost for name, cost in (costs or {}).items()}
        for i, score in enumerate(scores)
    ]
    for name in ("evaluations", "metrics"):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    line = {"step": len(scores), "problems": problems, "scores": by_problem or [scores[-1]] * 4}
    (path / "scores.jsonl").write_text(json.dumps({"step": 0, "problems": problems, "scores": [0.0]}) + "\n")
    with (path / "scores.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return path


def test_the_test_is_paired_over_seeds(tmp_path):
    ours, theirs = [0.5, 0.7, 0.9, 0.8], [0.55, 0.74, 0.97, 0.86]
    a = [fake(tmp_path / f"a{i}", i, [0.1, score]) for i, score in enumerate(ours)]
    b = [fake(tmp_path / f"b{i}", i, [0.73, score]) for i, score in enumerate(theirs)]
    found = compare(("a", a), ("b", b))
    expected = stats.ttest_rel(theirs, ours)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.over_seeds == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.p is not None
    assert found.p < 0.01 < stats.ttest_ind(theirs, ours).pvalue  # unpaired, nothing would show
    assert found.target == pytest.approx(0.725)
    assert found.cost_to_target["b"]["training_seconds"] == (1.0, 1.0, 1.0, 1.0)
    assert found.cost_to_target["a"]["training_seconds"] == (None, None, 2.0, 2.0)
    assert found.over_problems == pytest.approx((found.difference, found.difference))  # all problems are alike here
    assert found.over_both is not None
    low, high = found.over_both
    assert low < found.difference < high
    assert "seconds to 0.725: 1 (4 of 4 runs) against 2 (2 of 4 runs)" in found.lines()


def test_each_side_has_its_own_costs(tmp_path):
    short = [fake(tmp_path / f"short{i}", i, [0.5]) for i in (0, 1)]
    long = [fake(tmp_path / f"long{i}", i, [0.1, 0.2, 0.5, 0.4]) for i in (0, 1)]
    lines = compare(("long", long), ("short", short)).lines()
    assert "seconds: 1 against 4 (0.25)" in lines
    same = compare(("short", short), ("long", long))
    assert "seconds: 4 against 1 (4.00)" in same.lines()
    assert "seconds to 0.5: 3 (2 of 2 runs) against 1 (2 of 2 runs)" in same.lines()  # to reach it is enough


def test_which_way_is_cheaper_depends_on_the_machine(tmp_path):
    """Few long rollouts a step against many short ones, to the same score in as many steps."""
    few, many = (
        [fake(tmp_path / f"{name}{i}", i, [0.1, 0.5, 0.5], costs=costs) for i in (0, 1)]
        for name, costs in (
            ("few", {"serial_tokens": 400, "training_flops": 1e9}),
            ("many", {"serial_tokens": 40, "training_flops": 4e9}),
        )
    )
    waits, computes = Machine(0.01, 1e-12), Machine(1e-6, 1e-9)
    for machine, expected in ((waits, {"few": 8.002, "many": 0.808}), (computes, {"few": 2.0008, "many": 8.00008})):
        found = compare(("few", few), ("many", many), machine)
        for name, seconds in expected.items():
            assert found.cost_to_target[name]["modelled_seconds"] == pytest.approx((seconds, seconds))
            assert found.cost[name]["modelled_seconds"] == pytest.approx((1.5 * seconds, 1.5 * seconds))
        assert found.cost["few"]["serial_tokens"] == (1200, 1200)
    lines = compare(("few", few), ("many", many), Machine(0.01, 0)).lines()
    assert "serial tokens to 0.5: 80 (2 of 2 runs) against 800 (2 of 2 runs)" in lines
    assert "modelled seconds (a=0.01,b=0): 1.2 against 12 (0.10)" in lines
    assert "modelled seconds (a=0.01,b=0) to 0.5: 0.8 (2 of 2 runs) against 8 (2 of 2 runs)" in lines
    assert not any("modelled" in line or "unknown" in line for line in compare(("few", few), ("many", many)).lines())


def test_runs_from_before_serial_tokens_are_compared_without_them(tmp_path):
    counted, old = (
        [fake(tmp_path / f"{name}{i}", i, [0.5], costs=costs) for i in (0, 1)]
        for name, costs in (("counted", {"serial_tokens": 40}), ("old", None))
    )
    found = compare(("counted", counted), ("old", old))
    assert list(found.cost["counted"]) == ["training_seconds", "generated_tokens", "training_flops"]
    assert found.lines()[-1] == "serial tokens: unknown, since some steps were taken by hopd before 0.3"
    with pytest.raises(RecipeError, match="old0 has steps without serial tokens"):
        compare(("counted", counted), ("old", old), Machine(1, 1))


def test_an_old_run_that_went_on_is_not_taken_for_a_cheap_one(run):
    """Its ledger counts serial tokens from the resume on, so their sum lacks those of the steps before, even where no
    evaluation is from before."""
    path = run("old")
    written = [path / "ledger.json", *path.glob("*.jsonl"), *path.glob("checkpoints/*/state.json")]
    for file in written:
        file.write_text(re.sub(r'"serial_tokens": ?\d+,?', "", file.read_text()))
    assert not any("serial_tokens" in file.read_text() for file in written)
    recipe = Recipe.load(path / "recipe.yaml", ["training.steps=3"])
    evaluation = Distiller.of(recipe, resume=True).train().evaluation
    assert evaluation is not None
    assert evaluation.serial_tokens == 8  # of one step of three
    (path / "evaluations.jsonl").write_text((path / "evaluations.jsonl").read_text().splitlines()[-1] + "\n")
    found = Run.read(path)
    assert [point["step"] for point in found.curve] == [3]
    assert not found.records("serial_tokens")
    assert found.records("generated_tokens")


def test_problems_are_paired(tmp_path):
    """Makes problems differ far more than the two sides do, so that only pairs show the difference."""
    hard, easy = [0.0, 0.1, 0.0, 0.1] * 8, [0.9, 0.8, 0.9, 0.8] * 8
    ours, theirs = hard + easy, [score + 0.05 for score in hard + easy]
    a, b = (
        [fake(tmp_path / f"{name}{i}", i, [np.mean(scores) + i / 1000], by_problem=scores) for i in (0, 1)]
        for name, scores in (("a", ours), ("b", theirs))
    )
    found = compare(("a", a), ("b", b))
    assert found.over_problems == pytest.approx((0.05, 0.05))
    assert found.problems == 64
    back = compare(("b", b), ("a", a))
    assert back.over_problems == pytest.approx((-0.05, -0.05))
    assert back.difference == pytest.approx(-found.difference)
    same = compare(("a", a), ("again", a))
    assert (same.over_problems, same.over_both, same.p) == ((0, 0), (0, 0), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"full_tokens": 20}}, "rollout.full_tokens is 10 in the first and 20 in the second"),
        ({"task": {"size": 2}}, "task is"),
        ({"evaluation": {"samples": 2}}, "evaluation is"),
        ({"problems": "others"}, "evaluation problems differ"),
        ({"seed": 3}, "need the same seeds"),
        ({"training": {"steps": 5}}, "not finished: 2 steps of 5"),
    ],
)
def test_what_is_not_comparable_is_refused(tmp_path, changes, message):
    a = [fake(tmp_path / f"a{i}", i, [0.1, 0.2]) for i in (0, 1)]
    b = [fake(tmp_path / "b0", 0, [0.1, 0.2]), fake(tmp_path / "b1", **{"seed": 1, "scores": [0.1, 0.2]} | changes)]
    with pytest.raises(RecipeError, match=message):
        compare(("a", a), ("b", b))


def test_how_often_runs_were_evaluated_may_differ(tmp_path):
    sides = [
        [fake(tmp_path / f"{k}{i}", i, [0.2], evaluation={"samples": 2, "every": k}) for i in (0, 1)] for k in (1, 2)
    ]
    assert compare(("a", sides[0]), ("b", sides[1])).difference == 0


def test_one_run_a_side_has_an_interval_over_problems_alone(command, tmp_path):
    random = np.random.default_rng(0)
    ours = random.integers(0, 2, 64).astype(float)
    theirs = np.where(random.random(64) < 0.2, 1.0, ours)
    a, b, c = (
        fake(tmp_path / name, 0, [float(scores.mean())], problems, list(scores))
        for name, scores, problems in (("a", ours, "x"), ("b", theirs, "x"), ("c", theirs, "y"))
    )
    found = compare(("a", [a]), ("b", [b]))
    assert (found.over_seeds, found.over_both, found.p) == (None, None, None)
    low, high = found.over_problems
    assert found.difference == pytest.approx((theirs - ours).mean())
    assert 0 <= low < found.difference < high
    assert high - low < 0.25  # paired: apart, the two means alone vary by 0.12 each
    ended = command("compare", f"a={a}", f"b={b}", "--out", "found.json")
    assert ended.code == 0, ended.err
    assert "one seed (0), evaluated to the full length" in ended.out
    assert "64 problems, paired" in ended.out
    assert "one seed says nothing about others" in ended.out
    assert json.loads((tmp_path / "found.json").read_text())["over_seeds"] is None
    ended = command("compare", f"a={a}", f"c={c}")
    assert (ended.code, ended.out) == (2, "")
    assert "their evaluation problems differ" in ended.err


@pytest.mark.parametrize(("content", "words"), [("[1", "is not YAML"), ("a: 1", "is not a run"), ("", "is not a run")])
def test_a_directory_with_another_recipe_yaml_is_no_run(tmp_path, content, words):
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(RecipeError, match=words):
        Run.read(tmp_path)


def test_what_is_no_run_is_refused(tmp_path):
    one = [fake(tmp_path / "a", 0, [0.1])]
    with pytest.raises(RecipeError, match="is not a run"):
        Run.read(tmp_path)
    (one[0] / "scores.jsonl").unlink()
    with pytest.raises(RecipeError, match="scores of each problem"):
        Run.read(one[0])
    (one[0] / "evaluations.jsonl").unlink()
    with pytest.raises(RecipeError, match="never evaluated"):
        Run.read(one[0])
