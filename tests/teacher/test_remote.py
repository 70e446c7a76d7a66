"""A teacher behind a server on loopback: its scores, and every fault that a server can have."""

import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hopd import Distiller, Recipe
from hopd.build import build
from hopd.errors import RecipeError, TeacherUnavailable
from hopd.forecast.preflight import preflight
from hopd.model import load
from hopd.objective import Sampled, TopK
from hopd.recipe import ServerSource
from hopd.rollout import NativeEngine, Prompt, Sampling, pack
from hopd.run.progress import Progress
from hopd.teacher import LocalTeacher, ServerTeacher

STUDENT, TEACHER = (str(files("hopd") / "quickstart" / name) for name in ("student", "teacher"))
KEY = "sk-never-to-be-seen-9431"
TOP_K = TopK(k=4, candidates="teacher")
BOUND = 1e-4  # nats: the same weights in float32, in batches of other shapes


class Scripted:
    """The process, and what one tells it."""

    script = Path(__file__).with_name("scripted_server.py")

    def __init__(self, model=TEACHER, port=0):
        self.process = subprocess.Popen(
            [sys.executable, str(self.script), model, str(port)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"HOPD_TEST_KEY": KEY},
        )
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def tell(self, path, content):
        request = urllib.request.Request(
            f"{self.url}/{path}", json.dumps(content).encode(), {"content-type": "application/json"}
        )
        urllib.request.urlopen(request).read()

    def log(self):
        return json.load(urllib.request.urlopen(f"{self.url}/log"))

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def process_of_server():
    server = Scripted()
    yield server
    server.end()


@pytest.fixture
def server(process_of_server):
    process_of_server.tell("faults", [])
    process_of_server.tell("limit", 512)
    return process_of_server


@pytest.fixture(scope="module")
def batch():
    student = load(STUDENT)
    ids = [student.tokenizer(text).input_ids for text in ("041+185*c:", "7+2*c:")]
    prompts = [Prompt(n, torch.tensor(i)) for n, i in enumerate(ids)]
    made = NativeEngine(student).sample(prompts, 30, Sampling(), 0)
    (batch,) = pack(made, [(0, made[0].length), (3, 20)], 10_000)
    return batch


@pytest.fixture(scope="module")
def local(batch):
    signal = LocalTeacher(load(TEACHER)).score(batch)
    every = slice(0, len(batch.at.tokens))
    return signal.log_prob(every, batch.at.tokens), *signal.top_k(every, 4)


def source(*servers, **settings):
    return ServerSource(
        server=[s if isinstance(s, str) else s.url for s in servers],
        model="tiny",
        **{"backoff": 0.01, "timeout": 1.0, "deadline": 20.0, **settings},
    )


def teacher(*servers, objective=TOP_K, **settings):
    return ServerTeacher(source(*servers, **settings), objective, load(STUDENT).head.vocabulary)


def check(served, batch, local):
    signal = served.score(batch)
    every = slice(0, len(batch.at.tokens))
    torch.testing.assert_close(signal.log_prob(every, batch.at.tokens), local[0], atol=BOUND, rtol=0)
    if served.top:
        ids, likely = signal.top_k(every, 4)
        assert (ids == local[1]).float().mean() > 0.95  # two tokens that are as likely may change places
        torch.testing.assert_close(likely, local[2], atol=BOUND, rtol=0)


@pytest.mark.parametrize("objective", [Sampled(), TOP_K])
def test_a_servers_scores_are_the_local_teachers(server, batch, local, objective):
    check(teacher(server, objective=objective), batch, local)


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
        ("null", "not_finite"),
        ("short", "wrong_length"),
        ("fewer", "wrong_length"),
        ("other_weights", "other_weights"),
    ],
)
def test_a_fault_is_counted_and_asked_again(server, batch, local, kind, counted):
    served = teacher(server, concurrency=1)
    check(served, batch, local)
    served.fetch([])
    server.tell("faults", [kind, kind])
    check(served, batch, local)
    assert dict(served.client.losses.faults) == {counted: 2}
    assert served.client.losses.retries == 2
    assert served.client.losses.seconds > 0


@pytest.mark.parametrize("kind", ["dropped", "server_error", "malformed", "not_finite", "short", "later", "rejected"])
def test_a_fault_that_stays_is_an_error_never_a_score(server, batch, kind):
    server.tell("faults", [f"{kind}!"])
    with pytest.raises(TeacherUnavailable, match=f"at {server.url}"):
        teacher(server, deadline=0.2).score(batch)


def test_nobody_listens(batch):
    with pytest.raises(TeacherUnavailable, match="no connection"):
        teacher("http://127.0.0.1:9", deadline=0.2).score(batch)


def test_of_several_servers_the_others_go_on(server, batch, local):
    served = teacher("http://127.0.0.1:9", server)
    check(served, batch, local)
    assert set(served.client.losses.faults) == {"refused"}
    other = Scripted()
    try:
        both = teacher(server, other, sequences=1)
        check(both, batch, local)
        assert server.log()
        assert other.log()
    finally:
        other.end()
    both.fetch([])
    check(both, batch, local)


SERVED = """
name: served
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
    path = tmp_path / "served.yaml"
    path.write_text(SERVED.format(output=tmp_path / "runs", server=server.url))
    return path


def weights(run):
    return load_file(sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors")


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def equal(mine, theirs):
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_server_that_dies_stops_the_run_with_3_and_a_resume_ends_at_the_same_bits(
    command, recipe, server, tmp_path, monkeypatch
):
    assert command("train", recipe, "--set=name=whole").code == 0
    server.tell("faults", [""] * 9 + ["server_error!"])
    ended = command("train", recipe, "--set=teacher.deadline=0.3")
    assert ended.code == 3, ended.err
    assert "has not scored" in ended.err
    run = tmp_path / "runs" / "served"
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


def after_steps(run, steps, act):
    """Does it, in a thread, once so many steps of the run are complete."""

    def wait():
        while not (run / "metrics.jsonl").exists() or len(metrics(run)) < steps:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_server_that_is_killed_and_comes_back_during_a_run_costs_time_alone(command, recipe, tmp_path):
    servers = [Scripted()]
    run, where = tmp_path / "runs" / "served", f"--set=teacher.server={servers[0].url}"

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
    run = tmp_path / "runs" / "served"
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
