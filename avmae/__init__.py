"""Audiovisual Masked Autoencoders in PyTorch."""
from importlib import import_module
from typing import TYPE_CHECKING, Any
if TYPE_CHECKING:
    from .hub import load
    from .model.avmae import AVMAE, AVMAEConfig
    from .model.classifier import AVClassifier, AVClassifierConfig

__version__ = "0.1.0"
__all__ = ["AVMAE", "AVMAEConfig", "AVClassifier", "AVClassifierConfig", "load"]

_HOMES = {"AVMAE": "model.avmae", "AVMAEConfig": "model.avmae", "AVClassifier": "model.classifier", "AVClassifierConfig": "model.classifier", "load": "hub"}

def __getattr__(name: str) -> Any:
    # lazy: `avmae --help` and the data wing should not wait for torch and timm
    if name not in _HOMES: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
