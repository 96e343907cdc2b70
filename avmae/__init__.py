"""Audiovisual Masked Autoencoders in PyTorch."""
__version__ = "0.1.0"
__all__ = ["AVMAE", "AVMAEConfig", "AVClassifier", "AVClassifierConfig", "load"]

def __getattr__(name: str):
    # lazy: `avmae --help` and the data wing should not wait for torch and timm
    if name in ("AVMAE", "AVMAEConfig"): from avmae.model import avmae as module
    elif name in ("AVClassifier", "AVClassifierConfig"): from avmae.model import classifier as module
    elif name == "load": from avmae import hub as module
    else: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
