"""Compares the vocabularies of two models, because student and teacher exchange token ids."""

from collections.abc import Sequence

from hopd.errors import ModelError
from hopd.model.language_model import LanguageModel


def share_vocabulary(student: LanguageModel, teachers: Sequence[LanguageModel]) -> list[str]:
    """Lets all models use the ids that they share, and returns notes for a person.

    Raises `ModelError` if an id means one token to the student and another to a teacher.
    """
    notes = [note for teacher in teachers for note in compare_vocabularies(student, teacher)]
    shared = min(model.head.vocabulary for model in (student, *teachers))
    for model in (student, *teachers):
        if model.head.vocabulary > shared:
            notes.append(
                f"{model.name} has {model.head.vocabulary} output rows, of which the first {shared} are shared and used"
            )
            model.limit_vocabulary(shared)
    return notes


def compare_vocabularies(student: LanguageModel, teacher: LanguageModel) -> list[str]:
    """Returns notes on harmless differences; raises `ModelError` unless each id means the same token to both.

    It compares ids, not files: tokenizers with different files may agree.
    """
    mine, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    name_of = {id: token for token, id in theirs.items()}
    conflicts = [
        (token, id) for token, id in mine.items() if theirs.get(token, id) != id or name_of.get(id, token) != token
    ]
    common = len(mine.keys() & theirs.keys())
    if conflicts or not common:
        token, id = min(conflicts, key=lambda pair: pair[1]) if conflicts else ("", 0)
        raise ModelError(
            f"student {student.name} and teacher {teacher.name} have unlike vocabularies: {len(conflicts)} of "
            f"{len(mine)} tokens differ, first id {id}: {token!r} to the student, {name_of.get(id)!r} to the teacher. "
            "They exchange token ids, so both must use one tokenizer"
        )
    notes = []
    if only := sorted(mine.keys() ^ theirs.keys()):
        notes.append(f"{len(only)} tokens are in one vocabulary only ({', '.join(map(repr, only[:4]))})")
    if student.stop_ids != teacher.stop_ids:
        notes.append(
            f"the student stops on {sorted(student.stop_ids)}, the teacher {teacher.name} on "
            f"{sorted(teacher.stop_ids)}: the student may unlearn its own stop id; watch the stop rate"
        )
    if not student.stop_ids:
        notes.append("the student has no end-of-sequence id: every rollout runs to its horizon")
    if student.tokenizer.bos_token_id != teacher.tokenizer.bos_token_id:
        notes.append(
            f"the student begins with id {student.tokenizer.bos_token_id}, the teacher with "
            f"{teacher.tokenizer.bos_token_id}; prompts are the student's"
        )
    return notes
