"""The command line from end to end: train, evaluate, predict, and how each says what is wrong."""

import csv
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints
from unittest.mock import patch

import numpy as np
import pytest
import torch
from official_files import write_cofw
from programs import Ended, iact

from iact import commands
from iact.checkpoint import Description, save_weights
from iact.config import RECIPES
from iact.data import ImageFile
from iact.data.synthetic import draw_face
from iact.errors import TrainingStopped
from iact.layouts import W300, WFLW
from iact.model import create_model
from iact.plots import save_image

ROOT = Path(__file__).resolve().parents[1]
METRICS = {"nme_interocular", "nme_interpupil", "fr_0.1", "auc_0.1"}


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory) -> tuple[Path, Ended]:
    out = tmp_path_factory.mktemp("evaluation") / "of it"
    return out, iact("evaluate", "--weights", trained, "--data", "synthetic", "--out", out)


def test_training_leaves_weights_settings_and_a_log(trained):
    assert {"best.safetensors", "last.safetensors", "resume.pt", "config.json", "log.csv"} <= {
        path.name for path in trained.iterdir()
    }
    config = json.loads((trained / "config.json").read_text())
    assert (config["synthetic_faces"], config["batch_size"], config["seed"], config["amp"]) == (16, 4, 3, "off")


def test_a_run_is_not_overwritten(trained):
    assert iact("train", "--out", trained).said(str(trained), "--resume", "--out")


def test_evaluation_writes_numbers_with_their_protocol(evaluated):
    out, ended = evaluated
    assert ended.code == 0, ended.err
    written = {"metrics.json", "per_face.csv", "predictions.csv", "tables.md", "ced.png", "landmark_errors.png"}
    assert written | {"worst.jpg"} == {path.name for path in out.iterdir()}
    numbers = json.loads((out / "metrics.json").read_text())
    assert METRICS | {"faces", "protocol"} <= set(numbers)
    assert numbers["faces"] == numbers["protocol"]["faces"] == 200
    assert numbers["protocol"]["flip_test"] is False and "last.safetensors" not in numbers["protocol"]["weights"]
    errors = [float(row["nme_interocular"]) for row in csv.DictReader((out / "per_face.csv").open())]
    assert numbers["nme_interocular"] == pytest.approx(np.mean(errors)) and len(errors) == 200
    assert f"{numbers['nme_interocular']:.2f}" in ended.out and "chosen on 4 held-out training faces" in ended.out
    assert ImageFile(out / "ced.png").read().std() > 10


def w300_with_one_face(root: Path) -> Path:
    """The folders of 300W with a single face, in HELEN's test set."""
    image, landmarks, _ = draw_face(0, 0, W300)
    save_image(root / "helen/testset/1.png", image)
    points = "\n".join(f"{x + 1:.3f} {y + 1:.3f}" for x, y in landmarks)
    (root / "helen/testset/1.pts").write_text(f"version: 1\nn_points: 68\n{{\n{points}\n}}\n")
    return root


def test_evaluation_says_which_faces_are_missing(trained, tmp_path):
    root, out = w300_with_one_face(tmp_path / "300w"), tmp_path / "out"
    ended = iact(
        "evaluate",
        "--weights",
        trained,
        "--data",
        "300w",
        "--root",
        root,
        "--split",
        "full",
        "--out",
        out,
        "--flip-test",
    )
    assert ended.code == 0, ended.err
    sentences = ["helen/testset: 1 of 330 faces", "lfpw/testset: 0 of 224 faces", "ibug: 0 of 135 faces"]
    assert all(sentence in ended.out for sentence in sentences)
    protocol = json.loads((out / "metrics.json").read_text())["protocol"]
    assert protocol["missing"] == sentences and protocol["faces"] == 1 and protocol["flip_test"] is True


def wflw_without_attributes(root: Path) -> Path:
    """The folders of WFLW with a single test face that has none of the six attributes."""
    image, landmarks, _ = draw_face(0, 0, W300)
    save_image(root / "WFLW_images/a/1.png", image)
    points = np.resize(landmarks, (98, 2)).ravel()
    lists = root / "WFLW_annotations/list_98pt_rect_attr_train_test"
    lists.mkdir(parents=True)
    tokens = [*points, 0, 0, 9, 9, *[0] * 6, "a/1.png"]
    (lists / "list_98pt_rect_attr_test.txt").write_text(" ".join(map(str, tokens)) + "\n")
    return root


@pytest.fixture(scope="module")
def wflw_weights(tmp_path_factory) -> Path:
    model, path = create_model("iact_t", 98), tmp_path_factory.mktemp("weights") / "wflw.safetensors"
    save_weights(path, model, Description(model.config, WFLW, 1.5, 1, "nothing", ""))
    return path


def test_a_subset_without_faces_is_said_in_one_sentence(wflw_weights, tmp_path):
    root, out = wflw_without_attributes(tmp_path / "wflw"), tmp_path / "out"
    ended = iact(
        "evaluate", "--weights", wflw_weights, "--data", "wflw", "--root", root, "--split", "blur", "--out", out
    )
    assert ended.said("wflw blur", "no faces") and not out.exists()


def test_weights_of_another_layout_are_refused(wflw_weights, tmp_path):
    write_cofw(tmp_path, "test")
    out = tmp_path / "out"
    ended = iact("evaluate", "--weights", wflw_weights, "--data", "cofw", "--root", tmp_path, "--out", out)
    assert ended.said(str(wflw_weights), "98 landmarks", "cofw has 29") and not out.exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--data", "300w"), ("300w", "needs a root")),
        (("--data", "300w", "--root", "no/such/folder", "--split", "common"), ("no/such/folder", "no such folder")),
        (("--split", "nonsense"), ("nonsense", "expected one of train, val, test")),
        (("--device", "cuda:77"), ("cuda:77",)),
    ],
)
def test_evaluation_refuses_what_it_cannot_use(trained, tmp_path, arguments, words):
    out = tmp_path / "out"
    assert iact("evaluate", "--weights", trained, "--out", out, *arguments).said(*words) and not out.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("train", "--epochs", "many"),
        ("train", "--model", "resnet"),
        ("train", "--recipe", "nonsense"),
        ("train", "--recipe"),
        ("train", "--no-such-flag", "1"),
        ("predict", "--weights", "a"),
        ("predict", "--weights", "a", "--input", "b", "--out", "c", "--box", "1", "2", "3"),
        ("check-dataset", "--data", "synthetic", "--root", "."),
    ],
)
def test_arguments_that_make_no_sense_end_in_2_without_a_traceback(arguments):
    ended = iact(*arguments)
    assert ended.code == 2 and ended.err and not ended.out and "Traceback" not in ended.err


FLAGS = {
    "train": "--data --root --split --hold-out --synthetic-faces --model --epochs --batch-size --learning-rate --loss "
    "--out --resume --no-resume --device --amp --seed --threads --recipe",
    "evaluate": "--weights --predictions --out --data --root --split --boxes --detector-model --thresholds "
    "--first-pixel --flip-test --no-flip-test --device --amp",
    "predict": "--weights --input --out --box --whole-picture --no-whole-picture --flip-test --device --amp",
    "export": "--weights --out --format --opset --decode --no-decode --precision",
    "demo": "--weights --port --host --no-browser --device",
    "check-dataset": "--data --root --sheet",
    "info": "",
}


@pytest.mark.parametrize("program", FLAGS)
def test_help_names_plain_flags(program):
    ended = iact(program, "--help")
    assert ended.code == 0 and not ended.err
    assert set(FLAGS[program].split()) <= {word.strip(",│") for word in ended.out.split()}
    assert "--config" not in ended.out


def config_of(*arguments: object):
    """The settings with which `iact train` would start."""
    with patch.object(commands.training, "run_training") as run_training:
        assert iact("train", *arguments).code == 0
    return run_training.call_args.args[0]


def test_flags_win_over_the_recipe_and_the_recipe_over_the_defaults():
    assert config_of() == RECIPES["default"]
    assert config_of("--recipe", "paper") == config_of("--recipe=paper") == RECIPES["paper"]
    default, paper = RECIPES["default"], RECIPES["paper"]
    rate = default.learning_rate
    mixed = config_of("--learning-rate", rate, "--recipe", "paper", "--augmentation.mask", 0.9, "--resume")
    assert mixed.learning_rate == rate != paper.learning_rate and mixed.resume
    assert mixed.schedule == paper.schedule != default.schedule
    assert mixed.augmentation.mask == 0.9 and mixed.augmentation.shift == paper.augmentation.shift
    assert set(get_args(get_type_hints(commands.train)["recipe"])) == set(RECIPES)


def test_a_run_that_cannot_go_on_ends_in_1_and_an_interrupt_in_130():
    for error, code, sentence in (
        (TrainingStopped("no number"), 1, "no number"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ):
        with patch.object(commands.training, "run_training", side_effect=error):
            ended = iact("train")
        assert (ended.code, ended.err) == (code, f"error: {sentence}\n")


def test_a_data_set_with_problems_ends_in_1(tmp_path):
    root = w300_with_one_face(tmp_path / "300w")
    ended = iact("check-dataset", "--data", "300w", "--root", root, "--sheet", tmp_path / "sheet.png")
    assert ended.code == 1 and "1 of 330" in " ".join(ended.out.split()) and (tmp_path / "sheet.png").exists()


def test_info_names_versions_the_extension_and_every_op():
    ended = iact("info")
    words = ended.out.split()
    assert ended.code == 0 and torch.__version__ in words
    assert {"compiled", "decode_heatmaps", "deform_qkv", "heatmap_loss", "wing_loss", "CPU:", "CUDA:"} <= set(words)


def test_scripts_run_without_installing(tmp_path):
    path = ROOT / "scripts" / "train.py"
    done = subprocess.run([sys.executable, path, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "--epochs" in done.stdout and not done.stderr


@pytest.mark.parametrize("script", ["train", "evaluate", "predict", "check_dataset"])
def test_a_script_is_one_program(script, capsys):
    with patch.object(sys, "argv", [f"{script}.py", "--no-such-flag"]), pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
    assert stopped.value.code == 2 and f"{script}.py --help" in capsys.readouterr().err
