"""The models in the package: a teacher that can add and a student that cannot."""

from hopd.evaluation import evaluate
from hopd.model import load
from hopd.rollout import NativeEngine, Sampling
from hopd.tasks import RepeatedAddition, encode


def accuracy(name):
    model = load(f"package:hopd/quickstart/{name}")
    prompts = encode(RepeatedAddition(12, 256, seed=1, held_out=True), model.tokenizer, chat=False, max_tokens=16)
    return evaluate(NativeEngine(model, rows=256), prompts, full_tokens=360, sampling=Sampling())[0]


def test_the_shipped_teacher_can_add_and_the_shipped_student_cannot():
    teacher, student = accuracy("teacher"), accuracy("student")
    assert teacher.accuracy >= 0.98
    assert student.accuracy <= 0.05
    assert student.stop_rate > 0.98  # it still knows the format
