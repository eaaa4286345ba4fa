"""Batches of crops on a GPU: the same bits resident and streamed, never too early, never waited for by the host."""

import os

import numpy as np
import pytest
import torch

from iact.data.crops import Crops
from iact.data.feed import AHEAD, Feed
from iact.errors import InputError

WAYS = pytest.mark.parametrize("room", [0.5, 0], ids=["resident", "streamed"])
CYCLES = 20_000_000  # some 10 ms that a stream is busy


@pytest.fixture(scope="module")
def crops() -> Crops:
    generator = torch.Generator().manual_seed(0)
    return Crops(
        pictures=torch.randint(0, 256, (300, 3, 97, 97), generator=generator, dtype=torch.uint8),
        landmarks=torch.rand(300, 98, 2, generator=generator),
        visible=torch.rand(300, 98, generator=generator) < 0.7,
        matrices=np.zeros((300, 2, 3)),
        margin=1.9,
    )


def random_order(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 300, (64 - i % 3,), generator=generator) for i in range(count)]


def assert_batch(batch, crops: Crops, indices: torch.Tensor):
    for name in ("pictures", "landmarks", "visible"):
        got = getattr(batch, name)
        assert got.is_cuda and torch.equal(got.cpu(), getattr(crops, name)[indices]), name


@WAYS
def test_the_same_bits_as_on_the_cpu(crops, room):
    fed, order = Feed(crops, torch.device("cuda"), room), random_order(20)
    assert fed.resident == (room > 0)
    for batch, indices in zip(list(fed.batches(order)), order, strict=True):  # a list: every batch is kept to the end
        assert_batch(batch, crops, indices)


@WAYS
@pytest.mark.parametrize("own_stream", [False, True])
def test_a_slow_consumer_reads_what_it_asked_for(crops, room, own_stream):
    """Each batch is read long after the host let go of it and asked for the next ones."""
    order, sums = random_order(30), []
    stream = torch.cuda.Stream() if own_stream else torch.cuda.current_stream()
    fed = Feed(crops, torch.device("cuda"), room)
    stream.wait_stream(torch.cuda.current_stream())  # for the crops that Feed has moved
    with torch.cuda.stream(stream):
        for batch in fed.batches(order):
            torch.cuda._sleep(CYCLES)
            weights = torch.arange(1, len(batch) + 1, device="cuda")
            sums.append((batch.pictures.sum((1, 2, 3)) * weights).sum() + batch.visible.sum())
            del batch
    torch.cuda.synchronize()
    for total, indices in zip(sums, order, strict=True):
        pictures, weights = crops.pictures[indices].sum((1, 2, 3)), torch.arange(1, len(indices) + 1)
        assert int(total) == int((pictures * weights).sum() + crops.visible[indices].sum())


@WAYS
@pytest.mark.skipif("PYTORCH_NO_CUDA_MEMORY_CACHING" in os.environ, reason="without the cache, freeing memory waits")
def test_the_host_does_not_wait_for_the_gpu(crops, room):
    fed, order = Feed(crops, torch.device("cuda"), room), random_order(6 + AHEAD)
    pinned = [indices.pin_memory() for indices in order]  # so that no pinned memory need be asked for below
    del pinned
    list(fed.batches(order))
    torch.cuda.synchronize()
    busy = torch.cuda.Event()
    torch.cuda._sleep(100 * CYCLES)
    busy.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(fed.batches(order))
        assert not busy.query(), "the batches were there only when the GPU had done all its work"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for batch, indices in zip(batches, order, strict=True):
        assert_batch(batch, crops, indices)


@WAYS
def test_indices_that_are_none_leave_the_gpu_usable(crops, room):
    fed = Feed(crops, torch.device("cuda"), room)
    with pytest.raises(InputError, match="indices: expected numbers from 0 to 299, got 7 to 300"):
        list(fed.batches([torch.arange(4), torch.tensor([300, 7])]))
    (batch,) = fed.batches([torch.arange(4)])
    assert_batch(batch, crops, torch.arange(4))


def test_memory_on_the_gpu_stays_bounded(crops):
    fed = Feed(crops, torch.device("cuda"), room=0)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for batch in fed.batches(random_order(50)):
        batch.pictures.sum()
        torch.cuda.current_stream().synchronize()
    largest = 64 * (crops.pictures[0].nbytes + crops.landmarks[0].nbytes + crops.visible[0].nbytes)
    assert torch.cuda.max_memory_allocated() - before < (AHEAD + 4) * largest
