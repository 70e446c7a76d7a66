"""Samples rollouts and takes weights as a vLLM server does, and fails on demand.

It extends the teachers' scripted server: faults apply to /inference/v1/generate, and its log has the body of each such
request in place of the key. POST /refuse with a number makes it answer that many of the next requests for new weights
with 503.
"""

import json
import sys
from http.server import ThreadingHTTPServer
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.teacher import scripted_server as teacher
from tests.teacher.scripted_server import lock, state

GENERATE = "/inference/v1/generate"


@torch.no_grad()
def sample(ids, params):
    """Returns token ids and their log-probs, drawn by a generator of the request's own."""
    generator = torch.Generator().manual_seed(params["seed"])
    prompt, made, log_probs = list(ids), list[int](), list[float]()
    while len(made) < params["max_tokens"] and not (made and made[-1] in params["stop_token_ids"]):
        row = state["model"](input_ids=torch.tensor([prompt + made])).logits[0, -1].log_softmax(-1)
        made.append(int(torch.multinomial(row.exp(), 1, generator=generator)))
        log_probs.append(float(row[made[-1]]))
    return made, log_probs


class Handler(teacher.Handler):
    def do_GET(self):  # noqa: N802
        if self.path == "/weight_info":
            return self.reply({"weight_version": state["version"]})
        super().do_GET()

    def do_POST(self):  # noqa: N802
        if self.path not in (GENERATE, "/collective_rpc", "/update_weight_version", "/reset_prefix_cache", "/refuse"):
            return super().do_POST()
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or "null")
        if self.path == GENERATE:
            return self.generate(body)
        with lock:
            if self.path == "/refuse":
                state["refused"] = body
            elif self.path == "/collective_rpc":
                if state["refused"]:
                    state["refused"] -= 1
                    return self.reply({"error": "busy with other things"}, 503)
                weights = load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
                state["model"].load_state_dict(weights)
            elif self.path == "/update_weight_version":
                state["version"] = body["new_version"]
        self.reply({"success": True})

    def generate(self, body):
        ids, params = body["token_ids"], body["sampling_params"]
        with lock:  # one at a time, so that an answer does not depend on other requests
            if params.get("prompt_logprobs") is not None:
                return self.reply({"prompt_logprobs": teacher.score(ids, 0), "choices": []})
            kind = self.fault()
            state["log"].append([self.path, kind, body])
            made, log_probs = sample(ids, params)
            version = "another" if kind == "other_weights" else state["version"]
        if kind in ("dropped", "timeout", "busy", "server_error", "rejected", "html"):
            return self.answer(kind, [])
        if kind == "short":
            log_probs = log_probs[:-1]
        elif kind == "ended":
            made, log_probs = made[:1], log_probs[:1]
        elif kind == "echoed":
            made, log_probs = ids + made, [-1.0] * len(ids) + log_probs
        elif kind == "not_finite":
            log_probs[-1] = float("nan")
        elif kind == "shifted":
            log_probs = [log_prob - 0.05 for log_prob in log_probs]
        content = [{"token_id": id, "logprob": log_prob} for id, log_prob in zip(made, log_probs, strict=False)]
        choice = {
            "token_ids": made,
            "logprobs": {"content": content},
            "weight_versions": [{"version": version, "start": 0, "end": len(made)}],
        }
        body = json.dumps({"choices": [choice]}).encode()
        self.send(body[:-40] if kind == "malformed" else body, 200, {})


if __name__ == "__main__":
    teacher.load(sys.argv[1])
    state["version"], state["refused"] = "default", 0
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
