"""How errors are measured while a condition gets worse, and what comes with shipped weights."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from iact import Predictor
from iact.checkpoint import load_weights
from iact.data import read_faces
from iact.data.synthetic import draw_face
from iact.geometry import landmark_box
from iact.layouts import W300

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import limits  # noqa: E402
import ship_weights  # noqa: E402
from weights_card import card  # noqa: E402


@pytest.fixture(scope="module")
def sample() -> limits.Sample:
    return limits.Sample.of(*draw_face(0, 3, W300)[:2])


def brightness(sample: limits.Sample, points: np.ndarray) -> np.ndarray:
    """Of the picture's pixels nearest to those points, NaN outside of it."""
    x, y = np.round(points).astype(int).T
    height, width = sample.image.shape[:2]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    found = np.full(len(points), np.nan)
    found[inside] = sample.image[y[inside], x[inside]].mean(axis=-1)
    return found


@pytest.mark.parametrize("degrees", [15, 90, 180])
def test_landmarks_turn_with_the_picture(sample, degrees):
    turned = limits.tilt(sample, degrees)
    back = limits.tilt(turned, -degrees)
    np.testing.assert_allclose(back.landmarks, sample.landmarks, atol=1e-6)
    np.testing.assert_allclose(turned.box, landmark_box(turned.landmarks))
    soft = [limits.blur(one, 4) for one in (sample, turned)]  # so that half a pixel makes no difference
    assert np.nanmean(np.abs(brightness(soft[0], sample.landmarks) - brightness(soft[1], turned.landmarks))) < 4


def test_a_small_face_has_its_landmarks_where_they_were(sample):
    small = limits.shrink(sample, 32)
    assert small.side == pytest.approx(32, abs=0.5) and small.image.shape[0] < sample.image.shape[0]
    ratio = sample.image.shape[1] / small.image.shape[1]
    np.testing.assert_allclose((small.landmarks + 0.5) * ratio - 0.5, sample.landmarks, atol=0.3)


def test_what_is_in_the_way_changes_the_picture_but_not_the_truth(sample):
    for change, strength in ((limits.blur, 3), (limits.darken, 10), (limits.add_noise, 25), (limits.cover, 40)):
        changed = change(sample, strength)
        assert np.array_equal(changed.landmarks, sample.landmarks) and np.array_equal(changed.box, sample.box)
        assert changed.image.dtype == np.uint8 and not np.array_equal(changed.image, sample.image)
    covered = (limits.cover(sample, 40).image != sample.image).any(-1)
    assert covered[int(sample.box[3]) - 3, int(sample.box[::2].mean())] and not covered[: int(sample.box[1])].any()
    assert limits.darken(sample, 10).image.mean() == pytest.approx(sample.image.mean() / 10, abs=0.6)


def test_boxes_move_and_grow_as_they_say(sample):
    shifted, grown = limits.shift_box(sample, 20), limits.resize_box(sample, 130)
    assert np.linalg.norm((shifted.box - sample.box)[:2]) == pytest.approx(0.2 * sample.side)
    np.testing.assert_allclose(grown.box[2:] - grown.box[:2], 1.3 * (sample.box[2:] - sample.box[:2]))
    np.testing.assert_allclose(grown.box[:2] + grown.box[2:], sample.box[:2] + sample.box[2:])


def test_what_is_shipped_is_half_as_large_and_loads_by_name(small_run, tmp_path, monkeypatch):
    shipped = tmp_path / "small.safetensors"
    ship_weights.halve(small_run / "last.safetensors", shipped)
    tensors, kinds = load_file(shipped), {torch.bfloat16, torch.float32, torch.int64}
    assert {tensor.dtype for tensor in tensors.values()} == kinds
    assert all(tensor.dtype == torch.float32 for name, tensor in tensors.items() if "running_" in name)
    assert shipped.stat().st_size < 0.6 * (small_run / "last.safetensors").stat().st_size
    monkeypatch.setattr("iact.checkpoint.SHIPPED", tmp_path)
    model, description = load_weights(Path("small"))
    assert next(model.parameters()).dtype == torch.float32 and description.layout is W300
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"other: no weights here .* or one of: small\)"):
        load_weights(Path("other"))


def test_the_card_says_what_was_measured(small_run, monkeypatch):
    monkeypatch.setattr(limits, "CONDITIONS", {"light, %": (limits.darken, (50, 5))})
    predictor = Predictor.from_pretrained(small_run, device="cpu")
    faces = read_faces("synthetic", None, "test", layout=W300, count=4)
    rows = limits.measure_limits(predictor, faces)
    assert [(row["condition"], row["strength"]) for row in rows] == [
        ("as they are", None),
        ("light, %", 50),
        ("light, %", 5),
    ]
    report = {"nme_interocular": 3.456, "nme_interpupil": 4.5, "fr_0.1": 0.5, "auc_0.1": 0.6}
    report |= {"intervals_95": {"nme_interocular": [3.4, 3.5]}}
    report |= {"protocol": {"data_set": "300w", "split": "x", "faces": 4, "box_rule": "landmarks x 1.25"}}
    both = {"plain": report, "flip_test": report}
    weights = {"parameters": 3790000, "input_size": 128, "landmarks": 68, "trained_on": "300w train", "epoch": 9}
    result = {"megabytes": 7.6, "weights": weights, "trained": both, "shipped": both, "shipped_auto": both}
    text = card("iact-300w", result | {"detector": {"found": 97.0, "nme": 3.9, "fr": 1.2}}, rows)
    assert "| as shipped, by default | 3.46 [3.40, 3.50] | 4.50 | 0.50 | 0.600 |" in text
    assert "NME 3.90, FR 1.20" in text and "non-commercial" in text
    assert f"| light, % | 50: {rows[1]['nme']:.1f} ({rows[1]['score']:.2f}), 5: " in text


def test_the_portrait_shows_every_condition(small_run):
    pytest.importorskip("skimage")
    sheet = ship_weights.picture_of_limits(Predictor.from_pretrained(small_run, device="cpu"))
    assert sheet.shape == (len(limits.CONDITIONS) * ship_weights.SHOWN, 4 * ship_weights.SHOWN, 3)
