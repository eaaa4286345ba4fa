"""Training on a GPU: CUDA graphs against the eager step, what cannot be captured, resuming on another device."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from run_folders import rows
from small_training import QUICK

from iact import training
from iact.capture import WARM_UP, Captured

pytestmark = [
    pytest.mark.usefixtures("miniature"),
    pytest.mark.skipif("IACT_SMALL_TESTS" in os.environ, reason="whole trainings are no small tests"),
]
ON_GPU = replace(QUICK, device="cuda", synthetic_faces=44, learning_rate=1e-4, coordinate_weight=0.0)


def _losses(folder: Path) -> torch.Tensor:
    return torch.tensor([float(row["loss"]) for row in rows(folder)])


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_graphs_compute_what_the_eager_step_does(amp, capsys, tmp_path):
    folders = [
        training.train(replace(ON_GPU, amp=amp, graph=graph, out=tmp_path / str(graph))) for graph in (True, False)
    ]
    assert "no CUDA graph" not in capsys.readouterr().out
    captured, eager = (_losses(folder) for folder in folders)
    torch.testing.assert_close(captured, eager, rtol=1e-4 if amp == "off" else 2e-2, atol=0)
    assert captured[-1] < captured[0]


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"recompute": True}, {"clip": 0.0}], ids=str)
def test_every_way_of_stepping_is_captured(changes, capsys, tmp_path):
    folder = training.train(replace(ON_GPU, amp="bf16", out=tmp_path / "run", **changes))
    assert "no CUDA graph" not in capsys.readouterr().out
    assert _losses(folder).isfinite().all()


def test_a_run_repeats_bit_for_bit(tmp_path):
    files = [
        training.train(replace(ON_GPU, amp="bf16", out=tmp_path / name)) / "last.safetensors" for name in ("a", "b")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_moves_between_devices(tmp_path):
    config = replace(ON_GPU, epochs=1, out=tmp_path / "run")
    training.train(config)
    training.train(replace(config, epochs=2, device="cpu", resume=True))
    training.train(replace(config, epochs=3, resume=True))
    assert _losses(config.out).isfinite().all() and len(_losses(config.out)) == 3


def test_a_captured_function_follows_its_inputs():
    total = torch.zeros(3, device="cuda")

    def add(x: torch.Tensor) -> torch.Tensor:
        total.add_(x)
        return x * 2

    captured = Captured(add, torch.device("cuda"), pytest.fail)
    for i in range(WARM_UP + 4):
        assert torch.equal(captured(torch.full((3,), float(i), device="cuda")), torch.full((3,), 2.0 * i).cuda())
    assert captured.graph is not None and total.tolist() == [sum(range(WARM_UP + 4))] * 3


def test_what_waits_for_the_gpu_goes_on_without_a_graph_and_says_so_once():
    said: list[str] = []
    captured = Captured(lambda x: x * x.sum().item(), torch.device("cuda"), said.append)
    for _ in range(WARM_UP + 3):
        assert captured(torch.ones(2, device="cuda")).tolist() == [2.0, 2.0]
    assert len(said) == 1 and said[0].startswith("no CUDA graph")
