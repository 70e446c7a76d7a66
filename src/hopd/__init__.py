"""hopd: horizon-controlled on-policy distillation.

`Recipe`, `Distiller`, `evaluate`, `probe`, `compare`, and `horizon` for a loop of your own. Names are imported when
they are used, so that `import hopd` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hopd import horizon as horizon
    from hopd.analysis.comparison import compare as compare
    from hopd.analysis.probe import probe as probe
    from hopd.distiller import Distiller as Distiller
    from hopd.evaluation import evaluate as evaluate
    from hopd.recipe import Recipe as Recipe

__version__ = "0.1.0"
__all__ = ["Distiller", "Recipe", "compare", "evaluate", "horizon", "probe"]

_HOMES = {
    "Distiller": "hopd.distiller",
    "Recipe": "hopd.recipe",
    "compare": "hopd.analysis.comparison",
    "evaluate": "hopd.evaluation",
    "probe": "hopd.analysis.probe",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "horizon":
        return importlib.import_module("hopd.horizon")
    raise AttributeError(f"module 'hopd' has no attribute {name!r}")
