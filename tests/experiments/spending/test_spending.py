"""How spends are compared: equal tokens a step, the choice of rates, the verdicts, and one small run, end to end."""

import json
from dataclasses import replace
from typing import Any

import pytest

from experiments.spending import case as cases
from experiments.spending import job as jobs
from experiments.spending.case import CASES
from experiments.spending.job import Job
from experiments.spending.page import claims, margin, ratios, runs_of, write
from experiments.spending.search import RATES, chosen, comparing, searching
from experiments.spending.spend import SHARE, grid, schemes
from hopd import horizon

QUICKSTART = CASES["quickstart"]


def line(spend: str, rate: float, accuracies: list[float], tested: float | None = None, **more: Any) -> dict[str, Any]:
    """Makes the result of a run whose evaluations are 1000 tokens apart."""
    curve = [
        {"accuracy": a, "generated_tokens": 1000.0 * i, "serial_tokens": 100.0 * i, "training_flops": 1e9 * i}
        for i, a in enumerate(accuracies, start=1)
    ]
    end = {} if tested is None else {"test": tested}
    job = {
        "case": "quickstart",
        "spend": spend,
        "rate": rate,
        "seed": 0,
        "end_game": False,
        "tested": tested is not None,
    }
    return job | {"curve": curve, "seconds": 1.0} | end | more


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_controls_have_about_as_many_tokens_in_a_step_as_topd(case) -> None:
    spends = schemes(case)
    for name in ("few full", "continued"):
        assert spends[name].tokens == pytest.approx(spends["TOPD"].tokens, rel=0.3)
        assert spends[name].steps(case) == pytest.approx(spends["TOPD"].steps(case), rel=0.3)
    assert spends["OPD"].steps(case) == case.steps
    for spend in {**spends, **grid(case)}.values():
        decision = horizon.build(spend.horizon, case.full_tokens, case.prompts).decide(0)
        decision.check(0, case.full_tokens)
        assert spend.steps(case) * spend.tokens <= 1.1 * case.steps * case.prompts * case.answer


def test_the_grid_has_every_number_of_rollouts_at_every_length() -> None:
    found = grid(QUICKSTART)
    assert len(found) == 12
    assert {spend.horizon["rollouts"] for spend in found.values()} == {4, 8, 32}
    assert {spend.horizon["tokens"] for spend in found.values()} == {36, 90, 360}
    assert found["n × T" if "n × T" in found else "n/1 × T"].share == 1
    assert found["n/8 × T"].share == SHARE


def test_the_search_has_every_scheme_at_every_rate_and_what_follows_three_seeds_with_and_without_the_end_game() -> None:
    search = searching(schemes, [QUICKSTART])
    assert len({job.key for job in search}) == len(search) == len(RATES) * len(schemes(QUICKSTART))
    results = [line("OPD", 1e-4, [0.5, 0.9]), line("OPD", 4e-4, [0.9, 0.4]), line("TOPD", 2e-4, [0.1, 0.2])]
    runs = comparing(results, [QUICKSTART])
    assert {(job.spend, job.rate) for job in runs} == {("OPD", 1e-4), ("TOPD", 2e-4)}
    assert len({job.key for job in runs}) == 2 * 2 * 3
    assert all(job.tested for job in runs)


def test_the_best_rate_is_that_of_the_last_two_evaluations_and_of_equals_the_lowest() -> None:
    best = chosen(
        [line("OPD", 4e-4, [1.0, 0.8, 0.9]), line("OPD", 2e-4, [0.0, 0.9, 0.8]), line("OPD", 1e-4, [1, 0, 0])]
    )
    assert best == {("quickstart", "OPD"): 2e-4}


def test_the_adaptive_controller_has_one_rate_for_all_cases() -> None:
    """The best in the mean over the cases, among those that every case was tried at."""
    lines = [
        line("adaptive", rate, [accuracy], case=case)
        for case, of_rates in {
            "quickstart": {1e-4: 0.9, 2e-4: 0.95, 4e-4: 1.0},
            "two-phase": {1e-4: 0.9, 2e-4: 0.8},
        }.items()
        for rate, accuracy in of_rates.items()
    ]
    assert set(chosen(lines).values()) == {1e-4}


def test_a_margin_is_that_of_two_proportions_and_none_of_untested_runs() -> None:
    tested = [line("OPD", 1e-4, [0.9], tested=0.9, seed=seed) for seed in range(3)]
    runs = {"OPD": tested, "adaptive": [one | {"spend": "adaptive"} for one in tested]}
    assert margin(runs, "adaptive") == " ± 2.1"  # 1.96 · (2 · .9 · .1 / 1536) ** .5
    assert margin({**runs, "adaptive": [line("adaptive", 1e-4, [0.9])]}, "adaptive") == ""


def test_costs_are_those_of_the_first_evaluation_within_a_point_of_opds_end() -> None:
    lines = [line("OPD", 1e-4, [0.5, 0.9, 0.9, 0.9]), line("TOPD", 1e-4, [0.88, 0.895, 0.2]), line("POPD", 1e-4, [0.5])]
    runs = runs_of(lines, "quickstart")
    assert ratios(runs, "TOPD", "tokens") == [1.0]
    assert ratios(runs, "POPD", "tokens") == [None]
    assert ratios(runs, "OPD", "serial tokens") == [1.0]


def test_tested_runs_take_the_place_of_the_search() -> None:
    lines = [line("OPD", 1e-4, [0.5, 0.5]), line("OPD", 1e-4, [0.9, 0.9], tested=0.8, seed=1)]
    assert [run["seed"] for run in runs_of(lines, "quickstart")["OPD"]] == [1]


@pytest.mark.parametrize(
    ("topd", "few", "adaptive", "verdicts"),
    [
        (0.90, [0.1, 0.2, 0.3, 0.9], [0.90, 0.9], ["holds", "holds", "holds", "holds"]),
        (0.50, [0.9, 0.9], [0.5, 0.5], ["does not hold", "does not hold", "does not hold", "does not hold"]),
    ],
)
def test_verdicts_on_one_case(topd: float, few: list[float], adaptive: list[float], verdicts: list[str]) -> None:
    lines = [
        line("OPD", 1e-4, [0.1, 0.2, 0.3, 0.9, 0.9]),
        line("TOPD", 1e-4, [0.1, 0.2, topd, topd]),
        line("few full", 1e-4, few),
        line("adaptive", 1e-4, adaptive),
    ]
    found = claims(lines)
    short, saved, ours, cheap = found[0], found[1], found[-2], found[-1]
    assert [short.verdict, saved.verdict, ours.verdict, cheap.verdict] == verdicts


def test_a_job_trains_tests_and_says_what_it_was(tmp_path, monkeypatch) -> None:
    small = replace(QUICKSTART, steps=1, prompts=4, answer=3)
    monkeypatch.setitem(CASES, "quickstart", small)
    monkeypatch.setattr("experiments.spending.spend.LEAST", 2)
    monkeypatch.setattr(cases, "VALIDATION", 2)
    monkeypatch.setattr(jobs, "TEST", 2)
    found = Job("quickstart", "continued", 1e-4, end_game=True, tested=True).run(tmp_path)
    assert found["steps"] == 2
    assert 0 <= found["test"] <= 1
    assert [point["step"] for point in found["curve"]] == [1, 2]
    assert found["curve"][-1]["serial_tokens"] == 2 * 36
    assert not list((tmp_path / "quickstart" / "runs").iterdir())
    json.dumps(found)


def test_the_page_is_written_beside_its_numbers(tmp_path) -> None:
    lines = [line("OPD", 1e-4, [0.9, 0.9]), line("TOPD", 1e-4, [0.2, 0.2])]
    page = write(lines, tmp_path, "two cores").read_text()
    assert "| OPD | 0.0001 of 1 | 90.0 % |" in page
    assert "python -m experiments.spending" in page
    assert json.loads((tmp_path / "horizon-or-batch.json").read_text())["results"] == lines
