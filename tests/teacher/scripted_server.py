"""Serves one model as vLLM does, and fails on demand: `python scripted_server.py MODEL [PORT]` prints its port.

POST /faults takes a list of kinds: each scoring request uses up one ("" answers well), and a kind that ends in `!`
stays for ever. POST /random {"count", "share", "seed"} spreads `count` faults over the next requests. POST /model loads
other weights. GET /log returns each request's path, kind, and whether it had the key HOPD_TEST_KEY.
"""

import json
import os
import random
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

KINDS = [
    "dropped",
    "busy",
    "server_error",
    "malformed",
    "html",
    "not_finite",
    "null",
    "short",
    "fewer",
    "other_weights",
]
lock = threading.Lock()
state: dict[str, Any] = {"faults": [], "log": [], "random": None}


def load(path):
    torch.set_num_threads(1)
    state["model"] = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    state["tokenizer"] = AutoTokenizer.from_pretrained(path)


@torch.no_grad()
def score(ids, top):
    log_probs = state["model"](input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    places: list[dict[str, Any] | None] = [None]
    for at, token in enumerate(ids[1:]):
        wanted = [token, *log_probs[at].topk(top).indices.tolist()]
        places.append(
            {
                str(i): {"logprob": float(log_probs[at, i]), "rank": 1, "decoded_token": state["tokenizer"].decode([i])}
                for i in wanted
            }
        )
    return places


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/log":
            return self.reply(state["log"])
        self.reply({"data": [{"id": "tiny", "max_model_len": state.get("limit", 4096)}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/v1/completions":
            with lock:
                if self.path == "/faults":
                    state["faults"], state["random"] = body, None
                elif self.path == "/random":
                    state["random"] = [random.Random(body["seed"]), body["count"], body["share"]]
                elif self.path == "/model":
                    load(body)
                else:
                    state["limit"] = body
                state["log"] = []
            return self.reply("ok")
        with lock:  # one at a time, so that an answer does not depend on other requests
            kind = self.fault()
            keyed = self.headers.get("authorization") == f"Bearer {os.environ.get('HOPD_TEST_KEY')}"
            state["log"].append([self.path, kind, keyed])
            answered = [score(ids, body["prompt_logprobs"]) for ids in body["prompt"]]
        self.answer(kind, answered)

    def fault(self):
        if state["random"]:
            draw, left, share = state["random"]
            if left and draw.random() < share:
                state["random"][1] -= 1
                return draw.choice(KINDS)
            return ""
        if not state["faults"]:
            return ""
        return state["faults"][0].rstrip("!") if state["faults"][0].endswith("!") else state["faults"].pop(0)

    def answer(self, kind, answered):
        if kind == "dropped":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return self.connection.close()
        if kind == "timeout":
            return threading.Event().wait(3)
        if kind == "busy":
            return self.reply({"error": "busy"}, 429, {"retry-after": "0"})
        if kind == "later":
            return self.reply({"error": "busy"}, 429, {"retry-after": "3600"})
        if kind == "server_error":
            return self.reply({"error": "broken"}, 503)
        if kind == "rejected":
            return self.reply({"error": f"no such key: {self.headers.get('authorization')}"}, 401)
        if kind == "html":
            return self.send(b"<html>a proxy's page</html>", 200, {})
        if kind == "not_finite":
            answered[-1][-1] = {token: entry | {"logprob": float("nan")} for token, entry in answered[-1][-1].items()}
        elif kind.startswith("masks"):  # an id whose probability is 0, for whatever reason
            masked = kind.removeprefix("masks")
            for places in answered:
                for place in places[1:]:
                    if masked in place:
                        place[masked] = place[masked] | {"logprob": -9999.0}
        elif kind == "null":
            answered[-1][-1] = None
        elif kind == "short":
            answered[-1] = answered[-1][:-1]
        elif kind == "fewer":
            answered = answered[:-1]
        elif kind == "other_weights":
            answered = [
                [p and {t: e | {"logprob": e["logprob"] - 1.0} for t, e in p.items()} for p in places]
                for places in answered
            ]
        content = {"choices": [{"index": n, "prompt_logprobs": places} for n, places in enumerate(answered)]}
        if kind == "malformed":
            return self.send(json.dumps(content).encode()[:-40], 200, {})
        self.reply(content)

    def reply(self, content, status=200, headers=None):
        self.send(json.dumps(content).encode(), status, headers or {})

    def send(self, body, status, headers):
        self.send_response(status)
        for name, value in ({"content-length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    load(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
