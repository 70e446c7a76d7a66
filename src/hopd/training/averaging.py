"""Averages the weights over the updates. Training goes on with the raw weights; the average is evaluated and kept.

After n updates with decay β, the weights that update i made count β^(n − i), over the sum of these numbers. This is
Adam's correction of the bias (arXiv:1412.6980, Section 3): the first average is the first update's weights, and the
student that training began with has no part. The other usual remedy, a decay of min(β, (1 + n) / (10 + n)) as in
TensorFlow, reaches 0.9 after 80 updates only, and many runs are no longer than that.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from hopd.model import LanguageModel
from hopd.model.sharding import local, shard_like
from hopd.training.optimizer import MasterOptimizer


class WeightAverage:
    """Averages the fp32 master weights of `optimizer`, which trains `student`; each process averages its own shards.

    `decay` is β, in (0, 1). If it is None, nothing is averaged, and the methods do nothing.
    """

    def __init__(self, student: LanguageModel, optimizer: MasterOptimizer, decay: float | None):
        self.student, self.optimizer, self.decay = student, optimizer, decay
        self.updates = 0
        masters = optimizer.masters if decay is not None else {}
        self.tensors: dict[str, Tensor] = {name: master.detach().clone() for name, master in masters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights that the optimizer has just updated."""
        if self.decay is None:
            return
        self.updates += 1
        newest = (1 - self.decay) / (1 - self.decay**self.updates)
        for name, average in self.tensors.items():
            local(average).lerp_(local(self.optimizer.masters[name]), newest)

    @contextmanager
    def as_student(self) -> Iterator[None]:
        """Makes the student compute with the average until the block ends; then it has its own weights, to the bit.

        An engine that decodes with a copy must take its weights inside the block. The block must not train, and nothing
        may interrupt its beginning or its end.
        """
        if self.decay is None:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Exchanges the average and the masters in place, since engines may hold on to the tensors."""
        self.student.sharding.reshard()  # what a pass has left gathered is a copy
        for name, average in self.tensors.items():
            mine, weight = local(average), local(self.optimizer.masters[name])
            raw = weight.clone()
            weight.copy_(mine)
            mine.copy_(raw)
        self.optimizer.refresh()

    def model_state(self, keep: bool) -> dict[str, Tensor]:
        """Returns the averaged model's state dict in fp32, without a decay an empty one.

        All processes of a sharded model must call it together; those that do not `keep` it get none.
        """
        return self.optimizer.model_state(self.student.model, self.tensors, keep) if self.tensors else {}

    @torch.no_grad()
    def load(self, averaged: Mapping[str, Tensor], updates: int) -> None:
        """Continues an average of `updates` updates from its whole tensors, by the names of the parameters."""
        self.updates = updates
        for name, average in self.tensors.items():
            local(average).copy_(local(shard_like(averaged[name].detach(), average)))
