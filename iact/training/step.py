"""One step of training: a batch augmented, through the network, its loss, the gradients of all ranks, the update."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from iact.capture import Captured
from iact.config import TrainConfig
from iact.data.augment import NUMBERS, augment
from iact.data.feed import CropBatch
from iact.data.shapes import ShapeModes
from iact.geometry import to_heatmap
from iact.heatmaps import round_by
from iact.inference import autocast
from iact.layouts import Layout
from iact.losses import landmark_loss
from iact.model import IACT, normalise
from iact.model.transformer import Block
from iact.training.ranks import Ranks


class Step:
    """Computes gradients and moves the weights; on CUDA, where `config.graph` asks for it, as two CUDA graphs.

    The gradients of all parameters lie in one tensor, which ranks add up, the norm is taken of, and one call clears."""

    def __init__(
        self,
        config: TrainConfig,
        model: IACT,
        optimiser: torch.optim.Optimizer,
        layout: Layout,
        margin: float,
        shapes: ShapeModes | None,
        dtype: torch.dtype | None,
        ranks: Ranks,
        say: Callable[[str], None],
    ):
        self.config, self.model, self.optimiser, self.layout, self.margin = config, model, optimiser, layout, margin
        self.shapes, self.dtype, self.ranks = shapes, dtype, ranks
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.gradients = flat_gradients(model)
        self.network = torch.compile(model) if config.compile else model
        self.compute, self.update = self._compute, self._update
        if captures(config, self.device):
            self.compute = Captured(self._compute, self.device, say)
            if not self.scaler.is_enabled():  # which asks the GPU whether to make the step
                self.update = Captured(self._update, self.device, say)

    def __call__(self, batch: CropBatch, seed: int, whole: int, share: slice) -> torch.Tensor:
        """The mean loss (0-d, detached) of this rank's pictures, which are `share` of a batch of `whole` ones."""
        chance = self._draw(seed, whole)[share]
        self.gradients.zero_()
        loss = torch.zeros((), device=self.device)
        parts = self.config.accumulate
        tensors = (batch.pictures, batch.landmarks, batch.visible, chance)
        for part in zip(*(tensor.chunk(parts) for tensor in tensors), strict=True):
            loss += self.compute(*part)
        self.ranks.mean_(self.gradients)
        self.update()
        return loss

    def _draw(self, seed: int, count: int) -> torch.Tensor:
        """What chance decides for a batch, [count, NUMBERS + 2 K]: the augmentation, and how landmarks are rounded."""
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.rand(count, NUMBERS + 2 * self.layout.num_landmarks, generator=generator)
        return numbers.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else numbers

    @torch.backends.cudnn.flags(enabled=True, deterministic=True)  # the same bits from run to run
    def _compute(
        self, pictures: torch.Tensor, landmarks: torch.Tensor, visible: torch.Tensor, chance: torch.Tensor
    ) -> torch.Tensor:
        """Adds the gradients of some pictures to `gradients`; their share of the batch's mean loss."""
        config, size = self.config, self.model.config
        batch = augment(
            pictures,
            landmarks,
            visible,
            margin=self.margin,
            size=size.input_size,
            layout=self.layout,
            settings=config.augmentation,
            shapes=self.shapes,
            numbers=chance[:, :NUMBERS],
        )
        points = to_heatmap(batch.landmarks, size.stride)
        with autocast(self.device, self.dtype):
            heatmaps = self.network(normalise(batch.pictures).contiguous(memory_format=torch.channels_last))
        loss = landmark_loss(
            heatmaps,
            points,
            round_by(points, chance[:, NUMBERS:].view_as(points)),
            None,  # covered landmarks are annotated too, and learning them helps
            kind=config.loss,
            sigma=config.sigma,
            map_factor=config.map_factor,
            coordinates=config.coordinates,
            coordinate_weight=config.coordinate_weight,
        )
        loss = loss / config.accumulate
        self.scaler.scale(loss).backward()
        return loss.detach()

    def _update(self) -> None:
        self.scaler.unscale_(self.optimiser)
        if self.config.clip:
            norm = torch.linalg.vector_norm(self.gradients)
            self.gradients *= (self.config.clip / (norm + 1e-6)).clamp(max=1)
        self.scaler.step(self.optimiser)
        self.scaler.update()


def captures(config: TrainConfig, device: torch.device) -> bool:
    """Whether the step is to run as CUDA graphs."""
    return config.graph and device.type == "cuda"


def flat_gradients(model: nn.Module) -> torch.Tensor:
    """One tensor of zeros that holds the gradients of all parameters, each laid out as its parameter."""
    parameters = list(model.parameters())
    flat = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.as_strided(parameter.shape, parameter.stride())
    return flat


def recompute_blocks(model: nn.Module) -> None:
    """Lets the Transformer blocks forget what they computed, and compute it again for the gradient: less memory."""
    for block in model.modules():
        if isinstance(block, Block):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
