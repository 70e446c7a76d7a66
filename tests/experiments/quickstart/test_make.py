"""Checks that the quickstart's models can be made again."""

from experiments.quickstart import make
from hopd.model import load


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
