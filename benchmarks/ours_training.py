"""Training of iact as the trainer does it, a step at a time, and with parts of it replaced."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import peers_block
import peers_training as peers
import torch
from machine import ROOT

sys.path.insert(0, str(ROOT))

from iact import ops  # noqa: E402
from iact.capture import Captured  # noqa: E402
from iact.config import TrainConfig  # noqa: E402
from iact.data.augment import Batch, augment  # noqa: E402
from iact.data.feed import Feed  # noqa: E402
from iact.model import transformer  # noqa: E402
from iact.training import step as training_step  # noqa: E402
from iact.training.loop import train_step  # noqa: E402
from iact.training.ranks import Ranks  # noqa: E402
from iact.training.run import prepare  # noqa: E402


@dataclass(frozen=True)
class Variant:
    """One way to train iact."""

    settings: dict = field(default_factory=dict)  # of TrainConfig
    attention: Callable = ops.deform_attention
    loss: Callable = ops.heatmap_loss
    room: float = 0.5  # of the device's free memory, for crops


VARIANTS = {
    "ours": Variant(),
    "without_kernels": Variant(attention=peers.plain_attention, loss=peers.heatmap_loss),
    "references": Variant(attention=peers.reference_attention, loss=peers.reference_loss),
    "torchvision": Variant(attention=peers.torchvision_attention, loss=peers.heatmap_loss),
    "without_graph": Variant({"graph": False}),
    "without_device_cache": Variant(room=0),
    "compile": Variant({"compile": True}),
}


class Ours:
    """Training of iact by the trainer's own step, with what the variant replaces.

    `waited` and `augmented` are seconds: those the host has waited for batches, and on a CPU those of augmentation."""

    def __init__(self, name: str, config: TrainConfig):
        self.variant, self.waited, self.augmented = VARIANTS[name], 0.0, 0.0
        settings = self.variant.settings
        if name == "torchvision" and torch.cuda.is_available() and not peers_block.can_be_captured():
            settings = {"graph": False}
        # so many epochs that the learning rate stays what it is after a short warm-up
        config = replace(config, hold_out=0.0, epochs=100_000, warmup_steps=5, **settings)
        self.run = prepare(config, Path("unused"), Ranks(), partial(print, flush=True))
        self.run.model.train()
        if not self.variant.room:
            self.run.feed = Feed(self.run.faces.split, self.run.compute.device, room=0)
        self.chance = torch.Generator().manual_seed(config.seed)

    @property
    def graphed(self) -> bool:
        compute = self.run.compute.compute
        return isinstance(compute, Captured) and compute.graph is not None

    def train(self, steps: int) -> float:
        """Makes that many steps; their mean loss."""
        run, share = self.run, self.run.ranks.share(self.run.batch_size)
        run.loss.zero_()
        run.feed.waited = 0.0
        with self._replaced():
            for batch in run.feed.batches(self._indices() for _ in range(steps)):
                train_step(run, batch, share)
        self.waited += run.feed.waited
        return float(run.loss) / steps

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        """While this one trains; a CUDA graph keeps what it recorded."""
        with ExitStack() as stack:
            stack.enter_context(patch.object(transformer, "deform_attention", self.variant.attention))
            stack.enter_context(patch.object(ops, "heatmap_loss", self.variant.loss))
            if self.run.compute.device.type == "cpu":
                stack.enter_context(patch.object(training_step, "augment", self._timed_augment))
            yield

    def _indices(self) -> torch.Tensor:
        return torch.randperm(len(self.run.faces.train), generator=self.chance)[: self.run.batch_size]

    def _timed_augment(self, *tensors: torch.Tensor, **settings) -> Batch:
        start = time.perf_counter()
        batch = augment(*tensors, **settings)
        self.augmented += time.perf_counter() - start
        return batch
