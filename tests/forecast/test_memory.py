"""The memory forecast counts what a run holds all the time."""

import pytest

from hopd.assembly import build
from hopd.forecast.memory import estimate_memory
from hopd.forecast.preflight import preflight
from hopd.recipe import Recipe
from hopd.run.progress import Progress


def built(path, *changes):
    return build(Recipe.load(path, changes), progress=Progress(quiet=True))


@pytest.mark.parametrize("setting", ["training.precision=fp32", "training.precision=bf16", "lora={rank: 4, alpha: 8}"])
def test_an_average_of_the_weights_takes_four_bytes_for_each_that_is_trained(tiny, setting):
    plain, averaging = built(tiny, setting), built(tiny, setting, "training.ema=0.9")
    trained = sum(tensor.numel() for tensor in averaging.average.tensors.values())
    assert trained == sum(p.numel() for p in plain.student.model.parameters() if p.requires_grad) > 0
    assert estimate_memory(averaging).static == estimate_memory(plain).static + 4 * trained
    assert estimate_memory(averaging).update == estimate_memory(plain).update


def test_preflight_counts_the_averages_of_all_checkpoints_on_disk(tiny):
    plain, averaging = (
        next(line for line in preflight(built(tiny, *changes)) if line.startswith("disk:"))
        for changes in ((), ("training.ema=0.9",))
    )
    gigabytes = [float(line.split("checkpoints of ")[1].split(" GB")[0]) for line in (plain, averaging)]
    assert gigabytes[1] == pytest.approx(4 / 3 * gigabytes[0], rel=0.1)
