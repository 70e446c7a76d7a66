from hopd.evaluation import evaluate
from hopd.model import load
from hopd.quickstart import make
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


def test_the_models_can_be_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "TEACHER_UPDATES", 4)
    monkeypatch.setattr(make, "STUDENT_UPDATES", 4)
    monkeypatch.setattr(make, "STEPS", 2)
    make.make(tmp_path, seed=3, log=lambda line: None)
    shipped = load("package:hopd/quickstart/teacher")
    for name in ("teacher", "student"):
        made = load(str(tmp_path / name))
        assert made.tokenizer.get_vocab() == shipped.tokenizer.get_vocab()
        assert made.stop_ids == shipped.stop_ids
        assert {n: p.shape for n, p in made.model.named_parameters()} == {
            n: p.shape for n, p in shipped.model.named_parameters()
        }
