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
        warnings.filterwarnings("error", message="no CUDA graph")
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


def test_predictors_with_streams_of_their_own_may_begin_together(faces):
    model = create_model("iact_t", W300.num_landmarks)
    description = Description(model.config, W300, 1.5, 1, "nothing", "")
    predictors = [Predictor(model, description, device="cuda", dtype=torch.float32) for _ in range(3)]

    def predict(predictor: Predictor) -> list[np.ndarray]:
        with torch.cuda.stream(torch.cuda.Stream()):
            return [predictor(*face)[0].landmarks for face in faces]

    with ThreadPoolExecutor(6) as pool:  # two threads for each
        found = list(pool.map(predict, predictors * 2))
    predictors[0].model = predictors[0].model.network
    for each in found:
        np.testing.assert_allclose(each, predict(predictors[0]), atol=1e-3)


def test_a_graph_serves_inference_mode_and_others(predictor, faces):
    with torch.inference_mode():
        first = [predictor(*face)[0].landmarks for face in faces]
    for expected, face in zip(first, faces, strict=True):
        np.testing.assert_allclose(predictor(*face)[0].landmarks, expected, atol=1e-3)
