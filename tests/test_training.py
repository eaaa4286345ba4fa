"""The trainer, from the command line to the run folder."""

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from official_files import POINTS_68, pts, write_w300
from run_folders import SPEEDS, command, rows, same_weights
from safetensors.torch import load_file
from small_training import QUICK
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from iact import commands, metrics, training
from iact.__main__ import run as run_program
from iact.checkpoint import Description, load_weights, save_weights
from iact.config import PAPER
from iact.data import Face, Faces, read_faces
from iact.data.augment import Augmentation
from iact.data.crops import cut_faces
from iact.errors import InputError, TrainingStopped
from iact.geometry import CROP_MARGIN
from iact.inference import predict_arrays
from iact.layouts import COFW, W300
from iact.model import create_model
from iact.training import loop, run

ROOT = Path(__file__).resolve().parents[1]


def test_training_lowers_the_loss_and_leaves_a_whole_run_folder(run_folder):
    log = rows(run_folder)
    assert list(log[0]) == ["epoch", "loss", "nme_held_out", "learning_rate", *SPEEDS]
    assert [row["epoch"] for row in log] == ["1", "2", "3"]
    assert float(log[-1]["loss"]) < 0.9 * float(log[0]["loss"])
    assert all(float(row["images_per_second"]) > 0 and math.isfinite(float(row["nme_held_out"])) for row in log)
    assert json.loads((run_folder / "config.json").read_text())["synthetic_faces"] == 24
    assert cv2.imread(str(run_folder / "pictures" / "epoch_001.jpg")).std() > 10
    events = EventAccumulator(str(run_folder)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert events.Tags()["images"] == ["predictions"]


def test_the_weights_say_how_they_were_chosen(run_folder):
    nmes = [float(row["nme_held_out"]) for row in rows(run_folder)]
    _, best = load_weights(run_folder)
    _, last = load_weights(run_folder / "last.safetensors")
    assert (best.epoch, last.epoch) == (1 + int(np.argmin(nmes)), 3)
    assert (best.chosen_on, last.chosen_on) == ("2 held-out training faces", "")
    assert best.layout is W300 and best.trained_on == "synthetic train, 22 faces"


def test_the_trainer_measures_what_a_file_of_predictions_would_show(run_folder):
    model, description = load_weights(run_folder / "last.safetensors")
    faces = read_faces("synthetic", None, "train", layout=W300, count=24, seed=run.FACES_SEED)
    _, aside = run.hold_out(faces, QUICK.hold_out, run.FACES_SEED)
    crops = cut_faces(aside, model.config.input_size, CROP_MARGIN)
    predicted, _ = predict_arrays(model, crops.pictures, crops.matrices, W300, sigma=description.sigma)
    truth = np.stack([face.landmarks for face in aside.records])
    nme = metrics.nme(predicted, truth, metrics.interocular(truth, W300)).mean()
    assert float(rows(run_folder)[-1]["nme_held_out"]) == pytest.approx(nme, rel=1e-4)  # as many digits are logged


def test_the_seed_decides_the_weights(miniature, small_run, tmp_path):
    config = replace(QUICK, epochs=1)
    again = training.train(replace(config, out=tmp_path / "again"))
    other = training.train(replace(config, out=tmp_path / "other", seed=1))
    assert same_weights(again / "last.safetensors", small_run / "last.safetensors")
    assert not same_weights(other / "last.safetensors", small_run / "last.safetensors")


def test_without_a_folder_named_runs_are_numbered(miniature, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = [training.train(replace(QUICK, epochs=1, synthetic_faces=8)).as_posix() for _ in range(2)]
    assert names == ["runs/synthetic-iact_t", "runs/synthetic-iact_t-2"]


def test_a_loss_that_is_no_number_keeps_the_last_good_weights(miniature, monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "learning_rate", lambda config, step, total: 1e-3 if step < 5 else 1e30)
    with pytest.raises(TrainingStopped, match=r"not finite in epoch 2; the last good weights are .*last\.safetensors"):
        training.train(replace(QUICK, out=tmp_path / "run"))
    model, description = load_weights(tmp_path / "run" / "last.safetensors")
    assert description.epoch == 1
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_weights_that_the_last_step_ruined_are_not_saved(miniature, monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "learning_rate", lambda config, step, total: 1e-3 if step < 9 else math.inf)
    with pytest.raises(TrainingStopped, match="the weights are not finite in epoch 2"):
        training.train(replace(QUICK, out=tmp_path / "run"))
    assert load_weights(tmp_path / "run" / "last.safetensors")[1].epoch == 1


def test_a_stopped_run_exits_with_code_1_and_one_sentence(miniature, monkeypatch, capsys, tmp_path):
    config = replace(QUICK, learning_rate=1e30, warmup_steps=0, out=tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["train", *command(config)])
    with pytest.raises(SystemExit) as exit:
        run_program(commands.train)
    assert exit.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the ") and error.endswith("no epoch was finished before\n")
    assert not list((tmp_path / "run").glob("*.safetensors"))


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"batch_size": -4},
        {"learning_rate": math.nan},
        {"learning_rate": 0.0},
        {"sigma": 0.0},
        {"seed": -1},
        {"clip": -1.0},
        {"coordinate_weight": -1.0},
        {"ema_faces": -3.0},
        {"accumulate": 0},
        {"accumulate": 3},
        {"hold_out": 1.0},
        {"hold_out": -0.1},
        {"hold_out": math.nan},
        {"hold_out": 0.99},
        {"device": "cuda:99"},
        {"model": "iact_xxl"},
        {"seed": 2**63},
        {"augmentation": Augmentation(flip=1.5)},
        {"augmentation": Augmentation(rotation=math.nan)},
        {"augmentation": Augmentation(scale=-0.1)},
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_and_leave_nothing(changes, miniature, tmp_path):
    (name,) = changes
    with pytest.raises(InputError, match=name.replace("_", ".")):
        training.train(replace(QUICK, out=tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_all_faces_of_a_photograph_are_on_one_side():
    points = np.zeros((68, 2))
    records = tuple(Face(f"face {i}", f"photograph {i % 7}", points, "here") for i in range(40))
    train, held_out = run.hold_out(Faces(W300, "train", records), 0.25, seed=3)
    assert {face.image for face in train.records}.isdisjoint({face.image for face in held_out.records})
    assert sorted(face.name for face in (*train.records, *held_out.records)) == sorted(face.name for face in records)
    assert 10 <= len(held_out) < 10 + 6
    other = run.hold_out(Faces(W300, "train", records), 0.25, seed=4)[1]
    assert [face.name for face in other.records] != [face.name for face in held_out.records]


def test_with_nothing_held_out_best_is_last(miniature, tmp_path):
    folder = training.train(replace(QUICK, hold_out=0.0, epochs=2, out=tmp_path / "run"))
    assert (folder / "best.safetensors").read_bytes() == (folder / "last.safetensors").read_bytes()
    assert load_weights(folder)[1].epoch == 2
    assert all(float(row["nme_training"]) > 0 for row in rows(folder))
    assert (folder / "pictures" / "epoch_002.jpg").exists()


@pytest.mark.parametrize("data", ["300w", "wflw", "cofw"])
def test_every_data_set_trains(data, real_data, miniature, monkeypatch, tmp_path):
    def read_a_few(*arguments, **settings) -> Faces:
        faces = read_faces(*arguments, **settings)
        return replace(faces, records=faces.records[:16])

    monkeypatch.setattr(run, "read_faces", read_a_few)
    folder = training.train(replace(QUICK, data=data, root=real_data / data, epochs=1, out=tmp_path / "run"))
    _, description = load_weights(folder)
    trained = 13 if data == "300w" else 14  # two of the 16 are held out, and there a third of the same photograph
    assert description.layout.name == data and description.trained_on == f"{data} train, {trained} faces"
    assert math.isfinite(float(rows(folder)[0]["loss"]))


@pytest.mark.parametrize(
    "changes",
    [
        {"amp": "bf16"},
        {"loss": "adaptive_wing"},
        {"loss": "mse"},
        {"coordinates": "wing"},
        {"ema_faces": 0.0},
        {"accumulate": 2},
    ],
    ids=str,
)
def test_every_recipe_switch_trains(changes, miniature, small_run, tmp_path):
    folder = training.train(replace(QUICK, epochs=1, out=tmp_path / "run", **changes))
    assert math.isfinite(float(rows(folder)[0]["loss"]))
    assert not same_weights(folder / "last.safetensors", small_run / "last.safetensors")


def test_recomputed_blocks_give_the_same_weights(miniature, small_run, tmp_path):
    folder = training.train(replace(QUICK, epochs=1, recompute=True, out=tmp_path / "run"))
    assert same_weights(folder / "last.safetensors", small_run / "last.safetensors")


def test_a_finished_run_says_what_came_out(miniature, capsys, tmp_path):
    folder = training.train(replace(QUICK, epochs=1, out=tmp_path / "run"))
    last = f"NME {float(rows(folder)[-1]['nme_held_out']):.2f} % on 2 held-out faces"
    printed = capsys.readouterr().out
    assert last in printed and "images/s with what is done between epochs" in printed


def _write_weights(path: Path, name: str, **switches) -> Path:
    model = create_model(name, COFW.num_landmarks, **switches)
    save_weights(path, model, Description(model.config, COFW, 1.5, 1, "nothing", ""))
    return path


def test_start_from_another_layout_copies_all_but_the_head(miniature, tmp_path):
    source = _write_weights(tmp_path / "cofw.safetensors", "iact_t")
    still = replace(QUICK, learning_rate=1e-12, epochs=1, start_from=source, out=tmp_path / "run")
    model, _ = load_weights(training.train(still))
    begun = load_file(source)
    for name, parameter in model.named_parameters():
        if name.startswith("head.1."):
            assert len(parameter) == 68
        else:
            torch.testing.assert_close(parameter.detach(), begun[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("name", "switches"), [("iact_s", {}), ("iact_t", {"block": "vit"}), ("iact_t", {"stem": 16})])
def test_start_from_another_model_is_refused(name, switches, miniature, tmp_path):
    source = _write_weights(tmp_path / "other.safetensors", name, **switches)
    with pytest.raises(InputError, match="other.safetensors: weights of another model .*(does not fit|block vit)"):
        training.train(replace(QUICK, start_from=source, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_command_line_has_every_setting(monkeypatch):
    seen = []
    monkeypatch.setattr(commands.training, "run_training", seen.append)
    wanted = replace(QUICK, hold_out=0.0, start_from=Path("a b"), loss="mse", resume=True)
    monkeypatch.setattr(sys, "argv", ["train", *command(wanted), "--augmentation.flip", "0.25"])
    with pytest.raises(SystemExit):
        run_program(commands.train)
    assert asdict(seen[0]) == asdict(replace(wanted, augmentation=replace(wanted.augmentation, flip=0.25)))


def test_flags_win_over_the_paper_recipe(monkeypatch):
    seen = []
    monkeypatch.setattr(commands.training, "run_training", seen.append)
    monkeypatch.setattr(sys, "argv", ["train", "--recipe", "paper", "--epochs", "7"])
    with pytest.raises(SystemExit):
        run_program(commands.train)
    assert asdict(seen[0]) == asdict(replace(PAPER, epochs=7))


def test_a_training_says_which_faces_its_folder_lacks(miniature, capsys, tmp_path):
    for index in range(4):
        write_w300(tmp_path, "helen/trainset", f"{index}a")
    training.train(replace(QUICK, data="300w", root=tmp_path, epochs=1, hold_out=0.0, out=tmp_path / "run"))
    found = capsys.readouterr().out
    assert all(sentence in found for sentence in read_faces("300w", tmp_path, "train").missing) and "lfpw" in found


def test_a_face_in_profile_does_not_end_the_training(miniature, tmp_path):
    for index in range(4):
        write_w300(tmp_path, "helen/trainset", f"{index}a")
    profile = [POINTS_68[36] if index == 45 else point for index, point in enumerate(POINTS_68)]
    write_w300(tmp_path, "helen/trainset", "profile", pts(profile))
    config = replace(QUICK, data="300w", root=tmp_path, epochs=1, hold_out=0.0, out=tmp_path / "run")
    (row,) = rows(training.train(config))
    assert math.isfinite(float(row["nme_training"]))
