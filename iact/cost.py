"""What a network costs: parameters, work and time, in the form of the paper's Table 1."""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from iact.inference import predict_batch
from iact.layouts import Layout
from iact.model import IACT, fold

LEAST_ROUNDS, ROUNDS = 3, 20
PATIENCE = 2.0  # seconds


@dataclass(frozen=True)
class Cost:
    """Parameters in millions, multiply-accumulates of a picture in 10^9, and the milliseconds from one cut face to its
    landmarks (a median) on `device`, which names threads and dtype as well."""

    parameters_millions: float
    gmac: float
    milliseconds: float
    device: str


def count_parameters(model: nn.Module) -> float:
    """Parameters in millions."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def count_gmac(model: nn.Module, picture: torch.Tensor) -> float:
    """Multiply-accumulates of convolutions, linear layers and attention for one picture [1, 3, S, S], in 10^9."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(picture)
    return counter.get_total_flops() / 2e9


def measure_cost(model: IACT, layout: Layout, device: torch.device, dtype: torch.dtype | None) -> Cost:
    """The cost of a model whose landmarks are the layout's, with its time on that device, autocast to the dtype."""
    model = model.to(device).eval()
    size = model.config.input_size
    picture = torch.full((1, 3, size, size), 127.0, device=device)
    gmac = count_gmac(model, picture)
    folded = fold(model).to(memory_format=torch.channels_last)
    _milliseconds(folded, picture, layout, dtype)  # warms up
    times, begin = [], time.perf_counter()
    while len(times) < LEAST_ROUNDS or len(times) < ROUNDS and time.perf_counter() - begin < PATIENCE:
        times.append(_milliseconds(folded, picture, layout, dtype))
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    precision = str(dtype or torch.float32).removeprefix("torch.")
    return Cost(count_parameters(model), gmac, statistics.median(times), f"{name}{threads}, {precision}")


def _milliseconds(model: IACT, picture: torch.Tensor, layout: Layout, dtype: torch.dtype | None) -> float:
    start = time.perf_counter()
    predict_batch(model, picture, layout, dtype=dtype)[0].cpu()
    return 1e3 * (time.perf_counter() - start)
