"""Training in several processes, as torchrun starts them, and what happens when a process is asked to end or dies."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from run_folders import rows
from safetensors.torch import load_file
from small_training import QUICK

from iact import training
from iact.errors import InputError, TrainingPaused
from iact.training import loop
from iact.training.ranks import Ranks, joined

PROGRAM = str(Path(__file__).with_name("small_training.py"))
LIMIT = 60  # seconds for all ranks to end


def _start(ranks: int, out: Path, **settings) -> subprocess.Popen:
    launcher = [sys.executable] if ranks == 1 else [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher = launcher if ranks == 1 else [*launcher, f"--nproc-per-node={ranks}"]
    command = [*launcher, PROGRAM, json.dumps({"out": str(out), **settings})]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)


def _train(ranks: int, out: Path, **settings) -> Path:
    process = _start(ranks, out, **settings)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, printed + errors
    return out


def _losses(folder: Path) -> torch.Tensor:
    return torch.tensor([float(row["loss"]) for row in rows(folder)])


def _wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, "it ended before: " + "".join(process.communicate())
        time.sleep(0.01)


# 40 faces to train on, 10 steps an epoch. Larger rates, and the loss of the coordinates with its jumps from pixel to
# pixel, make runs drift apart from any difference in rounding, that of a weight by 1e-7 too.
FIFTY = {
    "synthetic_faces": 44,
    "epochs": 5,
    "learning_rate": 1e-4,
    "coordinate_weight": 0.0,
    "sync_batch_norm": True,
}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory) -> Path:
    """50 steps by one process."""
    return _train(1, tmp_path_factory.mktemp("one") / "run", **FIFTY)


def _check_alike(run: Path, whole: Path) -> None:
    torch.testing.assert_close(_losses(run), _losses(whole), rtol=1e-5, atol=0)
    first, second = load_file(whole / "last.safetensors"), load_file(run / "last.safetensors")
    assert first.keys() == second.keys()
    assert max((first[name] - second[name]).abs().max() for name in first) < 1e-3


def test_two_ranks_compute_what_one_does(one_rank, tmp_path):
    two = _train(2, tmp_path / "run", **FIFTY)
    _check_alike(two, one_rank)
    assert len(rows(two)) == 5 and (two / "pictures" / "epoch_005.jpg").exists()


def test_ranks_with_their_own_batch_norm_agree_on_what_is_measured_and_saved(tmp_path):
    folder = _train(2, tmp_path / "run", epochs=2)
    assert [row["epoch"] for row in rows(folder)] == ["1", "2"]
    assert all(math.isfinite(float(row["nme_held_out"])) for row in rows(folder))
    assert sorted(path.name for path in folder.glob("*.safetensors")) == ["best.safetensors", "last.safetensors"]


def test_a_batch_that_ranks_cannot_share_is_refused(tmp_path):
    process = _start(2, tmp_path / "run", batch_size=5)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    assert "error: batch-size: expected a multiple of 2 (ranks x accumulate), got 5 faces a batch" in errors
    assert not (tmp_path / "run").exists()


def test_asked_to_stop_a_run_leaves_a_checkpoint_from_which_any_number_of_ranks_goes_on(one_rank, tmp_path):
    process = _start(1, tmp_path / "run", **FIFTY)
    _wait_for(tmp_path / "run" / "resume.pt", process)
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0 and not errors, errors
    assert "--resume goes on from" in printed
    assert torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["epoch"] < 5
    shutil.copytree(tmp_path / "run", tmp_path / "two")
    _train(1, tmp_path / "run", resume=True, **FIFTY)
    assert [row["loss"] for row in rows(tmp_path / "run")] == [row["loss"] for row in rows(one_rank)]
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == (one_rank / "last.safetensors").read_bytes()
    _check_alike(_train(2, tmp_path / "two", resume=True, **FIFTY), one_rank)


def test_a_stop_in_the_middle_of_an_epoch_loses_no_step(miniature, monkeypatch, tmp_path):
    config = replace(QUICK, epochs=2, threads=1)
    whole = training.train(replace(config, out=tmp_path / "whole"))
    steps, compute = [], loop.train_step

    def step_and_ask(*arguments) -> None:
        compute(*arguments)
        steps.append(1)
        if len(steps) == 7:  # of 5 an epoch
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", step_and_ask)
        with pytest.raises(TrainingPaused, match="stopped in epoch 2; --resume goes on"):
            training.train(replace(config, out=tmp_path / "cut"))
    cut = tmp_path / "cut"
    assert torch.load(cut / "resume.pt", weights_only=True)["done"] == 2 and len(steps) == 7
    training.train(replace(config, out=cut, resume=True))
    assert [row["loss"] for row in rows(cut)] == [row["loss"] for row in rows(whole)]
    assert (cut / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()


def test_when_a_rank_dies_all_end_soon_with_a_sentence(tmp_path):
    process = _start(2, tmp_path / "run", epochs=500)
    _wait_for(tmp_path / "run" / "resume.pt", process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    begin = time.monotonic()
    os.kill(int(children[1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode != 0 and time.monotonic() - begin < LIMIT
    assert "another of the 2 ranks stopped" in errors
    assert not any(Path(f"/proc/{child}/cmdline").exists() for child in children)


def test_a_full_disk_ends_all_ranks_with_a_sentence(tmp_path):
    process = _start(2, tmp_path / "run", largest_file=100_000)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    assert "safetensors: cannot be written (File too large)" in errors
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_rank_alone_has_nobody_to_wait_for():
    ranks, tensor = Ranks(), torch.tensor([1.0, 2.0])
    ranks.mean_(tensor)
    assert tensor.tolist() == [1.0, 2.0] and ranks.gather("x") == ["x"] and ranks.any(True) and not ranks.any(False)
    assert [Ranks(rank, 3).share(7) for rank in range(3)] == [slice(0, 2), slice(2, 4), slice(4, 7)]


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="at most the 1 GPUs here, got 2"), joined("auto"):
        pass
