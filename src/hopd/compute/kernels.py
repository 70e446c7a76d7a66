"""`kernels.c`, compiled once for the CPU at hand and called on tensors: norms, gated activations, decoding's attention.

Torch runs each of these as half a dozen passes over the data. Where there is no C compiler, or no CPU, they stay
torch's: nothing but speed depends on this file.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from platformdirs import user_cache_path
from torch import Tensor, nn

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_SIGNATURES = {  # p: a tensor or none, n: a number, e: a float
    "norm": "ppppnne",
    "norm_backward": "pppppnne",
    "swiglu": "pppnnn",
    "swiglu_backward": "pppppn",
    "attend": "pppppppppnnnnnnee",
}
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "e": ctypes.c_float}


def serve(*tensors: Tensor) -> bool:
    """Whether the kernels take these: plain tensors on a CPU, all of one dtype that they know, and compiled."""
    return all(
        type(t) in (Tensor, nn.Parameter) and t.is_cpu and t.dtype == tensors[0].dtype and t.dtype in DTYPES
        for t in tensors
    ) and (compiled() is not None)


@cache
def compiled() -> ctypes.CDLL | None:
    """The library, from the user's cache or compiled now (seconds); None where that does not work, and with
    HOPD_KERNELS=0 in the environment."""
    if switched_off():
        return None
    compiler = shutil.which(os.environ.get("CC") or "cc")
    # Torch's own threads serve these loops too: a second pool would fight the first for the cores.
    threads = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    if sys.platform != "linux" or compiler is None or not threads.exists():
        return None
    library = _folder() / f"kernels-{_fingerprint(compiler)}.so"
    try:
        if not library.exists():
            library.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=library.parent) as made:
                new = Path(made) / library.name
                subprocess.run(
                    [compiler, *FLAGS, str(SOURCE), str(threads), "-lm", "-o", str(new)],
                    check=True,
                    capture_output=True,
                )
                new.replace(library)  # whole or not at all, whoever else compiles it now
        loaded = ctypes.CDLL(str(library))
    except (OSError, subprocess.CalledProcessError):
        return None
    for kernel, signature in _SIGNATURES.items():
        for dtype in DTYPES.values():
            function = getattr(loaded, f"{kernel}_{dtype}")
            function.argtypes, function.restype = [_TYPES[letter] for letter in signature], None
    return loaded


def switched_off() -> bool:
    return os.environ.get("HOPD_KERNELS", "").strip() == "0"


def attends(width: int) -> bool:
    """Whether `attend` takes heads of this width."""
    return width % 16 == 0 and width <= 256


def note() -> str:
    """For people: whether they are in use."""
    if compiled():
        return "kernels compiled"
    why = "HOPD_KERNELS=0" if switched_off() else "they need a C compiler, cc, on Linux"
    return f"kernels not compiled ({why})"


def norm(
    x: Float[Tensor, "R D"], weight: Float[Tensor, " D"], eps: float, added: Float[Tensor, "R D"] | None = None
) -> Float[Tensor, "R D"]:
    """weight · x / rms(x), after x += added."""
    out = torch.empty_like(x)
    _call("norm", x.dtype, out, x, added, weight, *x.shape, eps)
    return out


def norm_backward(
    grad: Float[Tensor, "R D"], x: Float[Tensor, "R D"], weight: Float[Tensor, " D"], eps: float
) -> tuple[Float[Tensor, "R D"], Float[Tensor, " D"]]:
    """The gradients of x, and of the weight in float32."""
    of_x, of_weight = torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32)
    _call("norm_backward", x.dtype, of_x, of_weight, grad, x, weight, *x.shape, eps)
    return of_x, of_weight


def swiglu(gate: Float[Tensor, "R D"], up: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
    """silu(gate) · up; both may be halves of the same rows."""
    out = torch.empty(gate.shape, dtype=gate.dtype)
    _call("swiglu", gate.dtype, out, gate, up, *gate.shape, gate.stride(0))
    return out


def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up, of one shape and contiguous."""
    of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
    _call("swiglu_backward", gate.dtype, of_gate, of_up, grad, gate, up, gate.numel())
    return of_gate, of_up


def attend(
    qkv: Float[Tensor, "R F"],
    keys: Float[Tensor, "R G K W"],
    values: Float[Tensor, "R G K W"],
    cos: Float[Tensor, "R W"],
    sin: Float[Tensor, "R W"],
    first: Int[Tensor, " R"],
    end: int,
    scale: float,
    query_norm: tuple[Tensor, Tensor, float] | None = None,
) -> Float[Tensor, "R HW"]:
    """One query a row over its cached positions from `first` to `end`, where its own key and value are written.

    `qkv` holds queries, keys and values of H + 2 G heads, not yet rotated; `query_norm` the weights and epsilon of
    norms of each query and key.
    """
    rows, groups, capacity, width = keys.shape
    heads = qkv.shape[1] // width - 2 * groups
    out = torch.empty(rows, heads * width, dtype=qkv.dtype)
    query_weight, key_weight, eps = query_norm or (None, None, 0.0)
    _call(
        "attend", qkv.dtype, out, qkv, keys, values, cos, sin, first, query_weight, key_weight,
        rows, heads, groups, width, capacity, end, scale, eps,
    )  # fmt: skip
    return out


def _call(kernel: str, dtype: torch.dtype, *arguments: Any) -> None:
    library = compiled()
    getattr(library, f"{kernel}_{DTYPES[dtype]}")(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))


def _folder() -> Path:
    return user_cache_path("hopd", appauthor=False)


def _fingerprint(compiler: str) -> str:
    """Of all that the library hangs on: its source, the compiler, the CPU's instructions, torch's threads."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    features = next((line for line in cpus if line.startswith(("flags", "Features"))), platform.machine())
    parts = (SOURCE.read_text(), compiler, " ".join(FLAGS), features, torch.__version__, torch.__file__)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
