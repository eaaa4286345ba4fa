"""Facial landmarks: train a model, use one, or borrow its ops."""

__version__ = "0.1.0"

__all__ = ["Predictor", "create_model", "metrics", "ops"]

_HOMES = {"Predictor": "iact.predictor", "create_model": "iact.model", "metrics": "iact.metrics", "ops": "iact.ops"}


def __getattr__(name: str):
    """Loads the public names on first use, so that `import iact` costs nothing."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'iact' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    return home if name in ("metrics", "ops") else getattr(home, name)
