"""Results on disk: JSON with every turn, and one page with the table and a figure."""

import json
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.machine import Machine
from benchmarks.pair import Measured
from benchmarks.rows import Row

Rows = dict[str, dict[str, Any]]


class Report:
    """`results.json` keeps rows by machine and name: a row that is measured anew takes the place of the old one."""

    def __init__(self, directory: Path, machine: Machine):
        self.directory, self.machine = directory, machine
        self.path = directory / "results.json"
        self.machines: dict[str, Rows] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.rows = self.machines.setdefault(machine.name, {})

    def add(self, row: Row, measured: Measured, work: str) -> str:
        low, high = (ratio / row.work for ratio in measured.spread)
        result = {
            "ratio": measured.ratio / row.work,
            "lowest": low,
            "highest": high,
            "seconds_ours": measured.seconds("ours"),
            "seconds_theirs": measured.seconds("theirs"),
            "memory_ratio": measured.last("ours", "peak_bytes") / measured.last("theirs", "peak_bytes"),
            "memory_ours": measured.last("ours", "peak_bytes"),
            "work": work,
            "date": date.today().isoformat(),
            "machine": asdict(self.machine),
            "turns": {"ours": measured.ours, "theirs": measured.theirs},
        }
        self.rows[row.name] = result
        self.write()
        return f"{row.name}: {_line(result)} ({work})"

    def write(self) -> None:
        self.directory.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(self.machines, indent=1) + "\n")
        self._draw()
        (self.directory / "README.md").write_text(self._page())

    def _page(self) -> str:
        lines = [
            "# Benchmarks",
            "",
            "Written by `make bench`. Each row is a pair of processes that took turns on one machine; the ratio is the "
            "median of the other's seconds over the median of hopd's, for the same work (above 1: hopd is faster), "
            "with the lowest and highest of single turns. Rows of the horizon: how much faster a step is than the full "
            "one, over how much less it processes (1: a step costs as much as its tokens). Memory is the peak of the "
            "whole process, hopd's over the other's.",
            "",
            f"![ratios](ratios.png) On {self.machine.name}.",
            "",
        ]
        for machine, rows in self.machines.items():
            last = list(rows.values())[-1]
            lines += [f"## {machine}", "", f"On {last['date']}: {Machine(**last['machine']).sentence()}.", ""]
            lines += [
                "| against | ratio | lowest to highest | turns | hopd | other | memory | work |",
                "|---|---|---|---|---|---|---|---|",
            ]
            for name, r in rows.items():
                lines.append(
                    f"| {name} | {r['ratio']:.2f} | {r['lowest']:.2f} to {r['highest']:.2f} | "
                    f"{len(r['turns']['ours'])} | {r['seconds_ours']:.2f} s | {r['seconds_theirs']:.2f} s | "
                    f"{r['memory_ratio']:.2f} | {r['work']} |"
                )
            lines.append("")
        return "\n".join(lines)

    def _draw(self) -> None:
        names = list(self.rows)
        figure, axes = plt.subplots(figsize=(9, 0.6 + 0.4 * len(names)))
        for place, name in enumerate(names):
            row = self.rows[name]
            axes.plot([row["lowest"], row["highest"]], [place, place], color="0.6", linewidth=3)
            axes.plot(row["ratio"], place, "o", color="C0")
        axes.axvline(1.0, color="0.3", linewidth=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("seconds of the other / seconds of hopd")
        figure.savefig(self.directory / "ratios.png", dpi=120, bbox_inches="tight")
        plt.close(figure)


def _line(result: dict[str, Any]) -> str:
    return (
        f"{result['ratio']:.2f} ({result['lowest']:.2f} to {result['highest']:.2f}); {result['seconds_ours']:.2f} s "
        f"here, {result['seconds_theirs']:.2f} s there; memory {result['memory_ratio']:.2f}"
    )
