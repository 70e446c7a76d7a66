"""Samples from a server on loopback: every kind of fault, weights that do not arrive, and the alarm."""

import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import pytest
import torch

from hopd import Distiller, Recipe
from hopd.assembly import build
from hopd.errors import EngineError, RecipeError, ServerUnavailable
from hopd.forecast.preflight import preflight
from hopd.rollout import FinishReason, NativeEngine, Sampling
from hopd.run.progress import Progress
from tests.rollout.vllm.scripted import ScriptedRollouts
from tests.teacher.scripted import TEACHER, equal, metrics, weights
from tests.test_processes import launched, run


def sampled(synced, prompts, samples=2):
    made = synced.sample(prompts, 12, Sampling(), seed=3, samples=samples)
    return [(r.prompt.id, r.sample, r.ids.tolist(), r.log_probs.tolist(), r.finish) for r in made]


def test_rollouts_are_the_students_as_it_is(server, synced, student, prompts):
    engine = synced(server)
    for _ in range(2):
        rollouts = engine.sample(prompts, 12, Sampling(), seed=3, samples=2)
        assert [(r.prompt.id, r.sample) for r in rollouts] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        for rollout in rollouts:
            ids = torch.cat([rollout.prompt.ids, rollout.ids])[None]
            with torch.no_grad():
                logits = student.model(input_ids=ids).logits[0, len(rollout.prompt.ids) - 1 : -1]
            mine = logits.log_softmax(-1).gather(-1, rollout.ids[:, None])[:, 0]
            torch.testing.assert_close(rollout.log_probs, mine, atol=1e-4, rtol=0)
        student.model.model.norm.weight.data.mul_(0.5)  # flatter, and new for the second round


@pytest.mark.parametrize(
    ("kind", "counted"),
    [
        ("dropped", "dropped"),
        ("timeout", "timeout"),
        ("busy", "busy"),
        ("server_error", "server_error"),
        ("malformed", "malformed"),
        ("html", "malformed"),
        ("not_finite", "not_finite"),
        ("short", "malformed"),
        ("ended", "wrong_length"),
        ("other_weights", "other_weights"),
    ],
)
def test_a_fault_is_counted_and_the_same_rollout_asked_again(server, synced, prompts, kind, counted):
    engine = synced(server, concurrency=1)
    calm = sampled(engine, prompts)
    assert engine.metrics()["rollout_retries"] == 0
    server.tell("faults", [kind, kind])
    assert sampled(engine, prompts) == calm
    after = engine.metrics()
    assert (after[f"rollout_faults_{counted}"], after["rollout_retries"]) == (2, 2)
    assert after["rollout_seconds_lost"] > 0


@pytest.mark.parametrize("kind", ["dropped", "server_error", "malformed", "not_finite", "other_weights", "rejected"])
def test_a_fault_that_stays_is_an_error_never_a_rollout(server, synced, prompts, kind):
    engine = synced(server, deadline=0.2)
    server.tell("faults", [f"{kind}!"])
    with pytest.raises(ServerUnavailable, match=f"have not been sampled.* at {server.url}"):
        engine.sample(prompts, 12, Sampling(), seed=3)


def test_nobody_listens(synced, prompts):
    with pytest.raises(ServerUnavailable, match=r"no rollout server has taken the new weights.*no connection"):
        synced("http://127.0.0.1:9", deadline=0.2).sample(prompts, 12, Sampling(), seed=3)


def test_weights_are_sent_again_after_a_fault(server, synced, prompts):
    engine = synced(server)
    calm = sampled(engine, prompts)
    engine.metrics()
    server.tell("refuse", 2)
    assert sampled(engine, prompts) == calm
    assert engine.metrics()["rollout_faults_server_error"] == 2


def test_of_several_servers_those_with_the_new_weights_go_on(server, synced, prompts):
    calm = sampled(synced(server), prompts)
    other = ScriptedRollouts(TEACHER)
    try:
        engine = synced(other, server, "http://127.0.0.1:9")
        assert sampled(engine, prompts) == calm
        other.tell("faults", [])
        other.tell("refuse", 1)  # it keeps its old weights, and is left out
        assert sampled(engine, prompts) == calm
        assert not other.log()
        assert sampled(engine, prompts) == calm
        assert other.log()
    finally:
        other.end()
    assert sampled(engine, prompts) == calm


def test_weights_that_did_not_arrive_are_noticed(server, synced, student, prompts, monkeypatch):
    engine = synced(server)
    old = {name: tensor.clone() for name, tensor in engine._weights().items()}
    monkeypatch.setattr(engine, "_weights", lambda: old)
    sampled(engine, prompts)
    student.model.model.norm.weight.data.mul_(1.02)
    with pytest.raises(EngineError, match="does not decode with the student's weights after they were sent"):
        sampled(engine, prompts)


def test_finish_reasons(server, synced, student, prompts):
    student.config.max_position_embeddings = 16
    native = NativeEngine(student)
    for max_tokens in (4, 12):
        made = synced(server).sample(prompts, max_tokens, Sampling(), seed=1)
        for rollout in made:
            room = 16 - len(rollout.prompt.ids)
            if int(rollout.ids[-1]) in student.stop_ids:
                assert rollout.finish is FinishReason.STOP
            else:
                assert rollout.length == min(room, max_tokens)
                assert rollout.finish is (FinishReason.CONTEXT if room < max_tokens else FinishReason.HORIZON)
    assert native.sample([], 4, Sampling(), 0) == synced(server).sample([], 4, Sampling(), 0) == []


RECIPE = """
name: run
output: {output}
student: {{model: "package:hopd/quickstart/student"}}
teacher: {{model: "package:hopd/quickstart/teacher"}}
task: {{source: addition, steps: 1, size: 256}}
rollout:
  prompts: 4
  full_tokens: 40
  engine: {{kind: vllm_server, server: "{server}", weights: file, directory: {output}/weights, backoff: 0.01}}
horizon: {{controller: truncated, tokens: 8}}
training: {{steps: 6, learning_rate: 1e-3}}
checkpoint: {{every: 100}}
"""


@pytest.fixture
def recipe(server, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(output=tmp_path / "runs", server=server.url))
    return path


@pytest.mark.parametrize("change", ["name=run", "horizon.continue=true"], ids=["cut", "continued"])
def test_a_server_that_dies_stops_the_run_with_3_and_a_resume_ends_at_the_same_bits(
    command, recipe, server, tmp_path, change
):
    assert command("train", recipe, "--set", change, "--set=name=whole").code == 0
    server.tell("faults", [""] * 9 + ["server_error!"])
    ended = command("train", recipe, "--set", change, "--set=rollout.engine.deadline=0.3")
    assert ended.code == 3, ended.err
    assert "have not been sampled" in ended.err
    run = tmp_path / "runs" / "run"
    stopped = [line["step"] for line in metrics(run)]
    assert 0 < len(stopped) < 6
    assert sorted((run / "checkpoints").iterdir())[-1].name == f"step-{len(stopped):06d}"
    server.tell("faults", [])
    assert command("train", recipe, "--set", change, "--resume").code == 0
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert equal(weights(run), weights(tmp_path / "runs" / "whole"))


@pytest.mark.parametrize("changes", [(), ("training.sharding=fsdp", "lora={rank: 4, alpha: 8}")], ids=["whole", "fsdp"])
def test_two_processes_share_the_servers(recipe, tmp_path, changes):
    losses = []
    for processes in (1, 2):
        sets = [f"--set={change}" for change in (*changes, f"name=by-{processes}", "training.steps=3")]
        run(launched(processes, ["-m", "hopd", "train", str(recipe), *sets]))
        losses.append([line["loss"] for line in metrics(tmp_path / "runs" / f"by-{processes}")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_an_engine_that_is_off_sets_off_the_alarm(recipe, server, tmp_path, capsys):
    server.tell("faults", ["shifted!"])
    distiller = Distiller.of(Recipe.load(recipe, ["rollout.mismatch_alarm=0.03"]), progress=Progress())
    with pytest.raises(Exception, match=r"0\.05 nats a token apart, above rollout.mismatch_alarm = 0.03"):
        list(preflight(distiller.parts))
    distiller.train()
    lines = metrics(tmp_path / "runs" / "run")
    assert all(line["mismatch"] == pytest.approx(0.05, abs=1e-4) for line in lines)
    assert all(line["alarm"].startswith(f"step {line['step']}: the engine's and the learner's") for line in lines)
    assert "write objective: {estimator: sampled, importance_cap: 2}" in lines[0]["alarm"]
    assert capsys.readouterr().out.count("above rollout.mismatch_alarm") == 1  # it is printed at the first step only
    calm = Distiller.of(
        Recipe.load(recipe, ["rollout.mismatch_alarm=0.06", "name=calm"]), progress=Progress(quiet=True)
    )
    calm.train()
    assert not any("alarm" in line for line in metrics(tmp_path / "runs" / "calm"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["rollout.engine={kind: vlm}"], "did you mean 'vllm'"),
        (["rollout.engine={kind: vllm, memry: 0.3}"], "unknown key rollout.engine.memry .did you mean 'memory'"),
        (["rollout.engine.directory=null"], "weights: file needs a directory"),
        (["rollout.engine.server=127.0.0.1:8000"], "rollout.engine.server must be an address"),
        (["rollout.temperature=0.7", "rollout.top_p=0.9"], "write temperature: 1"),
    ],
)
def test_what_cannot_work_is_refused_by_the_recipe(recipe, settings, sentence):
    with pytest.raises(RecipeError, match=sentence):
        Recipe.load(recipe, settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nccl_without_a_gpu_is_refused_before_the_run(recipe):
    changed = Recipe.load(recipe, ["rollout.engine.weights=nccl", "rollout.engine.directory=null"])
    with pytest.raises(RecipeError, match="write weights: file"):
        list(preflight(build(changed, progress=Progress(quiet=True))))


def test_a_server_that_is_too_short_is_refused_before_the_run(recipe, server):
    server.tell("limit", 30)
    with pytest.raises(RecipeError, match="serve with --max-model-len"):
        list(preflight(build(Recipe.load(recipe), progress=Progress(quiet=True))))


def test_a_server_without_the_endpoints_is_told_how_to_serve(recipe):
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as files_only:
        threading.Thread(target=files_only.serve_forever, daemon=True).start()
        changed = Recipe.load(recipe, [f"rollout.engine.server=http://127.0.0.1:{files_only.server_port}"])
        with pytest.raises(RecipeError, match="VLLM_SERVER_DEV_MODE=1"):
            list(preflight(build(changed, progress=Progress(quiet=True))))
        files_only.shutdown()


def test_a_missing_vllm_is_reported_before_the_run(recipe):
    if find_spec("vllm"):
        pytest.skip("vLLM is installed here")
    changed = Recipe.load(recipe, ["rollout.engine={kind: vllm}"])
    with pytest.raises(RecipeError, match=r"pip install 'hopd\[vllm\]'"):
        list(preflight(build(changed, progress=Progress(quiet=True))))
