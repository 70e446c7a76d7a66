"""What an experiment is: variants that run once a seed, and a page made of what they gave."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Verdict = Literal["holds", "holds in part", "does not hold"]
Results = Mapping[str, Sequence[dict[str, Any]]]
"""Of each variant, one result a seed; each has its `seconds`."""


class Experiment(Protocol):
    name: str
    seeds: int

    def prepare(self, seed: int, work: Path) -> None:
        """What the variants of a seed share, into the folder `work`: policies that know their own task, say. The first
        seed's has ended before the others' begin, so it can make in `work.parent` what all seeds share."""
        ...

    def variants(self) -> Sequence[str]: ...

    def run(self, variant: str, seed: int, work: Path) -> dict[str, Any]:
        """One result, which JSON can hold."""
        ...

    def page(self, results: Results, out: Path) -> "Page":
        """The figure goes to `out`."""
        ...


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, and what was found."""

    claim: str
    found: str
    verdict: Verdict


@dataclass(frozen=True)
class Page:
    """`setting` says what was run and what we chose; `tables` are in Markdown; `figures` are files beside the page."""

    title: str
    source: str
    setting: str
    tables: Sequence[str]
    figures: Mapping[str, str]
    claims: Sequence[Claim]
    remarks: str = ""

    def markdown(self, name: str, seeds: int, seconds: float, machine: str) -> str:
        lines = [f"# {self.title}", "", f"{self.source}. Run it: `python -m experiments {name}`.", "", self.setting, ""]
        verdicts = [[claim.claim, claim.found, f"**{claim.verdict}**"] for claim in self.claims]
        lines += ["## Verdict", "", table(["the paper's claim", "here", "verdict"], verdicts), ""]
        if self.remarks:
            lines += [self.remarks, ""]
        lines += ["## Figures and numbers", ""]
        for file, caption in self.figures.items():
            lines += [f"![{caption}]({file})", "", f"*{caption}*", ""]
        for text in self.tables:
            lines += [text, ""]
        lines += [
            f"{seeds} seeds, {seconds / 60:.0f} core-minutes in all on {machine}. The numbers of every run: "
            f"[{name}.json]({name}.json)."
        ]
        return "\n".join(lines) + "\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
