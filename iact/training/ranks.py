"""Several processes that train one model together, as `torchrun` starts them; a single process is one rank of one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce

from iact.errors import InputError, TrainingStopped

PATIENCE = timedelta(minutes=10)  # with ranks that are alive but late, such as with their first compilation
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process among the `count` that train together; `local` numbers those of one machine.

    TrainingStopped from every method that needs the others, when one of them is gone."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mean_(self, tensor: torch.Tensor) -> None:
        """Replaces the tensor by its mean over the ranks, the same bits on each."""
        if self.count > 1:
            self._together(lambda: dist.all_reduce(tensor))
            tensor /= self.count

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        if self.count == 1:
            return flag
        flags = torch.tensor(int(flag))  # on the host, so that no GPU is waited for
        self._together(lambda: dist.all_reduce(flags, op=dist.ReduceOp.MAX))
        return bool(flags)

    def gather(self, value: Any) -> list:
        """The values of all ranks, in their order."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        self._together(lambda: dist.all_gather_object(values, value))
        return values

    def first_says(self, make: Callable[[], Result]) -> Result:
        """What the first rank makes of it, on every rank; where it fails with InputError there, it fails with the same
        words on each."""
        if self.count == 1:
            return make()
        outcome: list = [None, None]
        if self.first:
            try:
                outcome[0] = make()
            except InputError as error:
                outcome[1] = str(error)
        self._together(lambda: dist.broadcast_object_list(outcome))
        if outcome[1] is not None:
            raise InputError(outcome[1])
        return outcome[0]

    def share(self, count: int) -> slice:
        """This rank's part of `count` things in order, as even as can be."""
        return slice(self.rank * count // self.count, (self.rank + 1) * count // self.count)

    def _together(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except RuntimeError as error:  # what gloo and NCCL raise when the other end is gone
            last = str(error).strip().splitlines()[-1]
            raise TrainingStopped(f"rank {self.rank}: another of the {self.count} ranks stopped ({last})") from None


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The ranks that this process belongs to by the variables that torchrun sets; it leaves them at the end.

    InputError where there are more of them than GPUs."""
    count, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if count == 1:
        yield Ranks()
        return
    cuda = torch.cuda.is_available() and device != "cpu"
    if cuda and local >= torch.cuda.device_count():
        raise InputError(f"nproc-per-node: expected at most the {torch.cuda.device_count()} GPUs here, got {local + 1}")
    if cuda:
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), count, local)
    finally:
        dist.destroy_process_group()


def share_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with batch normalisation over the pictures of all ranks; names and state stay as they are."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm  # PyTorch's own refuses to run on a CPU
    return model


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation of [B, C, H, W] with the statistics of all ranks, each of which has as many pictures."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # autocast may have made it bf16
        ranks = dist.get_world_size()
        mean = all_reduce(x.mean((0, 2, 3))) / ranks
        centred = x - mean[:, None, None]
        variance = all_reduce((centred**2).mean((0, 2, 3))) / ranks
        with torch.no_grad():
            count = ranks * x.numel() // x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight / torch.sqrt(variance + self.eps)
        return centred * scale[:, None, None] + self.bias[:, None, None]
