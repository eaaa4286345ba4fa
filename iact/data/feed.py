"""Batches of crops on the device that trains: all crops lie there where they fit, else they are streamed to it, the
next batches on their way while one is used."""

import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from iact.data.crops import Crops
from iact.errors import InputError

AHEAD = 2  # batches on their way while one is used


@dataclass(frozen=True)
class CropBatch:
    """B faces: `pictures` uint8 [B, 3, S, S], `landmarks` [B, K, 2] in crop px, `visible` bool [B, K]."""

    pictures: torch.Tensor
    landmarks: torch.Tensor
    visible: torch.Tensor

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.pictures, self.landmarks, self.visible


class Feed:
    """Crops, and batches of them on a device.

    `resident` says whether all crops lie on the device; `waited` is how many seconds the host has waited for batches,
    and may be set back to 0."""

    def __init__(self, crops: Crops, device: torch.device, room: float = 0.5):
        """The crops are moved to the device where they take at most `room` of its free memory, else they stay where
        they are. A CPU holds them without a copy. With `room` 0 they are streamed to any device."""
        self.device, self.waited = device, 0.0
        self._crops = CropBatch(crops.pictures, crops.landmarks, crops.visible)
        self.resident = _fits(sum(tensor.nbytes for tensor in self._crops.tensors), device, room)
        if self.resident:
            self._crops = CropBatch(*(tensor.to(device) for tensor in self._crops.tensors))
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" and not self.resident else None

    def __len__(self) -> int:
        return len(self._crops)

    def batches(self, order: Iterable[torch.Tensor]) -> Generator[CropBatch, None, None]:
        """The crops at each index tensor (int64 [B], on the CPU) of `order`, in new tensors on the device.

        Work on them belongs on the CUDA stream that is current when a batch is asked for; while they are streamed, a
        thread calls CUDA too, so record graphs with capture_error_mode "thread_local". InputError, in place of the
        batch, for indices that are none. Leave a loop early by closing the iterator or letting go of it."""
        batches = self._gathered(order) if self.resident else self._streamed(order)
        with closing(batches):
            while True:
                start = time.perf_counter()
                batch = next(batches, None)
                self.waited += time.perf_counter() - start
                if batch is None:
                    return
                yield batch

    def _gathered(self, order: Iterable[torch.Tensor]) -> Generator[CropBatch, None, None]:
        for indices in order:
            self._check(indices)
            if self.device.type == "cuda":  # pinned, or the host would wait for all that the device still has to do
                indices = indices.pin_memory().to(self.device, non_blocking=True)
            yield CropBatch(*(tensor.index_select(0, indices) for tensor in self._crops.tensors))

    def _streamed(self, order: Iterable[torch.Tensor]) -> Generator[CropBatch, None, None]:
        thread = ThreadPoolExecutor(1, "feed")
        coming: deque[Future] = deque()
        try:
            for indices in order:
                coming.append(thread.submit(self._send, indices))
                if len(coming) > AHEAD:
                    yield self._receive(*coming.popleft().result())
            while coming:
                yield self._receive(*coming.popleft().result())
        finally:
            thread.shutdown(cancel_futures=True)

    def _send(self, indices: torch.Tensor) -> tuple[CropBatch, torch.cuda.Event | None]:
        """In the thread: a batch, and for a GPU the event after which it is there.

        What is pinned here is PyTorch's to reuse once its copy is done, which saves buffers and events of our own."""
        self._check(indices)
        to_gpu = self._copying is not None
        with torch.cuda.stream(self._copying) if to_gpu else nullcontext():
            rows = (_gather(tensor, indices, pin=to_gpu) for tensor in self._crops.tensors)
            batch = CropBatch(*(row.to(self.device, non_blocking=to_gpu) for row in rows))
            return batch, self._copying.record_event() if to_gpu else None

    def _receive(self, batch: CropBatch, sent: torch.cuda.Event | None) -> CropBatch:
        """The batch, for use on the current stream, which waits for it while the host goes on."""
        if sent is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(sent)
            for tensor in batch.tensors:  # or its memory would be free for the next copy while this stream still reads
                tensor.record_stream(stream)
        return batch

    def _check(self, indices: torch.Tensor) -> None:
        """InputError unless the indices are faces: a GPU would stop for good at one that is not."""
        if indices.dtype != torch.int64 or indices.dim() != 1 or indices.device.type != "cpu":
            found = f"{indices.dtype} {list(indices.shape)} on {indices.device}"
            raise InputError(f"indices: expected torch.int64 [B] on the CPU, got {found}")
        if len(indices) and not (0 <= int(indices.min()) and int(indices.max()) < len(self)):
            least, most = int(indices.min()), int(indices.max())
            raise InputError(f"indices: expected numbers from 0 to {len(self) - 1}, got {least} to {most}")


def _fits(size: int, device: torch.device, room: float) -> bool:
    """Whether `size` bytes are at most `room` of the free memory; always on a CPU, where they lie already."""
    if device.type != "cuda":
        return room > 0
    free, _ = torch.cuda.mem_get_info(device)
    return size <= room * free


def _gather(tensor: torch.Tensor, indices: torch.Tensor, pin: bool) -> torch.Tensor:
    """The rows at `indices`, in a new tensor on the host.

    Copied by NumPy: on one core and without Python's lock. PyTorch would wait for cores that the training step uses."""
    rows = torch.empty(len(indices), *tensor.shape[1:], dtype=tensor.dtype, pin_memory=pin)
    # indices are checked before; "clip" is what NumPy can do without a copy of the result
    np.take(tensor.numpy(), indices.numpy(), axis=0, out=rows.numpy(), mode="clip")
    return rows
