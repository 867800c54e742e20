"""medverse_nb: 3D in-context learning for medical images, in a notebook.

    import medverse_nb as mv

Importing is quick: torch and the rest load when a name is first used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Threads that spin while they wait steal the core they wait for: beside one busy process on
# two cores a training step took 6.6 s, and 0.4 s with passive waiting; alone nothing changes.
# Only takes effect before torch is loaded; a value of your own is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from . import datasets as datasets
    from .errors import MedverseError as MedverseError
    from .errors import NotBuiltYet as NotBuiltYet
    from .evaluation import metrics as metrics
    from .inference.autoregressive import predict_array as predict_array
    from .io import read_volume as read_volume
    from .io import write_volume as write_volume
    from .model.registry import available_models as available_models
    from .model.registry import load_model as load_model
    from .session import ICLSession as ICLSession
    from .ui.view import view as view
    from .volume import affine_of as affine_of

__version__ = "0.1.0"

_PUBLIC = {
    "ICLSession": "session",
    "MedverseError": "errors",
    "NotBuiltYet": "errors",
    "affine_of": "volume",
    "available_models": "model.registry",
    "datasets": "",
    "load_model": "model.registry",
    "metrics": "evaluation",
    "predict_array": "inference.autoregressive",
    "read_volume": "io",
    "view": "ui.view",
    "write_volume": "io",
}
__all__ = [*_PUBLIC, "__version__"]  # noqa: PLE0604, names of the table above


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _PUBLIC[name]
    if name in ("datasets", "metrics"):
        value: Any = import_module(f".{module}.{name}" if module else f".{name}", __name__)
    else:
        value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
