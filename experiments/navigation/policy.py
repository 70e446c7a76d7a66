"""Defines Gaussian policies, which map observations to the mean and the standard deviation of an action.

Sizes are the paper's. The mean is bounded by the action's scale, and the standard deviation is between a tenth of the
scale and the scale, so that densities stay finite (our choice).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

WIDTH, HEADS = 64, 4
LOG_STD = (math.log(0.1), 0.0)

M = TypeVar("M", bound=nn.Module)

Gaussian = tuple[Float[Tensor, "*B 2"], Float[Tensor, "*B 2"]]
"""Pairs mean and standard deviation."""


class Policy(Protocol):
    def memory(self) -> Any:
        """Returns the empty memory of a rollout, which `step` updates."""
        ...

    def step(self, seen: Float[Tensor, "R 4"], memory: Any) -> Gaussian:
        """Returns the next action's distribution."""
        ...

    def whole(self, seen: Float[Tensor, "R T 4"]) -> Gaussian:
        """Returns the distributions of all actions, each conditioned on the observations up to it."""
        ...


def load(policy: M, path: Path) -> M:
    """Loads the weights that lie at `path` into `policy`, and returns it."""
    policy.load_state_dict(torch.load(path, weights_only=True))
    return policy


def log_prob(gaussian: Gaussian, actions: Float[Tensor, "*B 2"]) -> Float[Tensor, "*B"]:
    """Returns log π(a), the sum over both coordinates."""
    mean, std = gaussian
    return (-0.5 * ((actions - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


class _Heads(nn.Module):
    def __init__(self, scale: float):
        super().__init__()
        self.scale, self.mean, self.log_std = scale, nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 2)
        nn.init.constant_(self.log_std.bias, -1.0)

    def forward(self, state: Float[Tensor, "*B D"]) -> Gaussian:
        mean: Tensor = self.mean(state)
        log_std: Tensor = self.log_std(state)
        return self.scale * mean.tanh(), self.scale * log_std.clamp(*LOG_STD).exp()


class MlpPolicy(nn.Module):
    """Acts in simple navigation: three hidden layers with tanh."""

    def __init__(self, scale: float = 0.8):
        super().__init__()
        layers = [
            nn.Linear(4, WIDTH),
            nn.Tanh(),
            nn.Linear(WIDTH, WIDTH),
            nn.Tanh(),
            nn.Linear(WIDTH, WIDTH),
            nn.Tanh(),
        ]
        self.body, self.heads = nn.Sequential(*layers), _Heads(scale)

    def memory(self) -> None:
        return None

    def step(self, seen: Float[Tensor, "R 4"], memory: None = None) -> Gaussian:
        return self.whole(seen)

    def whole(self, seen: Float[Tensor, "*B 4"]) -> Gaussian:
        gaussian: Gaussian = self.heads(self.body(seen))
        return gaussian


class OptimalPolicy:
    """Acts in simple navigation in closed form (Fig. 14): it moves straight towards the target from every position."""

    def __init__(self, target: Float[Tensor, " 2"], distance: float, scale: float = 0.8, std: float = 0.25):
        self.target, self.distance, self.scale, self.std = target, distance, scale, std

    def memory(self) -> None:
        return None

    def step(self, seen: Float[Tensor, "R 4"], memory: None = None) -> Gaussian:
        return self.whole(seen)

    def whole(self, seen: Float[Tensor, "*B 4"]) -> Gaussian:
        way = self.target - self.distance * seen[..., 1:3]
        mean = way * (self.scale / way.norm(dim=-1, keepdim=True).clamp(min=self.scale))
        return mean, torch.full_like(mean, self.std * self.scale)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key_value, self.out = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )

    def key_values(self, x: Float[Tensor, "R K D"]) -> tuple[Tensor, Tensor]:
        key, value = self.key_value(x).chunk(2, dim=-1)
        return _heads(key), _heads(value)

    def forward(self, x: Float[Tensor, "R Q D"], key: Tensor, value: Tensor, causal: bool) -> Float[Tensor, "R Q D"]:
        mixed = nn.functional.scaled_dot_product_attention(_heads(self.query(x)), key, value, is_causal=causal)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


def _heads(x: Float[Tensor, "R L D"]) -> Float[Tensor, "R H L W"]:
    heads: Tensor = x.unflatten(-1, (HEADS, -1))
    return heads.transpose(1, 2)


class _Layer(nn.Module):
    """Applies pre-LN attention and a GELU MLP, without dropout; `cross` adds attention to the encoder's output."""

    def __init__(self, cross: bool):
        super().__init__()
        self.attention, self.before = _Attention(), nn.LayerNorm(WIDTH)
        self.cross = _Attention() if cross else None
        self.before_cross = nn.LayerNorm(WIDTH) if cross else None
        self.feed = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(
        self, x: Tensor, encoded: tuple[Tensor, Tensor] | None = None, past: list[Tensor] | None = None
    ) -> Tensor:
        """Returns the layer's output.

        `encoded` holds keys and values of the encoder's output; `past` holds this layer's own for earlier positions,
        and those of `x` are appended to it.
        """
        normed = self.before(x)
        key, value = self.attention.key_values(normed)
        if past:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        if past is not None:
            past[:] = [key, value]
        x = x + self.attention(normed, key, value, causal=past is None and self.cross is not None)
        if self.cross is not None and self.before_cross is not None and encoded is not None:
            x = x + self.cross(self.before_cross(x), *encoded, causal=False)
        fed: Tensor = self.feed(x)
        return x + fed

    def crossed(self, encoded: Float[Tensor, "R 1 D"]) -> tuple[Tensor, Tensor]:
        """Returns a decoder layer's keys and values of the encoder's output."""
        assert self.cross is not None
        return self.cross.key_values(encoded)


class TransformerPolicy(nn.Module):
    """Acts in autoregressive navigation: an encoder (2 layers) reads the task, a decoder (2) velocities and times so
    far."""

    def __init__(self, scale: float = 0.1):
        super().__init__()
        self.task, self.seen = nn.Linear(1, WIDTH), nn.Linear(3, WIDTH)
        self.encoder = nn.ModuleList(_Layer(cross=False) for _ in range(2))
        self.decoder = nn.ModuleList(_Layer(cross=True) for _ in range(2))
        self.norm, self.heads = nn.LayerNorm(WIDTH), _Heads(scale)

    @property
    def last_matrix(self) -> nn.Linear:
        """Returns the decoder's last matrix, behind which observations no longer mix."""
        return cast(nn.Linear, cast(_Layer, self.decoder[-1]).feed[-1])

    def memory(self) -> "_Memory":
        return _Memory([[] for _ in self.decoder])

    def step(self, seen: Float[Tensor, "R 4"], memory: "_Memory") -> Gaussian:
        if memory.encoded is None:
            memory.encoded = self._encode(seen[:, None])
        mean, std = self._decode(seen[:, None], memory.encoded, memory.past)
        return mean[:, 0], std[:, 0]

    def whole(self, seen: Float[Tensor, "R T 4"]) -> Gaussian:
        return self._decode(seen, self._encode(seen), [None for _ in self.decoder])

    def _encode(self, seen: Float[Tensor, "R T 4"]) -> list[tuple[Tensor, Tensor]]:
        """Returns keys and values of the task for each layer of the decoder; no action changes them."""
        encoded = self.task(seen[:, :1, :1])
        for layer in self.encoder:
            encoded = layer(encoded)
        return [layer.crossed(encoded) for layer in cast(Sequence[_Layer], self.decoder)]

    def _decode(
        self,
        seen: Float[Tensor, "R T 4"],
        encoded: list[tuple[Tensor, Tensor]],
        past: Sequence[list[Tensor] | None],
    ) -> Gaussian:
        x = self.seen(seen[..., 1:])
        for layer, of_task, of_layer in zip(self.decoder, encoded, past, strict=True):
            x = layer(x, of_task, of_layer)
        gaussian: Gaussian = self.heads(self.norm(x))
        return gaussian


@dataclass
class _Memory:
    """Caches keys and values of a rollout for each layer: of its observations, and of the task once it is known."""

    past: list[list[Tensor]]
    encoded: list[tuple[Tensor, Tensor]] | None = None
