"""Shows on a terminal how far a pass over many rows has come."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")

EVERY = 1024  # items between two updates


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Passes items on. The first process shows their count on a terminal, and removes the line at the end."""
    console = Console(stderr=True)
    if not console.is_terminal or (torch.distributed.is_initialized() and torch.distributed.get_rank() > 0):
        yield from items
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        line = bar.add_task(what, total=total)
        for number, item in enumerate(items, 1):
            yield item
            if number % EVERY == 0:
                bar.update(line, completed=number)
