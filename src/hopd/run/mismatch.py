"""Raises the alarm where the log-probs of engine and learner differ by more than rounding explains."""

from dataclasses import dataclass

TOLERANCE = {"fp32": 1e-2, "bf16": 0.2}  # nats a token that rounding can explain, generously


@dataclass(frozen=True)
class MismatchAlarm:
    """Compares a step's mismatch with `threshold`, in nats a token; `advice` says what to do beyond it. With `corrects`
    it names the objective that corrects for the difference, too."""

    threshold: float
    advice: str
    corrects: bool = True

    @classmethod
    def of(
        cls,
        engine: str,
        precision: str,
        several_updates: bool,
        threshold: float | None = None,
        keeps_keys: bool = False,
        corrects: bool = True,
    ) -> "MismatchAlarm":
        """Chooses threshold and advice. `several_updates`: later mini-batches of a step are trained by newer weights
        than those that sampled them. `keeps_keys`: tokens of this step are sampled with keys and values of earlier
        ones, where rollouts continue. `corrects`: all tokens were sampled, so ratios can."""
        if keeps_keys:
            advice = (
                "the keys of rollouts that continue are older than the weights: write engine: {keys: refreshed}, or"
            )
        elif several_updates:
            advice = "later mini-batches see newer weights than those that sampled: use larger ones, or"
        else:
            advice = f"does the {engine} engine compute in {precision} too, and the same? If rounding explains it,"
        return cls(threshold or TOLERANCE[precision], advice, corrects)

    def sentence(self, step: int, mismatch: float) -> str | None:
        """Returns a sentence where a step's mean mismatch (nats a token) is above the threshold. It is that of tokens
        that the step itself sampled: older ones differ for a reason, which `staleness` measures."""
        if mismatch <= self.threshold:
            return None
        capped = "objective: {estimator: sampled, importance_cap: 2}, or " if self.corrects else ""
        return (
            f"step {step}: the engine's and the learner's log-probs of the same tokens are {mismatch:.3g} nats a token "
            f"apart, above rollout.mismatch_alarm = {self.threshold:g}, so what is sampled is not what is trained; "
            f"{self.advice} write {capped}a higher mismatch_alarm"
        )
