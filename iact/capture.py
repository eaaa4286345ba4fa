"""CUDA graphs: a function of tensors is recorded once, and from then on started by one call from the host."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock

import torch
from torch import nn

WARM_UP = 3  # calls before the recording: libraries choose their algorithms, memory settles
RECORDING = Lock()  # one at a time in a process: each begins with emptying the cache, which breaks others


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> Iterator[None]:
    """What is queued inside becomes the graph, and is not computed. RuntimeError where it cannot be recorded.

    Up to version 2.11, PyTorch leaves stream and allocator as they were in a recording that failed
    (github.com/pytorch/pytorch/pull/180395); here they are put right."""
    pool = torch.cuda.graph_pool_handle()
    try:
        # in the mode "global" a thread that feeds batches could break the recording
        with (
            torch.cuda.stream(stream),
            torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            yield
    except RuntimeError:
        with suppress(RuntimeError):  # it has been ended
            torch._C._cuda_endAllocateToPool(stream.device_index, pool)
        raise


class Captured:
    """A function of tensors of fixed shapes on one GPU, that runs as a CUDA graph after a few calls.

    Its results are overwritten by the next call. It must not wait for the GPU nor depend on values that the host holds.
    Where it cannot be recorded it goes on as it is, and says so once."""

    def __init__(self, function: Callable[..., torch.Tensor | None], device: torch.device, say: Callable[[str], None]):
        self.function, self.device, self.say, self.calls, self.possible = function, device, say, 0, True
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[torch.Tensor] = []
        self.result: torch.Tensor | None = None
        self.stream, self.done = torch.cuda.Stream(device), torch.cuda.Event()

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor | None:
        with torch.cuda.device(self.device):  # what the caller's thread has chosen may be another
            return self._call(inputs)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Calls inside come after those before, also where their threads use streams of their own."""
        with torch.cuda.device(self.device):
            torch.cuda.current_stream().wait_event(self.done)
            yield
            self.done.record()

    def _call(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
        self.calls += 1
        if self.possible and self.calls <= WARM_UP:
            return self._aside(inputs)
        if self.possible and self.graph is None:
            self._record(inputs)
        if self.graph is None:
            return self.function(*inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.result

    def _aside(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
        """On a side stream, as the recording will be."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = self.function(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def _record(self, inputs: tuple[torch.Tensor, ...]) -> None:
        """Records the function; nothing is computed by that."""
        graph = torch.cuda.CUDAGraph()
        try:
            with RECORDING, torch.inference_mode(False):  # inputs of inference mode could not be overwritten outside
                self.inputs = [tensor.clone() for tensor in inputs]
                with recording(graph, self.stream):
                    self.result = self.function(*self.inputs)
        except RuntimeError as error:
            self.possible = False
            self.say(f"no CUDA graph, the host starts every kernel: {str(error).splitlines()[0]}")
        else:
            self.graph = graph


class PictureGraph(nn.Module):
    """A network on a GPU whose answer to a single picture runs as a CUDA graph: for one picture the host would need
    longer to start the kernels than the GPU to run them. There is no gradient. Threads may share it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.config, self.lock = network, network.config, Lock()
        self.captured = Captured(self._heatmaps, next(network.parameters()).device, warnings.warn)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """What the network makes of pictures [B, 3, S, S] of one size, memory format and dtype of computation."""
        if len(pictures) > 1:
            return self.network(pictures)
        with self.lock, self.captured.in_turn():  # until the result is copied, which the next call overwrites
            return self.captured(pictures).clone()

    @torch.no_grad()
    def _heatmaps(self, pictures: torch.Tensor) -> torch.Tensor:
        """As the caller's autocast has it, but for its cache: a graph must not use weights that are cast elsewhere."""
        kind = pictures.device.type
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        with torch.autocast(kind, dtype, enabled, cache_enabled=False):
            return self.network(pictures)
