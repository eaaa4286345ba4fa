"""What a network by CUDA graph does beside the graph, which tests/gpu has."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from iact import capture
from iact.capture import PictureGraph


class Overwriting:
    """A captured function without a GPU: each call overwrites the result of the one before, slowly."""

    def __init__(self, function, device, say):
        self.function, self.result, self.calls, self.in_turn = function, torch.zeros(1, 3, 4, 4), 0, nullcontext

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        for row, given in zip(self.result.flatten(1), self.function(pictures).flatten(1), strict=True):
            for index in range(len(given)):
                row[index] = given[index]
        return self.result


@pytest.fixture
def network(monkeypatch) -> PictureGraph:
    monkeypatch.setattr(capture, "Captured", Overwriting)
    doubling = nn.Conv2d(3, 3, 1, groups=3, bias=False)
    nn.init.constant_(doubling.weight, 2.0)
    doubling.config = SimpleNamespace(stride=4)
    return PictureGraph(doubling.requires_grad_(False))


def test_only_single_pictures_go_through_the_graph(network):
    assert network.config.stride == 4
    assert network(torch.ones(2, 3, 4, 4)).eq(2).all() and network.captured.calls == 0
    assert network(torch.ones(1, 3, 4, 4)).eq(2).all() and network.captured.calls == 1


def test_a_result_outlives_the_next_call_also_in_another_thread(network):
    pictures = [torch.full((1, 3, 4, 4), float(number)) for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(network, pictures))
    assert [result.unique().tolist() for result in found] == [[2.0 * number] for number in range(40)]


def test_the_network_computes_in_the_caller_s_dtype_and_keeps_no_weights_cast(network):
    network.network.requires_grad_(True)  # only such weights would be kept
    with torch.autocast("cpu", torch.bfloat16):
        found = network._heatmaps(torch.ones(1, 3, 4, 4))
        network.network.weight.data.fill_(3.0)
        again = network._heatmaps(torch.ones(1, 3, 4, 4))
    assert found.dtype == torch.bfloat16 and not found.requires_grad
    assert found.eq(2).all() and again.eq(3).all()
    assert network._heatmaps(torch.ones(1, 3, 4, 4)).dtype == torch.float32
