"""Defines errors that a person can act on. The command line prints the sentence and exits with `exit_code`."""

import difflib
import signal
from collections.abc import Iterable
from pathlib import Path

# Sentences name arguments of Python; at the command line a person has these options instead.
OPTIONS = {
    "resume=True": "--resume",
    "accept_changes=True": "--accept-changes",
    "(name=...)": "(--set name=...)",
    "out=...": "--out",
}


LONGEST = 400  # characters of a sentence
SHOWN = 80  # characters of a value in it
DESCRIBED = 160  # of what another program's error says


class HopdError(Exception):
    """Says what was wrong, what was expected, and what to write instead."""

    exit_code = 2

    def __str__(self) -> str:
        """Returns the sentence; of one that is too long, because it quotes much, the middle is left out."""
        return shortened(super().__str__(), LONGEST)


class RecipeError(HopdError):
    """The recipe, or a value for one, is not usable."""


class HorizonError(RecipeError):
    """A controller decides on a horizon that is impossible."""


class ModelError(HopdError):
    """A model cannot be loaded, or is not what distillation needs."""


class TaskError(HopdError):
    """Prompts or answers are not usable."""


class CheckpointError(HopdError):
    """A checkpoint cannot be written or read."""


class ServerUnavailable(HopdError):
    """No server has answered within the deadline: complete steps are saved, and `--resume` continues."""

    exit_code = 3


class WorkersLost(HopdError):
    """Ray's workers were lost more often than they may be restarted."""

    exit_code = 3


class TeacherUnavailable(ServerUnavailable):
    """No server of a teacher has scored."""


class EngineError(HopdError):
    """A rollout engine returned what the student did not sample: from other weights, or incomplete."""


class NonFiniteLoss(HopdError):
    """The loss is NaN or infinite; the message names the rollout."""


class Interrupted(BaseException):
    """SIGTERM or Ctrl-C arrived; it is raised where stopping is harmless. No `Exception`, so nothing takes it for an
    error."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


def with_options(sentence: str) -> str:
    """Returns a sentence with the command line's options in place of Python's arguments."""
    for argument, option in OPTIONS.items():
        sentence = sentence.replace(argument, option)
    return sentence


def shown(value: object, width: int = SHOWN, quoted: bool = True) -> str:
    """Returns a value as a sentence quotes it: as Python writes it, or without quotation marks, and shortened."""
    if isinstance(value, int) and value.bit_length() > 4 * width:
        return f"a number of about {value.bit_length() * 3 // 10:,} digits"  # Python writes none of thousands
    try:
        text = value if not quoted and isinstance(value, str) and value.isprintable() else repr(value)
    except (ValueError, RecursionError):  # such a number inside
        text = f"a {type(value).__name__}"
    return shortened(text, width)


def shortened(text: str, width: int) -> str:
    """Returns a text of at most `width` characters: of a longer one, its beginning and its end."""
    end = width // 3
    return text if len(text) <= width else f"{text[: width - end - 3]} … {text[-end:]}"


def described(error: BaseException) -> str:
    """Names an error by its type and, on one line and shortened, by what it says."""
    text = " ".join(str(error).split())
    return shortened(f"{type(error).__name__}: {text}" if text else type(error).__name__, DESCRIBED)


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ` (did you mean 'ratio'?)` for the closest known word, or nothing."""
    close = difflib.get_close_matches(word[:SHOWN], list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def missing_target(path: Path) -> str | None:
    """Returns a sentence on a link whose target does not exist, and None for anything else."""
    if path.is_symlink() and not path.exists():
        return f"{path} is a link to {path.readlink()}, which does not exist; copy the file itself (cp -L)"
    return None
