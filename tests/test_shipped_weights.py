"""The weights that the package brings along."""

from dataclasses import replace

import numpy as np
import pytest
from programs import iact

from iact import Predictor, metrics
from iact.checkpoint import SHIPPED
from iact.data import read_faces
from iact.geometry import landmark_box
from iact.layouts import W300
from iact.plots import save_image

NAMES = sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_small_and_have_a_card_with_their_terms(name):
    assert (SHIPPED / f"{name}.safetensors").stat().st_size < 45e6
    card = (SHIPPED / f"{name}.md").read_text()
    assert "## Terms" in card and "non-commercial" in card and f'from_pretrained("{name}")' in card
    assert (SHIPPED / f"{name}.jpg").exists()


def test_real_faces_are_as_exact_as_the_card_says(real_data):
    faces = read_faces("300w", real_data / "300w", "helen/testset")
    faces = replace(faces, records=faces.records[::6])
    predictor = Predictor.from_pretrained("iact-300w", device="cpu")
    truth = np.stack([face.landmarks for face in faces.records])
    found = predictor([face.image.read() for face in faces.records], [[landmark_box(points)] for points in truth])
    predicted = np.stack([face.landmarks for (face,) in found])
    nme = metrics.nme(predicted, truth, metrics.interocular(truth, W300))
    assert len(nme) == 55 and nme.mean() < 3.4 and nme.max() < 10
    assert min(face.scores.mean() for (face,) in found) > 0.65  # below which the card tells to distrust them


def test_a_portrait_needs_neither_weights_nor_boxes(tmp_path):
    data = pytest.importorskip("skimage.data")
    save_image(tmp_path / "portrait.png", data.astronaut())
    ended = iact("predict", "--input", tmp_path / "portrait.png", "--out", tmp_path / "found")
    assert ended.code == 0 and "1 face in 1 picture" in ended.out
    (face,) = Predictor.from_pretrained("iact-300w", device="cpu")(data.astronaut())
    assert face.scores.mean() > 0.65
    eyes, chin = face.landmarks[36:48].mean(axis=0), face.landmarks[8]
    np.testing.assert_allclose([eyes, chin], [(225, 103), (221, 177)], atol=4)


def test_a_name_that_is_not_there_is_said_with_those_that_are(tmp_path):
    ended = iact("evaluate", "--weights", "iact-wflw", "--out", tmp_path / "out")
    assert ended.said("iact-wflw: no weights here", "one of: iact-300w")
