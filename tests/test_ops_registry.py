"""Which of kernel and reference serves a CUDA tensor: shown on the CPU with a planted op."""

import pytest
import torch

from iact.ops import info, registry

X = torch.tensor([1.0, 2.0])


@pytest.fixture(scope="module")
def library():
    """A kernel `planted` in iact_cuda that negates, on the CPU."""
    library = torch.library.Library("iact_cuda", "FRAGMENT")
    library.define("planted(Tensor x) -> Tensor")
    library.impl("planted", torch.neg, "CPU")
    yield library
    library._destroy()


@pytest.fixture
def served(library, monkeypatch):
    """What is registered for CUDA where a kernel takes tensors of two numbers, and its reference doubles."""
    kept = {}
    monkeypatch.setattr(registry, "add_kernel", lambda name, device, kernel, words: kept.update(kernel=kernel))
    monkeypatch.setattr(registry, "COMPILED", set())
    registry.add_cuda_kernel("planted", lambda x: 2 * x, lambda x: x.numel() == 2)
    return kept["kernel"]


@pytest.mark.parametrize("runs", [True, False])
def test_the_kernel_serves_what_fits_where_it_runs(served, monkeypatch, runs):
    monkeypatch.setattr(registry, "kernels_run_on", lambda device: runs)
    assert torch.equal(served(X), -X if runs else 2 * X)
    assert torch.equal(served(torch.ones(3)), torch.full((3,), 2.0))


def test_kernels_run_on_no_gpu_that_is_not_there():
    there = torch.cuda.is_available() and registry.cuda_kernels_are_built()
    assert registry.kernels_run_on(torch.device("cuda", 0)) == there
    assert not registry.kernels_run_on(torch.device("cuda", 63))


@pytest.mark.parametrize(
    "built, gpu, runs, words",
    [
        (False, True, False, "PyTorch reference"),
        (True, False, False, "kernel"),
        (True, True, True, "kernel"),
        (True, True, False, "PyTorch reference (the kernels are not built for this GPU)"),
    ],
)
def test_info_says_what_serves_on_this_gpu(monkeypatch, built, gpu, runs, words):
    monkeypatch.setattr(info, "cuda_kernels_are_built", lambda: built)
    monkeypatch.setattr(info, "kernels_run_on", lambda device: runs)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert info.backends("wing_loss").partition("CUDA: ")[2] == words
