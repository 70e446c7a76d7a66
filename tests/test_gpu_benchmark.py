"""The run on a GPU, as a dry run on this CPU: its stages run, and its page says what was measured and what failed."""

import json

import pytest

from benchmarks.gpu.__main__ import STAGES, main
from benchmarks.gpu.criteria import verdicts


def test_a_dry_run_writes_measurements_and_a_page(tmp_path):
    main(["roof", "parity", "decode", "update", "attention", "--tiny", "--out", str(tmp_path)])
    lines = json.loads((tmp_path / "gpu.json").read_text())["lines"]
    assert not [line for line in lines if "failed" in line]
    assert {
        "roof",
        "parity",
        "decode",
        "profile",
        "generate",
        "update",
        "head chunk",
        "optimizer state",
        "attention",
    } <= {line["stage"] for line in lines}
    page = (tmp_path / "gpu.md").read_text()
    assert "## Decode" in page
    assert "| fp32: greedy rollouts are generate()'s; log-probs within 1e-3 of a plain forward pass | 100 %;" in page


def test_a_stage_that_fails_is_reported_and_hides_no_other(tmp_path, monkeypatch):
    def broken(place, record):
        raise RuntimeError("no room")

    monkeypatch.setitem(STAGES, "parity", broken)
    assert not main(["parity", "roof", "--tiny", "--out", str(tmp_path)])
    lines = json.loads((tmp_path / "gpu.json").read_text())["lines"]
    assert [line["stage"] for line in lines] == ["roof", "parity"]
    assert "- parity: `RuntimeError: no room`" in (tmp_path / "gpu.md").read_text()


def test_an_unknown_stage_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["rof", "--tiny"])
    assert "there is no stage rof; the stages are roof, parity" in capsys.readouterr().err


def test_criteria_tell_good_from_bad():
    parity = {"stage": "parity", "precision": "float32", "greedy_same": 1.0, "log_prob_apart_mean": 0.0}
    decode = {"stage": "decode", "rows": 8, "context": 128}
    ours, plain = decode | {"decoder": "as it is"}, decode | {"decoder": "the model's modules"}
    good = [
        parity | {"log_prob_apart_max": 1e-5},
        {"stage": "command line", "name": "hopd train", "code": 0},
        ours | {"ms_a_token": 4.0, "mismatch": 0.05},
        plain | {"ms_a_token": 20.0, "mismatch": 0.05},
    ]
    bad = [
        parity | {"log_prob_apart_max": 1e-2},
        {"stage": "command line", "name": "hopd train", "code": 1},
        ours | {"ms_a_token": 21.0, "mismatch": 0.12},
        plain | {"ms_a_token": 20.0, "mismatch": 0.05},
    ]
    assert [verdict.passed for verdict in verdicts(good)] == [True] * 4
    assert [verdict.passed for verdict in verdicts(bad)] == [False] * 4
    assert verdicts([{"stage": "parity", "failed": "RuntimeError"}]) == []
