"""Batches of crops: the same whether all lie on the device or are streamed to it, in order, and with no thread left."""

import itertools
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from iact.data import feed, read_faces
from iact.data.cache import cached_crops
from iact.data.crops import Crops
from iact.data.feed import AHEAD, CropBatch, Feed
from iact.errors import InputError

CPU = torch.device("cpu")
WAYS = pytest.mark.parametrize("room", [0.5, 0], ids=["resident", "streamed"])


def random_crops(count: int = 11) -> Crops:
    generator = torch.Generator().manual_seed(0)
    return Crops(
        pictures=torch.randint(0, 256, (count, 3, 9, 9), generator=generator, dtype=torch.uint8),
        landmarks=torch.rand(count, 29, 2, generator=generator),
        visible=torch.rand(count, 29, generator=generator) < 0.7,
        matrices=np.zeros((count, 2, 3)),
        margin=1.9,
    )


def assert_batches(batches: list[CropBatch], crops: Crops, order: list[torch.Tensor]):
    assert len(batches) == len(order)
    for batch, indices in zip(batches, order, strict=True):
        for name in ("pictures", "landmarks", "visible"):
            got, whole = getattr(batch, name), getattr(crops, name)
            assert got.dtype == whole.dtype and torch.equal(got.cpu(), whole[indices]), name


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


@WAYS
def test_every_batch_in_its_order(room):
    crops, fed = random_crops(), Feed(random_crops(), CPU, room)
    order = [torch.tensor(indices) for indices in ([3, 1, 4, 1], [10], [5, 9, 2, 6, 5, 0], [7, 8], [0, 1, 2])]
    order.insert(2, torch.empty(0, dtype=torch.int64))
    assert fed.resident == (room > 0) and len(fed) == 11
    for _ in range(2):
        assert_batches(list(fed.batches(iter(order))), crops, order)
    assert list(fed.batches([])) == [] and not threads()


@WAYS
def test_batches_belong_to_who_took_them(room):
    crops = random_crops()
    for batch in Feed(crops, CPU, room).batches([torch.arange(11)] * 5):
        assert torch.equal(batch.pictures, random_crops().pictures)
        batch.pictures.zero_()
        batch.landmarks.zero_()
    assert torch.equal(crops.pictures, random_crops().pictures) and torch.equal(
        crops.landmarks, random_crops().landmarks
    )


def test_a_cpu_holds_the_crops_without_a_copy():
    crops = random_crops()
    fed = Feed(crops, CPU)
    for mine, given in zip(fed._crops.tensors, (crops.pictures, crops.landmarks, crops.visible), strict=True):
        assert mine.data_ptr() == given.data_ptr()


def test_the_next_batches_are_on_their_way_and_no_more():
    asked = []
    order = (asked.append(i) or torch.tensor([i]) for i in range(10))
    batches = Feed(random_crops(), CPU, room=0).batches(order)
    assert not asked, "nothing happens before the first batch is asked for"
    for i in range(3):
        assert int(next(batches).pictures.sum()) == int(random_crops().pictures[i].sum())
        assert asked == list(range(i + 1 + AHEAD))
    batches.close()


def test_gathering_goes_on_while_a_batch_is_used(monkeypatch):
    gathered, gather = threading.Semaphore(0), feed._gather

    def counted(tensor, indices, pin):
        assert threading.current_thread() in threads() and not pin
        rows = gather(tensor, indices, pin)
        gathered.release()
        return rows

    monkeypatch.setattr(feed, "_gather", counted)
    batches = Feed(random_crops(), CPU, room=0).batches([torch.arange(4)] * 3)
    next(batches)
    for _ in range(3 * 3):  # three tensors of three batches, though only one was asked for
        assert gathered.acquire(timeout=30)
    batches.close()


WRONG = [torch.tensor([0, 11]), torch.tensor([-1]), torch.tensor([[1]]), torch.tensor([1.0]), torch.tensor([True])]


@WAYS
@pytest.mark.parametrize("indices", WRONG, ids=str)
def test_indices_that_are_none_are_said_in_their_place(room, indices):
    batches = Feed(random_crops(), CPU, room).batches([torch.arange(2), torch.arange(3), indices, torch.arange(4)])
    assert len(next(batches)) == 2 and len(next(batches)) == 3
    with pytest.raises(InputError, match="^indices: expected "):
        next(batches)
    assert not threads()


@WAYS
def test_an_error_in_the_order_reaches_the_consumer(room):
    def order():
        yield torch.arange(2)
        raise KeyError("the sampler's own")

    with pytest.raises(KeyError, match="the sampler's own"):
        list(Feed(random_crops(), CPU, room).batches(order()))
    assert not threads()


def test_an_error_in_the_thread_reaches_the_consumer(monkeypatch):
    calls = itertools.count()

    def failing(tensor, indices, pin):
        if next(calls) == 4:
            raise MemoryError("no pinned memory")
        return tensor[indices]

    monkeypatch.setattr(feed, "_gather", failing)
    batches = Feed(random_crops(), CPU, room=0).batches([torch.arange(2)] * 9)
    assert len(next(batches)) == 2
    with pytest.raises(MemoryError, match="no pinned memory"):
        next(batches)
    assert not threads()


def test_leaving_early_ends_the_thread():
    fed = Feed(random_crops(), CPU, room=0)
    endless = (torch.tensor([i % 11]) for i in itertools.count())
    batches = fed.batches(endless)
    next(batches)
    assert len(threads()) == 1
    batches.close()
    assert not threads()
    for _ in fed.batches(endless):
        break
    assert not threads()
    with pytest.raises(ZeroDivisionError):
        for batch in fed.batches(endless):
            len(batch) / 0
    del batch
    assert len(list(fed.batches([torch.arange(2)]))) == 1


def test_a_stream_uses_a_batch_after_its_copy_and_keeps_its_memory(monkeypatch):
    """The order of what is asked of CUDA, without CUDA."""
    calls, gather = [], feed._gather

    class Stream:
        def record_event(self) -> str:
            return f"copy of {calls.pop()} faces"

        def wait_event(self, event: str):
            calls.append(event)

    def gather_pinned(tensor, indices, pin):
        assert pin
        rows = gather(tensor, indices, pin=False)
        calls[:] = [len(rows)]
        return rows

    monkeypatch.setattr(feed, "_gather", gather_pinned)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(assert_is(stream, fed._copying)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: training)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: calls.append((tensor.dim(), stream)))
    fed, training = Feed(random_crops(), CPU, room=0), Stream()
    fed._copying = Stream()
    assert_batches(list(fed.batches([torch.arange(5)])), random_crops(), [torch.arange(5)])
    assert calls == ["copy of 5 faces", (4, training), (3, training), (2, training)]


def assert_is(one, other):
    assert one is other


@WAYS
def test_waited_counts_the_time_for_batches_alone(room, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(feed.time, "perf_counter", lambda: clock[0])

    def order():
        for _ in range(5):
            clock[0] += 1
            yield torch.arange(3)

    fed = Feed(random_crops(), CPU, room)
    for _ in fed.batches(order()):
        clock[0] += 100
    assert fed.waited == 5
    fed.waited = 0.0
    list(fed.batches([torch.arange(3)]))
    assert fed.waited == 0


@pytest.mark.parametrize("free, room, fits", [(200, 0.5, True), (199, 0.5, False), (100, 1.0, True), (10**9, 0, False)])
def test_what_fits_into_the_memory_of_a_gpu(monkeypatch, free, room, fits):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    assert feed._fits(100, torch.device("cuda", 1), room) == fits


def test_real_faces_from_their_file(real_data: Path, tmp_path):
    faces = read_faces("300w", real_data / "300w", "helen/testset")
    crops = cached_crops(replace(faces, records=faces.records[:40]), 64, 1.9, tmp_path)
    order = list(torch.randperm(40, generator=torch.Generator().manual_seed(1)).split(7))
    for room in (0.5, 0):
        assert_batches(list(Feed(crops, CPU, room).batches(order)), crops, order)
