"""Locks the directory of a run, so that no two trainings write to one. The lock dies with its process."""

import errno
import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hopd.errors import RecipeError
from hopd.processes import Processes
from hopd.run.directory import LOCK, RunDirectory
from hopd.run.files import written

NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}

_holders: dict[Path, int] = {}  # of this process, by the thread
_descriptors: set[int] = set()


@contextmanager
def locked(directory: RunDirectory, processes: Processes) -> Iterator[list[str]]:
    """Holds the directory until the block ends, and yields notes for a person. The first process does so for all; in
    one thread, blocks may nest. What it made and nothing was written to is removed.

    Raises, on all processes, `RecipeError` if another process holds it, and `CheckpointError` if it cannot be made.
    """
    place = directory.path.absolute()
    if _holders.get(place) == threading.get_ident():
        yield []
        return
    notes: list[str] = []
    descriptor, made = None, list[Path]()
    with processes.together():
        if processes.is_first:
            directory.check_place()
            made = [path for path in (place, *place.parents) if not path.exists()]
            with written(directory.path):
                place.mkdir(parents=True, exist_ok=True)
                descriptor = _take(directory.path)
            if descriptor is None:
                notes.append(
                    f"{directory.path} lies on a file system without locks: see to it that no second hopd trains there"
                )
    _holders[place] = threading.get_ident()
    try:
        yield notes
    finally:
        del _holders[place]
        if descriptor is not None:
            (place / LOCK).unlink(missing_ok=True)  # before it is free: nobody finds it unlocked
            _descriptors.discard(descriptor)
            os.close(descriptor)
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _take(directory: Path) -> int | None:
    """Returns the descriptor that holds the lock, or None where the file system has no locks. Raises `RecipeError` if
    another has it."""
    path = directory / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            current = path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise RecipeError(
                f"{directory} is being trained by {holder}; wait until it ends or stop it, then continue with "
                "resume=True, or give this run another name (name=...)"
            ) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno in NO_LOCKS:
                path.unlink(missing_ok=True)
                return None
            raise
        if current:
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            _descriptors.add(descriptor)
            return descriptor
        os.close(descriptor)  # its holder has just removed it


def _close_in_child() -> None:
    """Drops what a forked child has inherited: it may outlive the training, and would hold its lock."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()
    _holders.clear()


os.register_at_fork(after_in_child=_close_in_child)
