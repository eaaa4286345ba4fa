"""`iact train`."""

from typing import Annotated, Literal

import tyro

from iact.config import TrainConfig
from iact.training import train as run_training


def train(
    config: Annotated[TrainConfig, tyro.conf.arg(name="")],
    recipe: Literal["default", "paper"] = "default",
) -> None:
    """Train a model. With no arguments: drawn faces, the smallest model, a few minutes on two CPU cores.

    Args:
        recipe: Where the settings below start from; flags win over it. "paper" is the paper's letter."""
    run_training(config)
