"""The optimiser's parts: which parameters get which rate and decay, the schedule, and the averaged weights."""

import copy
import math

import torch
from torch import nn

from iact.config import TrainConfig

OFFSET_RATE = 0.1  # of the learning rate, for the convolutions that predict sampling offsets


def build_optimiser(model: nn.Module, config: TrainConfig, capturable: bool = False) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels only, and moves the deformable convolutions' offsets slowly.

    A capturable one can be recorded in a CUDA graph: its rates are tensors."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rate = OFFSET_RATE if ".offset." in name else 1.0
        decay = config.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    settings = [{"params": group, "rate": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]
    if capturable:
        device = next(model.parameters()).device
        settings = [{**group, "lr": torch.tensor(config.learning_rate, device=device)} for group in settings]
    return torch.optim.AdamW(settings, lr=config.learning_rate, fused=True, capturable=capturable)


def restore_optimiser(optimiser: torch.optim.Optimizer, state: dict) -> None:
    """Loads a state that may have been saved on another device: how the optimiser computes stays as it is."""
    own = [{name: group[name] for name in ("lr", "fused", "capturable")} for group in optimiser.param_groups]
    optimiser.load_state_dict(state)
    for group, settings in zip(optimiser.param_groups, own, strict=True):
        group.update(settings)


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The rate of that step, before a group's own factor."""
    progress = step / total_steps
    if config.schedule == "step":
        return config.learning_rate * 0.2 ** int(3 * progress)
    warmup = min(config.warmup_steps, total_steps // 10)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of every group, times the group's own factor."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate * group["rate"])
        else:
            group["lr"] = rate * group["rate"]


class AveragedModel:
    """An exponential moving average of a model's weights and BatchNorm statistics, with a half-life in faces."""

    def __init__(self, model: nn.Module, half_life_faces: float, batch_size: int):
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = 0.5 ** (batch_size / half_life_faces) if half_life_faces else 0.0
        self._averaged, self._copied = _state(self.module)
        self._current, self._exact = _state(model)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves towards the model; early steps count more, so that the start is forgotten soon."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, self._current, 1 - decay)
        torch._foreach_copy_(self._copied, self._exact)

    def is_finite(self) -> bool:
        """Whether all weights are numbers; once a weight of the model was none, an average with it never is."""
        return bool(torch.stack([tensor.isfinite().all() for tensor in self._averaged]).all())


def _state(model: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The floating-point tensors of a model's state, and the others (counters)."""
    tensors = [tensor.detach() for tensor in model.state_dict(keep_vars=True).values()]
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
