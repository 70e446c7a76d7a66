"""hopd: horizon-controlled on-policy distillation.

`Recipe` and `Distiller` train; `horizon` and `objective` serve a loop of your own, with `load`, `NativeEngine`,
`Sampling` and `LocalTeacher`; `evaluate`, `probe` and `compare` measure. Names are imported when they are used, so that
`import hopd` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hopd import horizon as horizon
    from hopd import objective as objective
    from hopd.analysis.comparison import compare as compare
    from hopd.analysis.probe import probe as probe
    from hopd.distiller import Distiller as Distiller
    from hopd.evaluation import evaluate as evaluate
    from hopd.model import load as load
    from hopd.recipe import Recipe as Recipe
    from hopd.rollout import NativeEngine as NativeEngine
    from hopd.rollout import Sampling as Sampling
    from hopd.teacher import LocalTeacher as LocalTeacher

__version__ = "0.4.0"

_HOMES = {
    "Distiller": "hopd.distiller",
    "LocalTeacher": "hopd.teacher",
    "NativeEngine": "hopd.rollout",
    "Recipe": "hopd.recipe",
    "Sampling": "hopd.rollout",
    "compare": "hopd.analysis.comparison",
    "evaluate": "hopd.evaluation",
    "load": "hopd.model",
    "probe": "hopd.analysis.probe",
}
_ROOMS = ("horizon", "objective")
__all__ = [*_HOMES, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"hopd.{name}")
    raise AttributeError(f"module 'hopd' has no attribute {name!r}")
