"""Describes one evaluation during a run, with the training cost up to it: a line of `evaluations.jsonl`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hopd.evaluation.accuracy import Accuracy
from hopd.evaluation.divergence import Divergence


@dataclass(frozen=True)
class Evaluation:
    """Holds an evaluation after `step` complete steps and what those steps cost in FLOPs, seconds, tokens and serial
    tokens.

    `score` is greater for a better student. `measured` has the fields of `Accuracy` or `Divergence` by name, and
    `summary` is one line for a person.
    """

    step: int
    score: float
    training_flops: float
    training_seconds: float
    generated_tokens: int
    trained_tokens: int
    measured: Mapping[str, Any]
    summary: str = ""
    serial_tokens: int = 0  # lines of hopd before 0.3 have none

    @classmethod
    def of(cls, step: int, measure: Accuracy | Divergence, cost: Mapping[str, float]) -> "Evaluation":
        """Combines a measure with what the weights `cost`: the fields of its costs, by name."""
        return cls(
            step=step,
            score=measure.score,
            training_flops=cost["training_flops"],
            training_seconds=cost["training_seconds"],
            generated_tokens=int(cost["generated_tokens"]),
            trained_tokens=int(cost["trained_tokens"]),
            measured=measure.as_dict(),
            summary=measure.summary(),
            serial_tokens=int(cost["serial_tokens"]),
        )

    def line(self) -> dict[str, Any]:
        """Returns the content of a line of `evaluations.jsonl`, with the measured fields next to the others."""
        content = asdict(self)
        del content["measured"], content["summary"]
        return content | dict(self.measured)

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> "Evaluation":
        """Reads what `line` returned; `summary` is not in it."""
        own = set(cls.__dataclass_fields__) - {"measured", "summary"}
        known = {name: line[name] for name in own if name in line}
        return cls(**known, measured={k: v for k, v in line.items() if k not in own})
