"""Defines a controller, which decides before every step what it spends, and the evidence that it may look at."""

from dataclasses import dataclass
from typing import Any, Protocol

from hopd.errors import HorizonError


@dataclass(frozen=True)
class Decision:
    """Spends one training step. `reason` explains it in a sentence.

    The step has `rollouts` rollouts (None: as many as the recipe says). Each gets at most `tokens` response tokens in
    this step and ends there, except for `whole` of them (None: all), which run until they stop by themselves or have
    `end` tokens (None: the full length): in this step, or, if the step `continues`, by at most `tokens` a step, so that
    they stay unfinished until a later one. The update learns from the rollouts that ended.
    """

    tokens: int
    reason: str
    rollouts: int | None = None
    whole: int | None = 0
    continues: bool = False
    end: int | None = None

    @property
    def only_cuts(self) -> bool:
        """Tells whether it only says where all rollouts of a step are cut, which any trainer can do."""
        return self.rollouts is None and self.whole == 0

    def parts(self, per_step: int) -> tuple[int, int]:
        """Returns how many rollouts are cut at the horizon and how many are whole, of `per_step` in the recipe."""
        count = self.rollouts or per_step
        whole = count if self.whole is None else min(self.whole, count)
        return count - whole, whole

    def longest(self, full_tokens: int) -> int:
        """Returns the most tokens of a rollout that is trained on."""
        return self.tokens if self.whole == 0 else self.end or full_tokens

    def at_most(self, per_step: int, full_tokens: int) -> int:
        """Returns the most tokens that a step generates."""
        cut, whole = self.parts(per_step)
        return cut * self.tokens + whole * (self.tokens if self.continues else self.longest(full_tokens))

    def check(self, step: int, full_tokens: int) -> None:
        """Raises `HorizonError` for a spend that is impossible."""
        if not 1 <= self.tokens <= full_tokens:
            raise HorizonError(
                f"the horizon of step {step} is {self.tokens} tokens ({self.reason}); a controller must decide on 1 to "
                f"rollout.full_tokens = {full_tokens}"
            )
        if (self.rollouts is not None and self.rollouts < 1) or (self.whole is not None and self.whole < 0):
            raise HorizonError(
                f"step {step} has {self.rollouts} rollouts, {self.whole} of them whole ({self.reason}); a controller "
                "must decide on at least one rollout, and on no fewer than 0 whole ones"
            )
        if self.end is not None and not 1 <= self.end <= full_tokens:
            raise HorizonError(
                f"whole rollouts of step {step} end at {self.end} tokens ({self.reason}); a controller must decide on "
                f"1 to rollout.full_tokens = {full_tokens}"
            )


@dataclass(frozen=True)
class Block:
    """Holds what the trained rollouts of one step showed in the response tokens `start <= t < end`.

    `rollouts` of them had tokens there, `tokens` in all that carry loss, and `stopped` ended there by themselves.
    `reverse_kl` is their mean KL(student ‖ teacher) in nats: exact where the loss is that, else its estimate −r_t.
    `surplus` is by how much the teacher's entropy exceeds the student's, in nats a token, where both are known.
    """

    start: int
    end: int
    rollouts: int
    stopped: int
    tokens: int
    reverse_kl: float
    surplus: float | None = None


@dataclass(frozen=True)
class Gradients:
    """Compares the gradients of a step's K blocks, from sketches of each rollout's: products of `rollouts` of them.

    With g_ib the gradient of rollout i in block b, `products[b][c]` estimates E[g_b] · E[g_c] from pairs of different
    rollouts, so without bias, and `noise[b]` the trace of the covariance of g_b. A block's noise over its signal
    `products[b][b]` is about the number of rollouts at which a larger step stops helping (McCandlish et al., 2018).
    A rollout that ended by itself has nothing in later blocks; one that was cut does not count there. `pairs[b][c]`
    counts the pairs behind a product: where it is 0, the product is unknown, and 0 as well.
    """

    products: tuple[tuple[float, ...], ...]
    noise: tuple[float, ...]
    pairs: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Evidence:
    """Tells an adaptive controller what one training step measured. Positions count response tokens from 0.

    `horizon` is the step's decision, in tokens, `rollouts` the number of those that ended and were trained on,
    `stopped` how many of them ended by themselves, `mean_length` their mean length in tokens, `mean_age` how many steps
    old their tokens were, in the mean, and `generated_tokens` what all rollouts gained in the step.

    `reverse_kl[i]` is the mean of −r_t in nats, an unbiased estimate of KL(student ‖ teacher), over the loss tokens
    with `edges[i] <= t < edges[i + 1]`; `counts[i]` is their number. `edges` are powers of two, because few rollouts
    reach the late positions: narrow bins would hold few tokens there. `blocks` are tenths of the full length, with the
    exact divergence where the loss is one, and `gradients` compares them, where they are sketched.

    All of it is of what the student sampled. `references` counts the reference answers that were trained on beside it
    (`rollout.off_policy`).
    """

    step: int
    horizon: int
    rollouts: int
    stopped: int
    mean_length: float
    edges: tuple[int, ...]
    reverse_kl: tuple[float, ...]
    counts: tuple[int, ...]
    blocks: tuple[Block, ...] = ()
    gradients: Gradients | None = None
    mean_age: float = 0.0
    generated_tokens: int = 0
    references: int = 0


class Controller(Protocol):
    """Decides what each step spends, deterministically. Everything that it remembers is in its `state_dict`.

    One with an attribute `sketches` that is true finds `gradients` in its evidence, unless its student allows no
    sketches.
    """

    @property
    def full_tokens(self) -> int:
        """Returns T, the full length of a rollout in tokens, which no decision exceeds."""
        ...

    def decide(self, step: int) -> Decision:
        """Returns the spend of training step `step`, which counts from 0; its `tokens` are 1 to `full_tokens`."""
        ...

    def observe(self, evidence: Evidence) -> None:
        """Takes note of a finished step. It is called once per step, after `decide`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain data that JSON can hold; it becomes part of each checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state from `state_dict`; later decisions are those of the controller that saved it."""
        ...
