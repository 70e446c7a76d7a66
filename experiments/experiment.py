"""Defines an experiment: variants that run once for each seed, and a page that is written from their results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Verdict = Literal["holds", "holds in part", "does not hold"]
Results = Mapping[str, Sequence[dict[str, Any]]]
"""Maps each variant to its results, one for each seed, with the `seconds` that it took."""


class Experiment(Protocol):
    name: str
    seeds: int

    def prepare(self, seed: int, work: Path) -> None:
        """Writes what all variants of a seed share to the folder `work`, such as policies that know their own task.

        The first seed is prepared before the others, so it can write what all seeds share to `work.parent`.
        """
        ...

    def variants(self) -> Sequence[str]:
        """Names what is compared; a name has no `/`, since it names a file."""
        ...

    def run(self, variant: str, seed: int, work: Path) -> dict[str, Any]:
        """Runs one variant with one seed, and returns what the page needs, as JSON can hold it."""
        ...

    def page(self, results: Results, out: Path) -> "Page":
        """Draws the figures into `out`, and returns the page."""
        ...


@dataclass(frozen=True)
class Claim:
    """Sets a claim of the paper beside what was found here."""

    claim: str
    found: str
    verdict: Verdict


@dataclass(frozen=True)
class Page:
    """Holds the parts of a page. `setting` says what was run and what we chose, `tables` are in Markdown, and `figures`
    maps files next to the page to their captions."""

    title: str
    source: str
    setting: str
    tables: Sequence[str]
    figures: Mapping[str, str]
    claims: Sequence[Claim]
    remarks: str = ""

    def markdown(self, name: str, seeds: int, seconds: float, machine: str) -> str:
        """Writes the page of the experiment `name`, which took `seconds` of processor time for all seeds."""
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
    """Writes a table in Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
