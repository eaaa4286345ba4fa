"""The network: `create_model`, its configuration, and the normalisation of its input."""

from iact.model.iact import IACT, SIZES, ModelConfig, create_model, normalise

__all__ = ["IACT", "SIZES", "ModelConfig", "create_model", "normalise"]
