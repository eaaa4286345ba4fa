"""Landmarks of one's own from end to end: check, train, evaluate and predict with files alone, by the command line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from own_set import HEADER, LAYOUT, PLACES, draw_set, points_of, write_layout, write_table
from programs import iact
from small_training import MINIATURE

from iact.checkpoint import Description, load_weights, save_weights
from iact.commands import measure
from iact.data import read_faces
from iact.data.crops import cut_faces
from iact.data.synthetic import draw_face
from iact.geometry import CROP_MARGIN, landmark_box
from iact.inference import predict_arrays
from iact.layouts import W300, WFLW
from iact.metrics import interocular, nme
from iact.model import IACT, SIZES
from iact.plots import save_image
from iact.predictor import Predictor

QUICK = ("--epochs", 16, "--batch-size", 8, "--warmup-steps", 10, "--learning-rate", 5e-3, "--ema-faces", 100)
PLAIN = ("--threads", 1, "--device", "cpu", "--amp", "off", "--hold-out", 0.1)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The set: 48 drawn faces to train on and 16 to test with."""
    return draw_set(tmp_path_factory.mktemp("own") / "my set", train=48, test=16)


@pytest.fixture(scope="module")
def own_run(root, tmp_path_factory) -> Path:
    """A miniature trained on the set."""
    folder, threads = tmp_path_factory.mktemp("runs") / "five", torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "iact_t", MINIATURE)
        ended = iact("train", "--data", "points", "--root", root, *QUICK, *PLAIN, "--out", folder)
    torch.set_num_threads(threads)
    assert ended.code == 0, ended.err
    return folder


def test_a_sound_set_has_no_problems(root, tmp_path):
    ended = iact("check-dataset", "--data", "points", "--root", root, "--sheet", tmp_path / "sheet.png")
    assert ended.code == 0 and "no problems" in ended.out and (tmp_path / "sheet.png").is_file()
    assert "of 64 faces; by these, box_in_face is [" in ended.out and "(landmark " in ended.out


def test_broken_pictures_and_faces_in_two_splits_are_found(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "set")
    (copy / "pictures/train 3.png").write_text("not a picture")
    shutil.copy(copy / "pictures/train 5.png", copy / "pictures/test 5.png")
    ended = iact("check-dataset", "--data", "points", "--root", copy, "--sheet", tmp_path / "sheet.png")
    assert ended.code == 1 and "train 3.png: not a picture" in ended.out and "train 5.png" in ended.out
    (copy / "test.csv").write_text("picture\n")
    ended = iact("check-dataset", "--data", "points", "--root", copy, "--sheet", tmp_path / "sheet.png")
    assert ended.code == 1 and "test.csv:1: expected a column 'image', got picture" in ended.out
    (copy / "layout.json").write_text("{}")
    ended = iact("check-dataset", "--data", "points", "--root", copy, "--sheet", tmp_path / "other.png")
    assert ended.said("layout.json: no 'name'") and not (tmp_path / "other.png").exists()


@pytest.mark.parametrize("flip_test", [(), ("--flip-test",)])
def test_the_model_has_learnt_the_landmarks(flip_test, own_run, root, tmp_path):
    ended = iact(
        *("evaluate", "--weights", own_run, "--data", "points", "--root", root, "--split", "test"),
        *("--out", tmp_path / "out", "--device", "cpu", "--amp", "off", *flip_test),
    )
    assert ended.code == 0, ended.err
    numbers = json.loads((tmp_path / "out/metrics.json").read_text())
    assert numbers["faces"] == 16 and len(numbers["per_landmark"]) == 5
    assert numbers["nme_interocular"] < 20 and numbers["protocol"]["flip_test"] is bool(flip_test)


def test_the_flip_test_needs_the_mirror_pairs(own_run, root):
    model, description = load_weights(own_run)
    faces = read_faces("points", root, "test")
    crops, truth = cut_faces(faces, 64, CROP_MARGIN), np.stack([face.landmarks for face in faces.records])
    unpaired = replace(description.layout, mirror=tuple(range(5)))
    right, wrong = (
        nme(
            predict_arrays(model, crops.pictures, crops.matrices, layout, flip_test=True)[0],
            truth,
            interocular(truth, faces.layout),
        ).mean()
        for layout in (description.layout, unpaired)
    )
    assert right < 20 and wrong > 1.5 * right


def test_weights_carry_their_landmarks(own_run, tmp_path):
    """Nothing but the weights file is left of the set."""
    weights = shutil.copy(own_run / "best.safetensors", tmp_path / "five.safetensors")
    predictor = Predictor.from_pretrained(weights, device="cpu")
    assert predictor.layout.names == tuple(PLACES) and predictor.layout.mirror == (1, 0, 2, 4, 3)
    assert predictor.layout.box_in_face == tuple(LAYOUT["box_in_face"])
    image, landmarks, _ = draw_face(0, 1, W300, 128, "test")
    truth = points_of(landmarks)
    (face,) = predictor(image, boxes=[landmark_box(truth)])
    assert face.landmarks.shape == (5, 2) and face.scores.shape == (5,)
    assert nme(face.landmarks[None], truth[None], interocular(truth[None], predictor.layout)) < 40


def test_boxes_of_a_detector_become_boxes_around_the_landmarks(own_run):
    image, landmarks, _ = draw_face(0, 1, W300, 128, "test")
    x0, y0, x1, y1 = landmark_box(landmarks)
    centre, side = np.array([x0 + x1, y0 + y1]) / 2, max(x1 - x0, y1 - y0)
    found = np.array([[*(centre - side / 2), *(centre + side / 2)]])
    (face,) = Predictor.from_pretrained(own_run, device="cpu", detector=lambda image: found)(image)
    centre, side = centre + side * np.array(LAYOUT["box_in_face"][:2]), side * LAYOUT["box_in_face"][2]
    np.testing.assert_allclose(face.box, [*(centre - side / 2), *(centre + side / 2)])


def test_prediction_by_the_command_line(own_run, tmp_path):
    save_image(tmp_path / "face.png", draw_face(0, 1, W300, 128)[0])
    arguments = ("--input", tmp_path / "face.png", "--out", tmp_path / "out", "--whole-picture", "--device", "cpu")
    ended = iact("predict", "--weights", own_run, *arguments)
    assert ended.code == 0, ended.err
    text = (tmp_path / "out/landmarks.json").read_text()
    assert json.loads(text)["layout"] == "five" and list((tmp_path / "out/pictures").iterdir())


def test_other_landmarks_are_refused(own_run, small_run, root, tmp_path):
    out, split = ("--out", tmp_path / "out"), ("--data", "points", "--root", root, "--split", "test")
    assert iact("evaluate", "--weights", small_run, *split, *out).said("68 landmarks (300w), but points has 5")
    assert iact("evaluate", "--weights", own_run, *out).said("unknown landmark layout 'five'")
    assert iact("evaluate", "--weights", own_run, "--data", "points", *out).said("needs a root")
    unknown = iact("evaluate", "--weights", own_run, "--data", "points", "--root", root, "--split", "val", *out)
    assert unknown.said("unknown split 'val' of data set 'points': expected one of test, train")
    copy = shutil.copytree(root, tmp_path / "set")
    write_layout(copy, landmarks=["chin" if name == "nose" else name for name in PLACES], edges=[])
    header = [column.replace("nose", "chin") for column in HEADER]
    write_table(copy / "test.csv", [["pictures/test 0.png", *range(10)]], header)
    ended = iact("evaluate", "--weights", own_run, *split[:3], copy, *split[4:], *out)
    assert ended.said("predicts 5 landmarks (five), but points has 5", "cannot be taken for") and not out[1].exists()


def test_a_run_goes_on_with_its_own_landmarks_only(own_run, root, tmp_path, miniature):
    copy, run = shutil.copytree(root, tmp_path / "set"), shutil.copytree(own_run, tmp_path / "run")
    write_layout(copy, landmarks=[*PLACES][::-1])
    before = (run / "resume.pt").read_bytes()
    more = ("--epochs", 17, *QUICK[2:], *PLAIN, "--out", run, "--resume")
    ended = iact("train", "--data", "points", "--root", copy, *more)
    assert ended.said("not a checkpoint of this run", "other landmarks, or in another order")
    assert (run / "resume.pt").read_bytes() == before


def test_98_landmarks_are_measured_on_68(tmp_path):
    write_layout(tmp_path / "set")
    (tmp_path / "set/layout.json").write_text('{"name": "300w"}')
    image, landmarks, _ = draw_face(0, 0, W300, 128)
    save_image(tmp_path / "set/0.png", image)
    header = ["image", *(f"{index}_{axis}" for index in range(68) for axis in "xy")]
    write_table(tmp_path / "set/test.csv", [["0.png", *landmarks.ravel()]], header)
    weights = tmp_path / "wflw.safetensors"
    save_weights(weights, IACT(MINIATURE), Description(MINIATURE, WFLW, 1.5, 1, "nothing", ""))
    report = measure(weights, "points", tmp_path / "set", "test", flip_test=True, device="cpu", amp="off")
    assert report.per_landmark.shape == (68,) and "98 landmarks converted to 68" in report.protocol.weights
