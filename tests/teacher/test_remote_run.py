"""Runs with a teacher behind a server on loopback: faults, resumes, keys, and refusals before a run."""

import json
import shutil
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from hopd import Distiller, Recipe
from hopd.assembly import build
from hopd.errors import RecipeError, TeacherUnavailable
from hopd.forecast.plan import make_plan
from hopd.forecast.preflight import preflight
from hopd.model import load
from hopd.recipe import ServerSource
from hopd.run.progress import Progress
from hopd.teacher import RemoteTeacher
from tests.teacher.scripted import KEY, STUDENT, TEACHER, Scripted, after_steps, equal, metrics, weights

RECIPE = """
name: run
output: {output}
student: {{model: "package:hopd/quickstart/student"}}
teacher: {{server: "{server}", model: tiny, backoff: 0.01, timeout: 20, api_key_env: HOPD_TEST_KEY}}
task: {{source: addition, steps: 1, size: 256}}
rollout: {{prompts: 4, full_tokens: 40}}
objective: {{estimator: sampled}}
horizon: {{controller: truncated, tokens: 8}}
training: {{steps: 6, learning_rate: 1e-3}}
checkpoint: {{every: 100}}
"""


@pytest.fixture
def recipe(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOPD_TEST_KEY", KEY)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(output=tmp_path / "runs", server=server.url))
    return path


def test_a_server_that_dies_stops_the_run_with_3_and_a_resume_ends_at_the_same_bits(
    command, recipe, server, tmp_path, monkeypatch
):
    assert command("train", recipe, "--set=name=whole").code == 0
    server.tell("faults", [""] * 9 + ["server_error!"])
    ended = command("train", recipe, "--set=teacher.deadline=0.3")
    assert ended.code == 3, ended.err
    assert "has not scored" in ended.err
    run = tmp_path / "runs" / "run"
    stopped = [line["step"] for line in metrics(run)]
    assert 0 < len(stopped) < 6
    assert sorted((run / "checkpoints").iterdir())[-1].name == f"step-{len(stopped):06d}"
    server.tell("faults", [])
    assert command("train", recipe, "--set=teacher.deadline=0.3", "--resume").code == 0
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert equal(weights(run), weights(tmp_path / "runs" / "whole"))
    seen = "".join(path.read_text(errors="replace") for path in run.rglob("*") if path.is_file())
    assert "HOPD_TEST_KEY" in seen
    assert KEY not in seen
    assert {keyed for _, _, keyed in server.log()} == {True}


def test_two_hundred_faults_leave_no_trace_in_the_weights(recipe, server, tmp_path):
    def run(name):
        Distiller.of(
            Recipe.load(recipe, [f"name={name}", "training.steps=50", "teacher.sequences=1"]),
            progress=Progress(quiet=True),
        ).train()
        return tmp_path / "runs" / name

    calm = run("calm")
    server.tell("random", {"count": 200, "share": 0.6, "seed": 1})
    stormy = run("stormy")
    assert equal(weights(calm), weights(stormy))
    assert [line["step"] for line in metrics(stormy)] == list(range(1, 51))
    assert [line["loss"] for line in metrics(stormy)] == [line["loss"] for line in metrics(calm)]
    assert sum(line["teacher_retries"] for line in metrics(stormy)) == 200
    assert sum(line["trained_tokens"] for line in metrics(stormy)) == sum(
        line["trained_tokens"] for line in metrics(calm)
    )
    print("seconds lost:", sum(line["teacher_seconds_lost"] for line in metrics(stormy)))


def test_a_server_that_is_killed_and_comes_back_during_a_run_costs_time_alone(command, recipe, tmp_path):
    servers = [Scripted()]
    run, where = tmp_path / "runs" / "run", f"--set=teacher.server={servers[0].url}"

    def replace():
        servers[0].end()
        servers.append(Scripted(port=servers[0].port))

    try:
        replacing = after_steps(run, 3, replace)
        ended = command("train", recipe, where, "--set=training.steps=12", "--set=teacher.deadline=120")
        replacing.join()
        assert ended.code == 0, ended.err
        assert command("train", recipe, where, "--set=training.steps=12", "--set=name=calm").code == 0
    finally:
        for server in servers:
            server.end()
    assert [line["step"] for line in metrics(run)] == list(range(1, 13))
    assert sum(line.get("teacher_faults_refused", 0) for line in metrics(run)) > 0
    assert equal(weights(run), weights(tmp_path / "runs" / "calm"))


def test_a_server_that_changes_its_weights_during_a_run_teaches_nothing_more(command, recipe, server, tmp_path):
    run = tmp_path / "runs" / "run"
    changing = after_steps(run, 3, lambda: server.tell("model", STUDENT))
    try:
        ended = command("train", recipe, "--set=training.steps=1000", "--set=teacher.deadline=0.5")
        changing.join()
    finally:
        server.tell("model", TEACHER)
    assert ended.code == 3
    assert "it has other weights than at the run's start" in ended.err
    assert sorted((run / "checkpoints").iterdir())[-1].name == f"step-{len(metrics(run)):06d}"


def test_a_key_that_a_server_repeats_is_not_shown(command, recipe, server):
    server.tell("faults", ["rejected!"])
    ended = command("train", recipe)
    assert ended.code == 3
    assert "401" in ended.err
    assert "[key]" in ended.err
    assert KEY not in ended.out + ended.err


def test_other_weights_after_a_stop_are_found_by_the_resume(command, recipe, server):
    server.tell("faults", [""] * 9 + ["server_error!"])
    assert command("train", recipe, "--set=teacher.deadline=0.3").code == 3
    server.tell("faults", [])
    server.tell("model", STUDENT)
    try:
        ended = command("train", recipe, "--set=teacher.deadline=0.3", "--resume")
        assert ended.code == 3
        assert "other weights" in ended.err
    finally:
        server.tell("model", TEACHER)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["objective.estimator=full"], "write estimator: sampled"),
        (["objective.estimator=top_k"], "candidates: teacher"),
        (["objective={divergence: forward_kl}"], "write estimator: sampled"),
        (
            ["objective={estimator: top_k, candidates: teacher, stop: class}", "rollout.stop=[0]"],
            "log-probs of all ends",
        ),
        (["rollout.temperature=0.7"], "temperature 1"),
        (["teacher.model=other"], "serves tiny, not 'other'"),
        (["teacher.api_key_env=NOT_SET_9431"], "NOT_SET_9431, which is not set"),
        (["rollout.full_tokens=600"], "serve with --max-model-len"),
        (["evaluation={task: {source: addition}, measure: divergence}"], "one local teacher"),
    ],
)
def test_what_a_server_cannot_give_is_refused_before_the_run(recipe, settings, sentence):
    with pytest.raises(RecipeError, match=sentence):
        list(preflight(build(Recipe.load(recipe, settings), progress=Progress(quiet=True))))


def test_a_key_that_would_go_to_another_machine_unencrypted_is_pointed_out(recipe, server):
    def looks(*settings):
        return "\n".join(preflight(build(Recipe.load(recipe, settings), progress=Progress(quiet=True))))

    assert "unencrypted" not in looks()
    other = f"http://0.0.0.0:{server.port}"  # this machine by a name that is not its loopback
    assert f"its key goes to {other} unencrypted" in looks(f"teacher.server={other}")
    assert "unencrypted" not in looks(f"teacher.server={other}", "teacher.api_key_env=null")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl, which is not installed")
def test_a_certificate_that_nobody_vouches_for_gets_no_request(recipe, tmp_path):
    asked = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)

    certificate = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=127.0.0.1",
    ]
    subprocess.run(
        ["openssl", *certificate, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with HTTPServer(("127.0.0.1", 0), Answers) as listening:
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        address = f"https://127.0.0.1:{listening.server_port}"
        settings = [f"teacher.server={address}", "teacher.deadline=0.2"]
        with pytest.raises(TeacherUnavailable, match="certificate verify failed"):
            list(preflight(build(Recipe.load(recipe, settings), progress=Progress(quiet=True))))
        listening.shutdown()
    assert not asked


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "http://me:secret@host", "ftp://host", []])
def test_addresses_that_cannot_be_are_refused(recipe, address):
    with pytest.raises(RecipeError, match=r"teacher\.server") as raised:
        Recipe.load(recipe, [f"teacher.server={json.dumps(address)}"])
    assert "secret" not in str(raised.value)


def test_a_plan_measures_a_teacher_that_computes_elsewhere(recipe):
    plan = make_plan(Recipe.load(recipe), budget_seconds=5)
    assert plan.seconds > 0
    assert plan.full.seconds > plan.seconds


def test_a_given_remote_teacher_must_have_the_weights_that_the_checkpoint_names(recipe, server, tmp_path):
    def given():
        settings = Recipe.load(recipe, ["teacher.deadline=0.3"])
        assert isinstance(settings.teacher, ServerSource)
        return RemoteTeacher(settings.teacher, settings.objective, load(STUDENT).head.vocabulary)

    quiet = Progress(quiet=True)
    Distiller.of(Recipe.load(recipe, ["training.steps=2"]), teacher=given(), progress=quiet).train()
    server.tell("model", STUDENT)
    try:
        more = Recipe.load(recipe, ["training.steps=4"])
        resumed = Distiller.of(more, resume=True, teacher=given(), progress=quiet)
        with pytest.raises(TeacherUnavailable, match="it has other weights than at the run's start"):
            resumed.train()
    finally:
        server.tell("model", TEACHER)
