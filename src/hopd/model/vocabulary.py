"""Compares the vocabularies of two models, because student and teacher exchange token ids."""

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hopd.errors import ModelError, RecipeError
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
        missing = sorted(teacher.stop_ids - student.stop_ids)
        notes.append(
            f"the student stops on {sorted(student.stop_ids)}, the teacher {teacher.name} on "
            f"{sorted(teacher.stop_ids)}: the student may unlearn its own stop id; watch the stop rate"
            + (f", or end rollouts where the teacher ends: write rollout: {{stop: {missing}}}" if missing else "")
        )
    if not student.stop_ids:
        notes.append("the student has no end-of-sequence id: every rollout runs to its horizon")
    if student.tokenizer.bos_token_id != teacher.tokenizer.bos_token_id:
        notes.append(
            f"the student begins with id {student.tokenizer.bos_token_id}, the teacher with "
            f"{teacher.tokenizer.bos_token_id}; prompts are the student's"
        )
    return notes


def check_ends(student: LanguageModel, chat: bool) -> list[str]:
    """Returns notes on what ends the student's rollouts: ends that its files name and that do not end them, ends that
    it cannot sample, and those of the recipe. With `chat`, the chat template's end of a turn counts.

    Raises `RecipeError` for an id of the recipe that the models do not share.
    """
    rows, notes = student.head.vocabulary, []
    if beyond := [id for id in sorted(student.stop.ids) if id >= rows]:
        raise RecipeError(f"rollout.stop names the id {beyond[0]}, and the models share the ids 0 to {rows - 1} only")
    if beyond := [id for id in sorted(student.stop_ids) if id >= rows]:
        notes.append(
            f"the student's end {named(student, beyond)} is beyond the {rows} ids that are used, so no rollout ends "
            "there; write rollout: {stop: […]} with an id below"
        )
    places = student.declared_ends
    if chat and (turn := end_of_turn(student.tokenizer)) is not None:
        places |= {"the chat template": frozenset([turn])}
    if missing := sorted({id for ids in places.values() for id in ids if id < rows} - student.stop_ids):
        each = "; ".join(f"{place} {named(student, sorted(ids))}" for place, ids in places.items())
        notes.append(
            f"{student.name} names different ends: {each}. Rollouts end on "
            f"{named(student, sorted(student.stop_ids))} only; "
            f"to end them on {named(student, missing)} too, write rollout: {{stop: {missing}}}"
        )
    if student.stop.ids or student.stop.texts:
        notes.append(f"rollouts end where the model's own do, and at {student.stop}")
    return notes


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns the special token that the chat template writes after an assistant's answer; None if there is none."""
    mark = "0"  # a digit is a token in every vocabulary, and templates write none after the answer
    answer = mark * 16
    try:
        turn = [{"role": "user", "content": mark}, {"role": "assistant", "content": answer}]
        rendered = str(tokenizer.apply_chat_template(turn, tokenize=False))
    except (TemplateError, ValueError, AttributeError, KeyError, TypeError):
        return None  # a template that takes no such conversation is reported where prompts are rendered
    _, found, after = rendered.rpartition(answer)
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = tokenizer(after, add_special_tokens=False).input_ids if found else []
    return next((id for id in ids if id in special), None)


def end_of_answer(model: LanguageModel, chat: bool) -> int | None:
    """Returns the end that belongs behind a whole answer: of those that end the model's rollouts, the chat template's
    end of a turn in a `chat`, else the tokenizer's end of sequence, else the lowest id. None if nothing ends them."""
    ends = {id for id in model.stop_ids if id < model.head.vocabulary}
    declared = ends - (model.stop.ids - next(iter(model.declared_ends.values()), frozenset()))
    preferred = [end_of_turn(model.tokenizer) if chat else None, model.tokenizer.eos_token_id]
    return next((id for id in preferred if id in ends), min(declared or ends, default=None))


def named(model: LanguageModel, ids: Sequence[int]) -> str:
    """Returns ids with their tokens, for a sentence."""
    names = [f"{id} {model.tokenizer.convert_ids_to_tokens(id)!r}" for id in ids]
    return ", ".join(names) or "nothing"
