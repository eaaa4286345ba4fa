"""The network: `create_model`, its configuration, the normalisation of its input, and `fold` for inference."""

from iact.model.fold import fold
from iact.model.iact import IACT, SIZES, ModelConfig, create_model, normalise

__all__ = ["IACT", "SIZES", "ModelConfig", "create_model", "fold", "normalise"]
