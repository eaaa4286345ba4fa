"""Boxes that the predictor asks a detector for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from blob_finder import BLOB, BlobFinder, description, picture

from iact import Predictor
from iact.errors import InputError
from iact.layouts import W300


def test_a_detector_of_one_s_own_is_asked_where_no_boxes_are_given():
    model, seen = BlobFinder(), []

    def detector(image: np.ndarray) -> np.ndarray:
        seen.append(image.shape)
        return np.array([[100.0, 60.0, 260.0, 220.0]])

    predictor = Predictor(model, description(model), device="cpu", dtype=torch.float32, detector=detector)
    (face,) = predictor(picture())
    assert seen == [(300, 401, 3)] and face.box.tolist() == [100, 60, 260, 220]
    assert np.abs(face.landmarks - BLOB).max() < 0.05
    predictor(picture(), [(90, 120, 290, 160)])
    assert len(seen) == 1


@pytest.mark.parametrize(
    "found", [np.ones((4, 5)), np.ones((2, 2, 4)), np.ones(15), None], ids=["5", "3-D", "15", "no"]
)
def test_a_detector_that_gives_no_boxes_is_refused(found):
    model = BlobFinder()
    with pytest.raises(InputError, match=r"detector: expected boxes \[N, 4\]"):
        Predictor(model, description(model), device="cpu", detector=lambda image: found)(picture())


def test_a_detector_may_give_a_tensor_or_one_box():
    model, box = BlobFinder(), torch.tensor([100.0, 60.0, 260.0, 220.0])
    for found in (box, box[None]):
        (face,) = Predictor(model, description(model), device="cpu", detector=lambda image, found=found: found)(
            picture()
        )
        assert face.box.tolist() == box.tolist()


def test_boxes_without_an_area_or_beyond_reason_are_no_faces():
    model, found = (
        BlobFinder(),
        [(150, 110, 150, 171), (9, 9, 1, 1), (np.nan, 1, 9, 9), (1, 1, np.inf, 9), (0, 0, 1e200, 9)],
    )
    predictor = Predictor(model, description(model), device="cpu", detector=lambda image: np.array(found))
    assert predictor(picture()) == []


def test_a_detected_box_is_moved_to_where_the_layout_s_landmarks_lie():
    model = BlobFinder()
    lower = replace(description(model), layout=replace(W300, box_in_face=(0.1, 0.25, 0.5)))
    found = [[100.0, 60.0, 260.0, 220.0], [0.0, 280.0, 100.0, 380.0]]  # the second shows no landmark
    predictor = Predictor(model, lower, device="cpu", dtype=torch.float32, detector=lambda image: found)
    (face,) = predictor(picture())
    np.testing.assert_allclose(face.box, [156, 140, 236, 220])
    assert Predictor(model, lower, device="cpu", detector=lambda image: [])(picture()) == []
