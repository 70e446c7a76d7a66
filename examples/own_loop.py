"""A training loop of your own: hopd decides how far to roll out and computes the loss; model, sampling and optimiser
are yours. Run `python own_loop.py`."""

import torch
from torch import Tensor, nn

from hopd import horizon
from hopd.objective import Full, Head, HiddenSignal, LossTokens, distillation_loss

VOCABULARY, WIDTH, ROLLOUTS, FULL_TOKENS = 32, 48, 16, 40


class Model(nn.Module):
    """A small recurrent language model: hidden states, and a head that makes them logits."""

    def __init__(self, sharpness: float = 1.0):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(VOCABULARY, WIDTH), nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.weight = nn.Parameter(sharpness * torch.randn(VOCABULARY, WIDTH))

    def forward(self, ids: Tensor) -> Tensor:
        states: Tensor = self.layer(self.embedding(ids))[0]
        return states

    @torch.no_grad()
    def sample(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Returns token ids (rollouts, 1 + tokens), the first of them a prompt, and log-probs (rollouts, tokens)."""
        ids, log_probs = torch.randint(VOCABULARY, (ROLLOUTS, 1)), list[Tensor]()
        for _ in range(tokens):
            log_prob = (self(ids)[:, -1] @ self.weight.T).log_softmax(-1)
            drawn = log_prob.exp().multinomial(1)
            ids, log_probs = torch.cat([ids, drawn], 1), [*log_probs, log_prob.gather(1, drawn)]
        return ids, torch.cat(log_probs, 1)


def main(steps: int = 60) -> list[float]:
    torch.manual_seed(0)
    student, teacher, objective = Model(), Model(sharpness=0.5), Full(divergence="reverse_kl")
    controller = horizon.build({"controller": "progressive", "start": 8, "increment": 1}, full_tokens=FULL_TOKENS)
    optimizer, curve = torch.optim.Adam(student.parameters(), lr=1e-2), []
    for step in range(steps):
        decision = controller.decide(step)
        ids, behaviour = student.sample(decision.tokens)
        row, position = (t.flatten() for t in torch.meshgrid(*map(torch.arange, behaviour.shape), indexing="ij"))
        at = LossTokens(ids[:, 1:].flatten(), row, position, behaviour.flatten(), torch.ones(len(row)))
        with torch.no_grad():
            signal = HiddenSignal(Head(teacher.weight), teacher(ids[:, :-1]).flatten(0, 1))
        total, _ = distillation_loss(objective, Head(student.weight), student(ids[:, :-1]).flatten(0, 1), signal, at)
        (total / len(row)).backward()  # a sum over loss tokens, divided once
        optimizer.step()
        optimizer.zero_grad()
        curve.append(total.item() / len(row))
        print(f"step {step:3d}   KL {curve[-1]:.3f} nats a token   {decision.reason}")
    return curve


if __name__ == "__main__":
    main()
