"""CUDA graphs: a function of tensors is recorded once, and from then on started by one call from the host."""

import warnings
from collections.abc import Callable
from threading import Lock

import torch
from torch import nn

WARM_UP = 3  # calls before the recording: libraries choose their algorithms, memory settles


class Captured:
    """A function of tensors of fixed shapes on one GPU, that runs as a CUDA graph after a few calls.

    Its results are overwritten by the next call. It must not wait for the GPU nor depend on values that the host holds.
    Where it cannot be recorded it goes on as it is, and says so once."""

    def __init__(self, function: Callable[..., torch.Tensor | None], device: torch.device, say: Callable[[str], None]):
        self.function, self.device, self.say, self.calls, self.possible = function, device, say, 0, True
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[torch.Tensor] = []
        self.result: torch.Tensor | None = None
        self.stream = torch.cuda.Stream(device)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor | None:
        with torch.cuda.device(self.device):  # what the caller's thread has chosen may be another
            return self._call(inputs)

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
        self.inputs = [tensor.clone() for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            # in the mode "global" the thread that feeds batches could break the recording
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.result = self.function(*self.inputs)
        except RuntimeError as error:
            self.possible = False
            self.say(f"no CUDA graph, the host starts every kernel: {str(error).splitlines()[0]}")
        else:
            self.graph = graph


class PictureGraph(nn.Module):
    """A network on a GPU whose answer to a single picture runs as a CUDA graph: for one picture the host would need
    longer to start the kernels than the GPU to run them. It is not trained any more; threads may share it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.config, self.lock = network, network.config, Lock()
        self.captured = Captured(network, next(network.parameters()).device, warnings.warn)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """What the network makes of pictures [B, 3, S, S] of one size, memory format and dtype of computation."""
        if len(pictures) > 1:
            return self.network(pictures)
        with self.lock:  # until the result is copied, which the next call overwrites
            return self.captured(pictures).clone()
