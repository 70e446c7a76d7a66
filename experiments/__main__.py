"""Runs the paper's experiments, and writes a page on each: what it claims, what was found, a verdict.

`python -m experiments make-quickstart DIR` makes the quickstart's teacher and student instead, from a seed.
Both run from the root of a checkout.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hopd.errors import nearest

MAKE_QUICKSTART = "make-quickstart"
LOG = partial(print, flush=True)


def main(arguments: Sequence[str]) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if arguments[:1] == [MAKE_QUICKSTART]:
        make_quickstart(arguments[1:])
    else:
        reproduce(arguments)


def reproduce(arguments: Sequence[str]) -> None:
    """Runs what is missing of the named experiments; of all, if none is named."""
    from experiments.catalogue import EXPERIMENTS
    from experiments.run import reproduce as run

    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Run the paper's experiments, and write a page on each: its claim, what was found, a verdict.",
        epilog=f"Experiments: {', '.join(EXPERIMENTS)}. Or make the quickstart's models: {MAKE_QUICKSTART} DIR.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="Run these experiments; all of them by default.")
    parser.add_argument(
        "--work",
        metavar="DIR",
        type=Path,
        default=Path("runs/reproduce"),
        help="Keep results in this folder, and do not run again what is there (default: %(default)s).",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("docs/results"),
        help="Write pages and figures to this folder (default: %(default)s).",
    )
    parser.add_argument("--seeds", metavar="N", type=_count, help="Run N seeds; by default as many as each page needs.")
    wanted = parser.parse_args(arguments)
    for name in wanted.names:
        if name not in EXPERIMENTS:
            parser.error(
                f"there is no experiment {name!r}{nearest(name, EXPERIMENTS)}; there are {', '.join(EXPERIMENTS)}"
            )
    chosen = [EXPERIMENTS[name] for name in wanted.names or EXPERIMENTS]
    for page in run(chosen, wanted.work, wanted.out, wanted.seeds, log=LOG):
        print(page)


def make_quickstart(arguments: Sequence[str]) -> None:
    """Makes the quickstart's teacher and student again."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments {MAKE_QUICKSTART}",
        description="Make the quickstart's teacher and student again, from a seed.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="Write the two models to this folder.")
    parser.add_argument(
        "--seed", type=int, default=0, help="Draw weights and training data from this seed (default: %(default)s)."
    )
    wanted = parser.parse_args(arguments)
    from experiments.quickstart.make import make

    make(wanted.directory, wanted.seed, log=LOG)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, such as 3; got {text!r}")
    return int(text)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
