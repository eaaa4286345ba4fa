"""How long a call takes on a CPU or a GPU, and how fast memory is there: the floor under work that memory bounds."""

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from machine import ROOT

sys.path.insert(0, str(ROOT))

from iact.capture import recording  # noqa: E402

Inputs = tuple[torch.Tensor, ...]
CPU_CACHE = 64 << 20  # bytes: more than a process usually gets of the last-level cache
MOST_SETS = 16
PATIENCE = 3.0  # seconds


@dataclass(frozen=True)
class Timing:
    """What was measured of one call.

    milliseconds: the median. spread: from the first quartile to the third, in ms, 0 for one round. rounds: how many
    there were. graphed: replayed from a CUDA graph. peak_memory_mb: the most a call holds on the GPU beside its inputs,
    in 10^6 bytes; None on a CPU."""

    milliseconds: float
    spread: float
    rounds: int
    graphed: bool
    peak_memory_mb: float | None


def measure(call: Callable, sets: Sequence[Inputs], seconds: float, least_rounds: int = 3) -> Timing:
    """Times `call(*inputs)` over all sets of inputs in turn, for about that many seconds.

    The call has to have run before: whatever it compiles or loads is its own affair. On a GPU the time is between two
    events around all sets, in a CUDA graph where the call can be captured, after a warm-up of 50 ms. On a CPU it is the
    wall time of one call; a call so slow that `least_rounds` would take over `PATIENCE` seconds gets fewer."""
    on_gpu = sets[0][0].is_cuda
    return (_measure_on_gpu if on_gpu else _measure_on_cpu)(call, sets, seconds, least_rounds)


def rotated(inputs: Inputs) -> list[Inputs]:
    """The inputs and copies of them, four caches full: a call that gets them in turn finds none in the cache."""
    device = inputs[0].device
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else CPU_CACHE
    size = sum(tensor.nbytes for tensor in inputs)
    copies = min(MOST_SETS, max(2, math.ceil(4 * cache / size))) - 1
    return [inputs, *(tuple(_copy(tensor) for tensor in inputs) for _ in range(copies))]


def copy_bandwidth(device: torch.device, mebibytes: int, seconds: float) -> float:
    """Bytes per second, read and written together, of a copy between two buffers of that size: the floor's measure."""
    source = torch.rand(mebibytes << 18, device=device)
    target = torch.rand_like(source)  # written once, so that its pages exist
    timing = measure(lambda source, target: target.copy_(source), [(source, target)], seconds)
    return 2 * source.nbytes / timing.milliseconds * 1e3


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _summary(milliseconds: list[float], graphed: bool, peak_memory_mb: float | None) -> Timing:
    quartiles = statistics.quantiles(milliseconds, method="inclusive") if len(milliseconds) > 1 else [0.0, 0.0, 0.0]
    spread = quartiles[2] - quartiles[0]
    return Timing(statistics.median(milliseconds), spread, len(milliseconds), graphed, peak_memory_mb)


def _measure_on_cpu(call: Callable, sets: Sequence[Inputs], seconds: float, least_rounds: int) -> Timing:
    rounds: list[float] = []
    while sum(rounds) < (PATIENCE if len(rounds) < least_rounds else seconds) * 1e3:
        inputs = sets[len(rounds) % len(sets)]
        start = time.perf_counter()
        call(*inputs)
        rounds.append((time.perf_counter() - start) * 1e3)
    return _summary(rounds, False, None)


def _measure_on_gpu(call: Callable, sets: Sequence[Inputs], seconds: float, least_rounds: int) -> Timing:
    peak_memory = _peak_memory(call, sets[0])
    graph = _capture(call, sets)
    replay = graph.replay if graph else lambda: [call(*inputs) for inputs in sets]
    warm = max(statistics.median(_between_events(replay, 3)), 1e-3)
    _between_events(replay, math.ceil(50 / warm))  # the clock of an idle GPU has to rise first
    rounds = _between_events(replay, min(200, max(least_rounds, math.ceil(seconds * 1e3 / warm))))
    return _summary([one / len(sets) for one in rounds], graph is not None, peak_memory)


def _between_events(run: Callable, rounds: int) -> list[float]:
    """Milliseconds of each run, all of them queued before the first is waited for."""
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for start, end in pairs:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairs]


def _capture(call: Callable, sets: Sequence[Inputs]) -> torch.cuda.CUDAGraph | None:
    """A CUDA graph of the call on each set, or None where something in the call cannot be captured.

    The results of all sets live until the end of the capture: each has memory of its own, none stays in the cache."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call(*sets[0])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with recording(graph, side):
            results = [call(*inputs) for inputs in sets]
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    del results
    return graph


def _peak_memory(call: Callable, inputs: Inputs) -> float:
    call(*inputs)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(*inputs)
    return (torch.cuda.max_memory_allocated() - before) / 1e6
