"""Resuming a run, and what a run folder that holds something else is spared."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from run_folders import SPEEDS, command, contents, rows, same_weights
from small_training import QUICK

from iact import training
from iact.errors import InputError
from iact.training import loop
from iact.training.folder import held_folder
from iact.training.log import RunLog

ROOT = Path(__file__).resolve().parents[1]


def test_a_killed_run_resumes_bit_for_bit(run_folder, tmp_path):
    config = replace(QUICK, out=tmp_path / "run")
    program = [sys.executable, str(ROOT / "scripts/train.py")]
    process = subprocess.Popen([*program, *command(config)], stdout=subprocess.DEVNULL)
    while not (config.out / "resume.pt").exists():
        assert process.poll() is None, "the run ended before it wrote a checkpoint"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(rows(config.out)) < config.epochs
    subprocess.run([*program, *command(replace(config, resume=True))], check=True, stdout=subprocess.DEVNULL)
    for name in ("last.safetensors", "best.safetensors"):
        assert same_weights(config.out / name, run_folder / name)
    for resumed, whole in zip(rows(config.out), rows(run_folder), strict=True):
        speeds = dict.fromkeys(SPEEDS, "")
        assert {**resumed, **speeds} == {**whole, **speeds}


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_interrupted_after_the_log_row_a_run_resumes_bit_for_bit(amp, miniature, monkeypatch, tmp_path):
    """The loss is made so large that the first steps in fp16 overflow: its scale has to be restored too."""
    config = replace(QUICK, amp=amp, map_factor=1000.0)
    whole = training.train(replace(config, out=tmp_path / "whole"))
    record = RunLog.record

    def record_and_stop(log: RunLog, epoch: int, **values: float) -> None:
        record(log, epoch, **values)
        if epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunLog, "record", record_and_stop)
        training.train(replace(config, out=tmp_path / "cut"))
    cut = training.train(replace(config, out=tmp_path / "cut", resume=True))
    assert same_weights(cut / "last.safetensors", whole / "last.safetensors")
    assert [row["loss"] for row in rows(cut)] == [row["loss"] for row in rows(whole)]
    scaler = torch.load(cut / "resume.pt", weights_only=True)["scaler"]
    assert amp == "off" or scaler["scale"] < 2**16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 9}, "holds a run already"),
        ({"resume": True, "model": "iact_s"}, "begun with model iact_t, got iact_s"),
        ({"resume": True, "data": "300w", "root": Path(".")}, "begun with data synthetic, got 300w"),
        ({"resume": True, "learning_rate": 1e-4}, "begun with learning_rate 0.002, got 0.0001"),
    ],
)
def test_a_folder_that_holds_another_run_is_left_alone(changes, message, miniature, small_run):
    before = contents(small_run)
    with pytest.raises(InputError, match=message):
        training.train(replace(QUICK, out=small_run, **changes))
    assert contents(small_run) == before


def test_weights_without_a_checkpoint_are_not_overwritten(tmp_path):
    (tmp_path / "best.safetensors").write_bytes(b"dear to somebody")
    with pytest.raises(InputError, match="holds a run already"):
        training.train(replace(QUICK, out=tmp_path))
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        training.train(replace(QUICK, out=tmp_path, resume=True))
    assert contents(tmp_path) == {"best.safetensors": b"dear to somebody"}


def test_a_run_can_be_made_longer(miniature, tmp_path):
    config = replace(QUICK, epochs=1, out=tmp_path / "run")
    training.train(config)
    training.train(replace(config, epochs=2, resume=True))
    assert [row["epoch"] for row in rows(config.out)] == ["1", "2"]
    assert json.loads((config.out / "config.json").read_text())["epochs"] == 2


def test_a_run_goes_on_for_as_long_as_it_was_begun(miniature, tmp_path):
    config = replace(QUICK, epochs=2, out=tmp_path / "run")
    training.train(config)
    (config.out / "config.json").write_text(json.dumps(replace(config, epochs=3).to_json()))  # as if stopped before
    training.train(replace(config, epochs=None, resume=True))
    assert len(rows(config.out)) == 3
    assert json.loads((config.out / "config.json").read_text())["epochs"] == 3


@pytest.mark.parametrize("change", [lambda state: [1, 2], lambda state: {}, lambda state: {**state, "model": {}}])
def test_a_checkpoint_that_does_not_fit_is_refused(change, miniature, tmp_path):
    config = replace(QUICK, epochs=1, synthetic_faces=8, out=tmp_path / "run")
    training.train(config)
    state = torch.load(config.out / "resume.pt", weights_only=True)
    torch.save(change(state), config.out / "resume.pt")
    before = contents(config.out)
    with pytest.raises(InputError, match="resume.pt: not a checkpoint of this run"):
        training.train(replace(config, epochs=2, resume=True))
    assert contents(config.out) == before


def test_the_log_of_a_folder_that_a_person_edited_is_refused(miniature, tmp_path):
    config = replace(QUICK, epochs=1, out=tmp_path / "run")
    training.train(config)
    (config.out / "log.csv").write_text("time,speed\n1,2\n")
    with pytest.raises(InputError, match="log.csv: not the log of a run"):
        training.train(replace(config, epochs=2, resume=True))
    (config.out / "config.json").write_text("[1")
    with pytest.raises(InputError, match="config.json: the settings of the run cannot be read"):
        training.train(replace(config, epochs=2, resume=True))


def test_two_runs_never_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with held_folder(QUICK) as first, held_folder(QUICK) as second:
        assert [first, second] == [Path("runs/synthetic-iact_t"), Path("runs/synthetic-iact_t-2")]
        with pytest.raises(InputError, match="synthetic-iact_t: another training writes into this folder"):
            training.train(replace(QUICK, out=first))
        (second / "resume.pt").write_bytes(b"dear to somebody")
    assert contents(tmp_path / "runs") == {"synthetic-iact_t-2/resume.pt": b"dear to somebody"}


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path):
    with pytest.raises(InputError, match="batch-size: expected a multiple of 3"):
        training.train(replace(QUICK, out=tmp_path / "run", accumulate=3))
    assert not list(tmp_path.iterdir())


def test_a_finished_run_is_resumed_though_its_log_is_gone(tmp_path, capsys):
    training.train(replace(QUICK, out=tmp_path, epochs=1))
    (tmp_path / "log.csv").unlink()
    training.train(replace(QUICK, out=tmp_path, epochs=1, resume=True))
    assert "best epoch" in capsys.readouterr().out


def test_asked_to_stop_before_the_first_step_a_run_ends_at_once(tmp_path, monkeypatch):
    def cut_slowly(*_):
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the signal was put aside")

    monkeypatch.setattr(loop, "prepare", cut_slowly)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest in a shell's background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            training.train(replace(QUICK, out=tmp_path / "run"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list(tmp_path.iterdir())


def test_weights_are_kept_though_no_face_can_be_measured(tmp_path, monkeypatch):
    """As where all held-out faces are in profile."""
    monkeypatch.setattr(loop, "_errors", lambda predicted, truth, layout: np.zeros(0))
    folder = training.train(replace(QUICK, out=tmp_path / "run"))
    assert same_weights(folder / "best.safetensors", folder / "last.safetensors")
