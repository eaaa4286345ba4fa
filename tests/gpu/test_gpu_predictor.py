"""The predictor on a GPU: single faces by a CUDA graph, which has to find what the network itself finds."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from iact import Predictor, create_model
from iact.capture import WARM_UP
from iact.checkpoint import Description
from iact.data.synthetic import draw_face
from iact.geometry import landmark_box
from iact.layouts import W300
from iact.predictor import DTYPES

pytestmark = pytest.mark.skipif("IACT_SMALL_TESTS" in os.environ, reason="a whole network is no small test")


@pytest.fixture
def predictor(request) -> Predictor:
    torch.manual_seed(0)
    model = create_model("iact_t", W300.num_landmarks)
    description = Description(model.config, W300, 1.5, 1, "nothing", "")
    return Predictor(model, description, device="cuda", dtype=getattr(request, "param", torch.float32))


@pytest.fixture(scope="module")
def faces() -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures and the boxes [1, 4] of their faces."""
    drawn = [draw_face(seed, 0, W300, size=200)[:2] for seed in range(8)]
    return [(image, landmark_box(landmarks)[None]) for image, landmarks in drawn]


@pytest.mark.parametrize("flip_test", [False, True])
@pytest.mark.parametrize("predictor", DTYPES, indirect=True, ids=str)
def test_a_graph_finds_what_the_network_finds(predictor, faces, flip_test):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a network that cannot be captured says so
        found = [predictor(image, boxes, flip_test=flip_test)[0] for image, boxes in faces]
    assert predictor.model.captured.graph is not None and len(faces) > WARM_UP
    predictor.model = predictor.model.network
    for face, (image, boxes) in zip(found, faces, strict=True):
        (expected,) = predictor(image, boxes, flip_test=flip_test)
        np.testing.assert_allclose(face.landmarks, expected.landmarks, atol=1e-3)
        np.testing.assert_allclose(face.scores, expected.scores, rtol=1e-4)


def test_threads_that_share_a_graph_get_what_each_gets_alone(predictor, faces):
    alone = [predictor(*face)[0].landmarks for face in faces]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda face: predictor(*face)[0].landmarks, faces * 8))
    for found, expected in zip(together, alone * 8, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-3)
