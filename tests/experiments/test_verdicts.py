"""Checks that a page's verdicts follow its numbers: the same experiment with other results gets other verdicts."""

import pytest

from experiments.catalogue import EXPERIMENTS
from experiments.navigation.course import STEPS
from experiments.navigation.simple_navigation import DRAWN


def point(step, accuracy, seconds):
    tokens = {"generated_tokens": 10 * step, "training_seconds": seconds, "training_flops": 1e9}
    tokens["serial_tokens"] = 1200 * step
    return {"step": step, "accuracy": accuracy, "success": accuracy, "seconds": seconds, **tokens}


def runs(first, last, seconds, count=3, **more):
    middle = point(1, (first + last) / 2, seconds / 2)
    return [{"curve": [point(0, first, 0.0), middle, point(2, last, seconds)], **more}] * count


def verdicts(name, results, out):
    page = EXPERIMENTS[name].page(results, out)
    assert all((out / file).stat().st_size > 5000 for file in page.figures)
    assert all(claim.found in page.markdown(name, 3, 60.0, "a machine") for claim in page.claims)
    return [claim.verdict for claim in page.claims]


@pytest.mark.parametrize(
    ("opd", "popd", "topd", "expected"),
    [
        ((0.95, 60.0), (0.99, 20.0), (0.95, 10.0), ["holds", "holds"]),
        ((0.95, 60.0), (0.96, 40.0), (0.94, 15.0), ["holds in part", "holds in part"]),  # as good, at a quarter
        ((0.95, 60.0), (0.90, 20.0), (0.80, 10.0), ["does not hold", "does not hold"]),  # cheap, but not as good
    ],
)
def test_quickstart_horizons(tmp_path, opd, popd, topd, expected):
    results = {"OPD": runs(0.0, *opd), "POPD": runs(0.0, *popd), "TOPD 0.1": runs(0.0, *topd)}
    assert verdicts("quickstart-horizons", results, tmp_path) == expected


def test_a_page_of_horizons_names_serial_tokens_unless_the_results_are_older(tmp_path):
    old = runs(0.0, 0.9, 10.0, count=1)
    old[0]["curve"] = [{k: v for k, v in p.items() if k != "serial_tokens"} for p in old[0]["curve"]]
    results = {"OPD": runs(0.0, 0.95, 60.0), "POPD": old, "TOPD 0.1": runs(0.0, 0.95, 10.0)}
    (table,) = EXPERIMENTS["quickstart-horizons"].page(results | {"POPD": 3 * old}, tmp_path).tables
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line]
    column = header.index("serial tokens")
    assert {row[0]: row[column] for row in rows} == {"OPD": "2.4k", "POPD": "–", "TOPD 0.1": "2.4k"}


@pytest.mark.parametrize(
    ("popd", "topd", "expected"),
    [
        ((0.95, 50.0), 0.1, ["holds", "holds"]),
        ((0.94, 50.0), 0.1, ["holds", "holds in part"]),  # as good, but never where OPD ends
        ((0.95, 70.0), 0.6, ["does not hold", "holds in part"]),  # as good, but later
        ((0.50, 50.0), 0.9, ["does not hold", "does not hold"]),
    ],
)
def test_two_phase(tmp_path, popd, topd, expected):
    results = {"OPD": runs(0.0, 0.95, 60.0), "POPD": runs(0.0, *popd), "TOPD 0.1": runs(0.0, topd, 10.0)}
    assert verdicts("two-phase", results, tmp_path) == expected


def paths(kind):
    straight = [[[0.1 * t, 0.1 * t] for t in range(STEPS)]]
    return {"teacher": straight, "before": straight, "after": straight} if kind else {}


@pytest.mark.parametrize(
    ("failing", "kinds", "expected"),
    [
        ([60, 75, 90], ["early", "late"], "holds"),
        ([60, 75, 90], ["late"], "holds in part"),
        ([30, 45, 60, 75, 90], ["early", "late"], "holds in part"),
        ([], [], "does not hold"),
    ],
)
def test_simple_navigation(tmp_path, failing, kinds, expected):
    results = {}
    for variant in EXPERIMENTS["simple-navigation"].variants():
        kind, name, angle = variant.split("-")
        last = 0.0 if name == "sequence" and kind in kinds and int(angle) in failing else 1.0
        results[variant] = runs(0.0, last, 1.0, paths=paths((kind, name, angle) in DRAWN))
    assert verdicts("simple-navigation", results, tmp_path) == ["holds", expected, "holds"]


@pytest.mark.parametrize(
    ("popd", "quarter", "expected"),
    [
        ((1.0, 10.0), 0.6, ["holds", "holds", "holds"]),
        ((1.0, 90.0), 0.0, ["holds", "holds in part", "does not hold"]),
        ((0.5, 10.0), 1.0, ["does not hold", "does not hold", "does not hold"]),
    ],
)
def test_autoregressive_navigation(tmp_path, popd, quarter, expected):
    other = {"TOPD 0.25": quarter, "TOPD 0.20": 0.0 if quarter < 1 else 0.4, "TOPD 0.10": 0.0}
    results = {"OPD": runs(0.0, 1.0, 100.0), "POPD": runs(0.0, *popd)}
    results |= {name: runs(0.0, best, 20.0) for name, best in other.items()}
    results = {name: [run | {"paths": paths(True)} for run in of_name] for name, of_name in results.items()}
    assert verdicts("autoregressive-navigation", results, tmp_path) == expected


@pytest.mark.parametrize(("end", "expected"), [(0.05, "holds"), (0.5, "holds in part"), (0.97, "does not hold")])
def test_reverse_distillation(tmp_path, end, expected):
    variants = EXPERIMENTS["reverse-distillation"].variants()
    results = {variant: runs(0.99, end, 9.0, teacher=0.03) for variant in variants}
    assert verdicts("reverse-distillation", results, tmp_path) == [expected]


@pytest.mark.parametrize(
    ("lasts", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6, 0.02], ["holds", "holds"]),
        ([0.9, 0.7, 0.8, 0.6, 0.5], ["holds in part", "does not hold"]),
        ([0.6, 0.7, 0.6, 0.7, 0.7], ["does not hold", "does not hold"]),
    ],
)
def test_segment_ablation(tmp_path, lasts, expected):
    variants = EXPERIMENTS["segment-ablation"].variants()
    results = {variant: runs(0.05, last, 9.0) for variant, last in zip(variants, lasts, strict=True)}
    assert verdicts("segment-ablation", results, tmp_path) == expected


@pytest.mark.parametrize(
    ("after", "growth", "expected"),
    [
        ([0.95] * 6, 2.0, ["holds", "holds", "holds"]),
        ([0.90, 0.9, 0.9, 0.95, 0.95, 0.96], 1.0, ["holds", "holds in part", "does not hold"]),
        ([0.40, 0.4, 0.5, 0.7, 0.85, 0.96], 1.0, ["holds", "does not hold", "does not hold"]),
    ],
)
def test_prefix_continuation(tmp_path, after, growth, expected):
    bins = [{"start": 10 * i, "end": 10 * i + 10, "reverse_kl": 0.1 * (growth if i else 1.0)} for i in range(4)]
    common = {"probe": {"bins": bins}, "sentences": ["One.", "Two."]}
    results = {
        "before": [{"accuracy": [0.03, 0.05, 0.1, 0.2, 0.3, 0.5], **common}] * 3,
        "after": [{"accuracy": after, **common}] * 3,
    }
    assert verdicts("prefix-continuation", results, tmp_path) == expected


def look(alignment, noise, sketched_alignment, sketched_noise):
    whole, sketch = (
        [{"alignment": 1.0, "noise": noise[0]}, *({"alignment": alignment, "noise": noise[1]} for _ in range(9))]
        for alignment, noise in ((alignment, noise), (sketched_alignment, sketched_noise))
    )
    return {"whole": whole, "sketch": sketch, "verdict": "A short horizon can do."}


NEAR, FAR = look(0.5, (1, 2), 0.6, (0.8, 1.5)), look(0.5, (1, 2), 0.9, (1, 9))
UNKNOWN = look(float("inf"), (1, float("inf")), -3.0, (0.4, 0.1))  # no signal late, and noise too low at first


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([NEAR] * 3, ["holds", "holds"]),
        ([NEAR] * 2 + [UNKNOWN], ["holds", "holds in part"]),
        ([NEAR] * 9 + [FAR], ["holds in part", "holds in part"]),
        ([NEAR, FAR], ["does not hold", "does not hold"]),
    ],
)
def test_block_gradients(tmp_path, looks, expected):
    assert verdicts("block-gradients", {"two-phase": looks}, tmp_path) == expected
