"""One evaluation in the course of a run: its measure and what it cost to get there, a line of `evaluations.jsonl`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hopd.evaluation.accuracy import Accuracy
from hopd.evaluation.divergence import Divergence


@dataclass(frozen=True)
class Evaluation:
    """After `step` complete steps, which cost `training_flops`, `training_seconds` and the tokens: a `score` (greater
    is better), a sentence, and `measured`, what `Accuracy` or `Divergence` found, by name."""

    step: int
    score: float
    training_flops: float
    training_seconds: float
    generated_tokens: int
    trained_tokens: int
    measured: Mapping[str, Any]
    summary: str = ""

    @classmethod
    def of(cls, step: int, measure: Accuracy | Divergence, cost: Mapping[str, float]) -> "Evaluation":
        """Puts a measure beside what the weights `cost`: the four values above, by name."""
        return cls(step, measure.score, **cost, measured=measure.as_dict(), summary=measure.summary())  # type: ignore[arg-type]

    def line(self) -> dict[str, Any]:
        """Returns what `evaluations.jsonl` holds: all names side by side."""
        content = asdict(self)
        del content["measured"], content["summary"]
        return content | dict(self.measured)

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> "Evaluation":
        """Reads what `line` gave."""
        own = set(cls.__dataclass_fields__) - {"measured", "summary"}
        return cls(**{name: line[name] for name in own}, measured={k: v for k, v in line.items() if k not in own})
