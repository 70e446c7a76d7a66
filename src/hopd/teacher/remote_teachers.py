"""The remote teachers of a run: checked before it, asked before a step's first update, remembered in checkpoints."""

from collections.abc import Iterator, Sequence

from hopd.errors import ModelError, RecipeError, TeacherUnavailable
from hopd.model import LanguageModel
from hopd.processes import Processes
from hopd.remote import Fault, FaultKind, Losses
from hopd.rollout.batch import Batch
from hopd.teacher.remote import ServerTeacher
from hopd.teacher.teacher import RoutedTeacher, Teacher


class RemoteTeachers:
    """Holds them by name; the name of an only teacher is empty."""

    def __init__(self, teachers: dict[str, ServerTeacher], processes: Processes):
        self.teachers, self.processes = teachers, processes

    def fetch(self, batches: Sequence[Batch]) -> None:
        """Has the batches of a whole step scored. Nothing of the student has changed yet, so this is where a step can
        be given up: raises `TeacherUnavailable`, on all processes if on one."""
        failure: TeacherUnavailable | None = None
        for name, teacher in self.teachers.items():
            try:
                teacher.fetch([batch for batch in batches if not name or batch.teacher == name])
            except TeacherUnavailable as error:
                failure = error
                break
        if self.teachers:
            self.processes.agree(failure)

    def metrics(self) -> dict[str, float]:
        """Returns what faults cost since the last call."""
        if not self.teachers:
            return {}
        losses = sum((teacher.client.losses for teacher in self.teachers.values()), Losses())
        self.forget_losses()
        return losses.metrics("teacher", self.processes)

    def forget_losses(self) -> None:
        for teacher in self.teachers.values():
            teacher.client.losses = Losses()

    def fingerprints(self) -> dict[str, list[float]]:
        return {name: t.fingerprint.tolist() for name, t in self.teachers.items() if t.fingerprint is not None}


def remote_by_name(teacher: Teacher) -> dict[str, ServerTeacher]:
    """Returns the remote teachers; the name of an only one is empty."""
    named = teacher.teachers if isinstance(teacher, RoutedTeacher) else {"": teacher}
    return {name: each for name, each in named.items() if isinstance(each, ServerTeacher)}


def check_remote(
    name: str, teacher: ServerTeacher, student: LanguageModel, longest: int, temperature: float
) -> Iterator[str]:
    """Yields a sentence for each look at one teacher's servers. `longest` counts the tokens of prompt and full
    response, `temperature` is the rollouts'. Raises a `HopdError` for what cannot work."""
    if temperature != 1:
        raise RecipeError(
            f"a server gives log-probs of temperature 1, and rollout.temperature is {temperature:g}; write "
            "temperature: 1, or a local teacher"
        )
    what = f"teacher {name}".strip()
    for server in teacher.client.plain_servers():
        yield f"{what}: its key goes to {server} unencrypted; write https:// unless the way there is your own"
    gone: list[TeacherUnavailable] = []
    for server in teacher.source.servers:
        try:
            _check_model(teacher, server, longest)
        except TeacherUnavailable as error:
            gone.append(error)
    if len(gone) == len(teacher.source.servers):
        raise gone[0]
    yield from (f"{what}: {error}; going on with the others" for error in gone)
    ((probed,),) = teacher.ask([[teacher.probe]])
    _check_tokens(teacher, student, probed.decoded)
    yield (
        f"{what}: {teacher.source.model} at {', '.join(teacher.source.servers)}; a probe of {len(teacher.probe)} "
        "tokens was scored, and its log-probs are those that every answer must repeat"
    )


def _check_model(teacher: ServerTeacher, server: str, longest: int) -> None:
    try:
        served = {str(model.get("id")): model for model in teacher.client.models(server)}
    except Fault as fault:
        if fault.kind == FaultKind.REJECTED:
            raise RecipeError(f"{server} does not let us see its models: {fault}") from None
        raise TeacherUnavailable(f"{server} does not answer: {fault}") from None
    if teacher.source.model not in served:
        raise RecipeError(f"{server} serves {', '.join(served) or 'nothing'}, not {teacher.source.model!r}")
    limit = served[teacher.source.model].get("max_model_len")
    if limit is not None and longest + 1 > limit:  # one token is always generated
        raise RecipeError(
            f"the longest prompt and rollout.full_tokens make {longest} tokens, and {server} takes {limit - 1}; serve "
            f"with --max-model-len {longest + 1}, or lower full_tokens"
        )


def _check_tokens(teacher: ServerTeacher, student: LanguageModel, decoded: Sequence[str | None]) -> None:
    """The probe's ids must be the same texts to both tokenizers; parts of a character have no text of their own."""
    for id, theirs in zip(teacher.probe[1:], decoded, strict=True):
        mine = str(student.tokenizer.decode([id]))
        if theirs is not None and "\ufffd" not in mine + theirs and mine.strip() != theirs.strip():
            raise ModelError(
                f"student {student.name} and teacher {teacher.source.model} have unlike vocabularies: id {id} is "
                f"{mine!r} to the student, {theirs!r} to the teacher"
            )
