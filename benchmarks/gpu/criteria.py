"""What a run on a GPU must show, each criterion as a function of the lines."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Line = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    criterion: str
    measured: str
    passed: bool


def verdicts(lines: Sequence[Line]) -> list[Verdict]:
    """Returns those criteria for which something was measured."""
    return [*_parity(lines), *_processes(lines), *_decoding(lines), *_updating(lines)]


def _of(lines: Iterable[Line], stage: str) -> list[Line]:
    return [line for line in lines if line["stage"] == stage and not {"failed", "skipped"} & set(line)]


def _parity(lines: Sequence[Line]) -> Iterator[Verdict]:
    for line in _of(lines, "parity"):
        same, mean, most = (line[key] for key in ("greedy_same", "log_prob_apart_mean", "log_prob_apart_max"))
        if line["precision"] == "float32":
            criterion = "fp32: greedy rollouts are generate()'s; log-probs within 1e-3 of a plain forward pass"
            yield Verdict(criterion, f"{100 * same:.0f} %; {most:.1e} at most", same == 1 and most < 1e-3)
        else:
            yield Verdict("bf16: log-probs within 0.02 nats of a plain pass, in the mean", f"{mean:.1e}", mean < 0.02)


def _processes(lines: Sequence[Line]) -> Iterator[Verdict]:
    for line in _of(lines, "command line"):
        yield Verdict(f"{line['name']}: exit code 0", str(line["code"]), line["code"] == 0)


def _decoding(lines: Sequence[Line]) -> Iterator[Verdict]:
    at = {(line["decoder"], line["rows"], line["context"]): line for line in _of(lines, "decode")}
    for (decoder, rows, context), ours in at.items():
        plain = at.get(("the model's modules", rows, context))
        if decoder != "as it is" or plain is None:
            continue
        what, mine, other = f"decoding {rows} × {context}", ours["mismatch"], plain["mismatch"]
        criterion = f"{what}: no further from the learner than the model's modules (a quarter more at most)"
        yield Verdict(criterion, f"{mine:.4f} against {other:.4f} nats", mine <= 1.25 * other)
        mine, other = ours["ms_a_token"], plain["ms_a_token"]
        if mine > 0:  # noise of the prefill can exceed a hundred tokens
            figures = f"{mine:.1f} against {other:.1f} ms"
            yield Verdict(f"{what}: as fast as the model's modules", figures, mine <= other)
    for line in _of(lines, "generate"):
        same = at.get(("as it is", line["rows"], line["context"]))
        if same is not None and same["ms_a_token"] > 0:
            criterion = f"decoding {line['rows']} × {line['context']}: no slower than generate()"
            figures = f"{same['ms_a_token']:.1f} against {line['ms_a_token']:.1f} ms"
            yield Verdict(criterion, figures, same["ms_a_token"] <= line["ms_a_token"])
    for line in _of(lines, "profile"):
        if line["decoder"] == "as it is":
            waits = line["cudaStreamSynchronize"]
            yield Verdict("the CPU waits for the GPU at most 0.1 times a token", f"{waits:.2f}", waits <= 0.1)


def _updating(lines: Sequence[Line]) -> Iterator[Verdict]:
    for line in _of(lines, "update"):
        rate, what = line["backbone_tflops"], f"update, {line['rows']} × {line['response']}, {line['objective']}"
        yield Verdict(f"{what}: at least 300 TFLOP/s", f"{rate:.0f}", rate >= 300)
    for line in _of(lines, "optimizer state"):
        extra = line["extra_gb"]
        yield Verdict("a copy of the optimiser's state takes less than 1 GB of the GPU", f"{extra:.1f} GB", extra < 1)
