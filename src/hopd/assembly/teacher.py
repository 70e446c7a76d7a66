"""Makes the teacher of a recipe: local, the student's base, remote, of your own, or several."""

from collections.abc import Mapping

from hopd.model import LanguageModel
from hopd.objective import StopClass
from hopd.recipe import AdaptersOff, Recipe, ServerSource, TeacherPlugin
from hopd.teacher.local import BaseTeacher, LocalTeacher
from hopd.teacher.remote import RemoteTeacher
from hopd.teacher.teacher import RoutedTeacher, Teacher


def build_teacher(
    recipe: Recipe,
    student: LanguageModel,
    models: Mapping[str | None, LanguageModel],
) -> Teacher:
    """Makes the teacher; `models` are the local ones, by name."""
    temperature, vocabulary = recipe.rollout.temperature, student.head.vocabulary
    stop = StopClass.of(recipe.objective, student.stop_ids, vocabulary)
    teachers: dict[str | None, Teacher] = {name: LocalTeacher(model, temperature) for name, model in models.items()}
    for name, source in recipe.sources.items():
        if isinstance(source, ServerSource):
            teachers[name] = RemoteTeacher(source, recipe.objective, vocabulary, stop.ends if stop else ())
        elif isinstance(source, AdaptersOff):
            teachers[name] = BaseTeacher(student, temperature)
        elif isinstance(source, TeacherPlugin):
            teachers[name] = source.make(student=student, temperature=temperature)
    named = {name: teacher for name, teacher in teachers.items() if name is not None}
    return RoutedTeacher(named) if named else teachers[None]
