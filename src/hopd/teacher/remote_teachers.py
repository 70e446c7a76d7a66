"""Checks the remote teachers before a run, and asks them all before a step's first update."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from hopd.errors import ModelError, RecipeError, TeacherUnavailable
from hopd.model import LanguageModel
from hopd.processes import Processes
from hopd.remote import Fault, FaultKind, RequestStats
from hopd.rollout.batch import Batch
from hopd.teacher.remote import HOW, RemoteTeacher
from hopd.teacher.teacher import Teacher, by_name


class RemoteTeachers:
    """Holds the remote teachers of a run by name; an only teacher has the empty name."""

    def __init__(self, teachers: dict[str, RemoteTeacher], processes: Processes):
        self.teachers, self.processes = teachers, processes

    def fetch(self, batches: Sequence[Batch]) -> None:
        """Fetches the scores of a whole step, before the student changes, so that the step can still be abandoned.

        Raises `TeacherUnavailable` on all processes if it fails on one."""
        with self.processes.together():
            for name, teacher in self.teachers.items():
                teacher.fetch([batch for batch in batches if not name or batch.teacher == name])

    def metrics(self) -> dict[str, float]:
        """Returns faults, retries and lost seconds since the last call. All processes call it together."""
        if not self.teachers:
            return {}
        gaps = sum(self.processes.gather([teacher.gaps for teacher in self.teachers.values()]))
        stats = sum((teacher.client.stats for teacher in self.teachers.values()), RequestStats())
        for teacher in self.teachers.values():
            teacher.client.stats = RequestStats()
        skipped = {"teacher_skipped_tokens": gaps} if gaps else {}
        return stats.metrics("teacher", self.processes) | skipped

    def alarm(self) -> str | None:
        """Returns a sentence on the loss tokens that a teacher gave no score for in the last step; None if there are
        none. All processes call it together."""
        found = self.processes.gather([(teacher.example, teacher.gaps) for teacher in self.teachers.values()])
        example = next((example for example, _ in found if example), None)
        if example is None:
            return None
        return f"{example}; such tokens carry no loss, in this step {sum(gaps for _, gaps in found)}: {HOW}"

    def without_gaps(self, batch: Batch) -> Batch:
        """Returns the batch with no weight on the loss tokens that its teacher gave no score for."""
        teacher = self.teachers.get(batch.teacher or "") or self.teachers.get("")
        return batch if teacher is None else teacher.without_gaps(batch)

    def fingerprints(self) -> dict[str, list[float]]:
        """Returns the log-probs by which a resumed run recognizes each teacher's weights, for a checkpoint."""
        return {name: t.fingerprint.tolist() for name, t in self.teachers.items() if t.fingerprint is not None}

    def restore(self, fingerprints: Mapping[str, Sequence[float]]) -> None:
        """Expects the weights that a checkpoint's `fingerprints` are of."""
        for name, teacher in self.teachers.items():
            teacher.fingerprint = torch.tensor(fingerprints[name]) if name in fingerprints else None


def remote_by_name(teacher: Teacher) -> dict[str, RemoteTeacher]:
    """Returns the remote ones among a run's teachers; an only teacher has the empty name."""
    return {name: each for name, each in by_name(teacher).items() if isinstance(each, RemoteTeacher)}


def check_remote(
    name: str, teacher: RemoteTeacher, student: LanguageModel, longest: int, temperature: float
) -> Iterator[str]:
    """Yields a sentence for each finding about one teacher's servers. `longest` counts the tokens of the longest prompt
    and full response; `temperature` is the rollouts'. Raises a `HopdError` for what cannot work."""
    if temperature != 1:
        raise RecipeError(
            f"a remote teacher's log-probs are of temperature 1, and rollout.temperature is {temperature:g}; write "
            "temperature: 1, or a local teacher"
        )
    what = f"teacher {name}".strip()
    for server in teacher.client.plain_servers():
        yield f"{what}: its key goes to {server} unencrypted; write https:// unless the network is your own"
    gone: list[TeacherUnavailable] = []
    for server in teacher.source.servers:
        try:
            _check_model(teacher, server, longest)
        except TeacherUnavailable as error:
            gone.append(error)
    if len(gone) == len(teacher.source.servers):
        raise gone[0]
    yield from (f"{what}: {error}; continuing with the others" for error in gone)
    ((scores,),) = teacher.ask([[teacher.fingerprint_ids]])
    _check_tokens(teacher, student, scores.decoded)
    yield (
        f"{what}: {teacher.source.model} at {', '.join(teacher.source.servers)}; its log-probs of "
        f"{len(teacher.fingerprint_ids)} tokens are the fingerprint that every answer must repeat"
    )


def _check_model(teacher: RemoteTeacher, server: str, longest: int) -> None:
    try:
        models = {str(model.get("id")): model for model in teacher.client.models(server)}
    except Fault as fault:
        if fault.kind == FaultKind.REJECTED:
            raise RecipeError(f"{server} does not list its models: {fault}") from None
        raise TeacherUnavailable(f"{server} does not answer: {fault}") from None
    if teacher.source.model not in models:
        raise RecipeError(f"{server} serves {', '.join(models) or 'nothing'}, not {teacher.source.model!r}")
    limit = models[teacher.source.model].get("max_model_len")
    if limit is not None and longest + 1 > limit:  # one token is always generated
        raise RecipeError(
            f"the longest prompt and rollout.full_tokens make {longest} tokens, and {server} takes {limit - 1}; serve "
            f"with --max-model-len {longest + 1}, or lower full_tokens"
        )


def _check_tokens(teacher: RemoteTeacher, student: LanguageModel, decoded: Sequence[str | None]) -> None:
    """Compares the texts of the fingerprint's ids by both tokenizers; parts of a character have no text of their
    own."""
    for id, theirs in zip(teacher.fingerprint_ids[1:], decoded, strict=True):
        mine = str(student.tokenizer.decode([id]))
        if theirs is not None and "\ufffd" not in mine + theirs and mine.strip() != theirs.strip():
            raise ModelError(
                f"student {student.name} and teacher {teacher.source.model} have unlike vocabularies: id {id} is "
                f"{mine!r} to the student, {theirs!r} to the teacher"
            )
