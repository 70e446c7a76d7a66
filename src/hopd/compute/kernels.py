"""Compiles `kernels.c` once for this CPU and calls it on tensors: norms, gated activations, attention while decoding.

Torch runs each of these as half a dozen passes over the data, and still does where there is no C compiler, or on a GPU:
only speed and rounding depend on this file.
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
_SIGNATURES = {  # p: a tensor or None, n: an integer, e: a float
    "norm": "ppppnne",
    "norm_backward": "pppppnne",
    "swiglu": "pppnnn",
    "swiglu_backward": "pppppn",
    "attend": "pppppppppnnnnnnee",
}
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "e": ctypes.c_float}


def support(*tensors: Tensor) -> bool:
    """Tells whether kernels are compiled and can take these: plain tensors on a CPU, all of one dtype of `DTYPES`."""
    return all(
        type(t) in (Tensor, nn.Parameter) and t.is_cpu and t.dtype == tensors[0].dtype and t.dtype in DTYPES
        for t in tensors
    ) and (compiled() is not None)


@cache
def compiled() -> ctypes.CDLL | None:
    """Returns the library, from the user's cache or compiled now, which takes seconds.

    Returns None where compiling is impossible, and with HOPD_KERNELS=0 in the environment.
    """
    if switched_off():
        return None
    compiler = shutil.which(os.environ.get("CC") or "cc")
    # The kernels use torch's own OpenMP: a second pool of threads would compete with it for the cores.
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
                new.replace(library)  # atomic, since other processes may compile it now
        loaded = ctypes.CDLL(str(library))
    except (OSError, subprocess.CalledProcessError):
        return None
    for kernel, signature in _SIGNATURES.items():
        for dtype in DTYPES.values():
            function = getattr(loaded, f"{kernel}_{dtype}")
            function.argtypes, function.restype = [_TYPES[letter] for letter in signature], None
    return loaded


def switched_off() -> bool:
    """Tells whether HOPD_KERNELS=0 is in the environment."""
    return os.environ.get("HOPD_KERNELS", "").strip() == "0"


def support_head_width(width: int) -> bool:
    """Tells whether `attend` can compute heads of this width."""
    return width % 16 == 0 and width <= 256


def note() -> str:
    """Describes in a few words whether the kernels are in use, and if not, why."""
    if compiled():
        return "kernels compiled"
    why = "HOPD_KERNELS=0" if switched_off() else "they need a C compiler, cc, on Linux"
    return f"kernels not compiled ({why})"


def norm(
    x: Float[Tensor, "R D"], weight: Float[Tensor, " D"], eps: float, added: Float[Tensor, "R D"] | None = None
) -> Float[Tensor, "R D"]:
    """Returns weight · x / rms(x), with rms(x) = √(mean(x²) + eps), after x += added in place."""
    out = torch.empty_like(x)
    _call("norm", x.dtype, out, x, added, weight, *x.shape, eps)
    return out


def norm_backward(
    grad: Float[Tensor, "R D"], x: Float[Tensor, "R D"], weight: Float[Tensor, " D"], eps: float
) -> tuple[Float[Tensor, "R D"], Float[Tensor, " D"]]:
    """Returns the gradients of x, and of the weight in float32."""
    of_x, of_weight = torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32)
    _call("norm_backward", x.dtype, of_x, of_weight, grad, x, weight, *x.shape, eps)
    return of_x, of_weight


def swiglu(gate: Float[Tensor, "R D"], up: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
    """Returns silu(gate) · up. Both may be halves of one tensor, with the same row stride."""
    out = torch.empty(gate.shape, dtype=gate.dtype)
    _call("swiglu", gate.dtype, out, gate, up, *gate.shape, gate.stride(0))
    return out


def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of gate and up. All three arguments are contiguous and of one shape."""
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
    """Attends with one query per sequence over the cached positions from `first` to `end`.

    The query's own key and value are written to the caches at `end`. `qkv` holds queries, keys and values of H + 2 G
    heads, before rotation by `cos` and `sin`. `query_norm` holds the weights of the query and key norms and their
    epsilon, for models that have them.
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
    """Hashes all that the library depends on: its source, the compiler, the CPU's instructions, torch's OpenMP."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    features = next((line for line in cpus if line.startswith(("flags", "Features"))), platform.machine())
    parts = (SOURCE.read_text(), compiler, " ".join(FLAGS), features, torch.__version__, torch.__file__)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
