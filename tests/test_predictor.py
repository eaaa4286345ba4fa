"""From pictures and boxes to landmarks in them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from blob_finder import BLOB, BlobFinder, description, picture

from iact import Predictor, create_model
from iact.checkpoint import save_weights
from iact.data.synthetic import draw_face
from iact.errors import InputError
from iact.inference import find_precision
from iact.layouts import W300


@pytest.fixture
def finder() -> Predictor:
    model = BlobFinder()
    return Predictor(model, description(model), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = create_model("iact_t", W300.num_landmarks)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_weights(path, model, description(model))
    return path


BOXES = {
    "enlarged": (150, 110, 213, 171),
    "reduced": (60.5, 20.25, 310.5, 260),
    "reduced much": (-170, -200, 550, 500),
    "wide": (90, 120, 290, 160),
    "beyond the left border": (-60, 60, 220, 220),
    "beyond the lower right corner": (120, 90, 480, 420),
}


@pytest.mark.parametrize("flip_test", [False, True])
@pytest.mark.parametrize("name", BOXES)
def test_landmarks_come_back_where_they_are_in_the_picture(finder, name, flip_test):
    (face,) = finder(picture(), [BOXES[name]], flip_test=flip_test)
    input_px = np.ptp(np.reshape(BOXES[name], (2, 2)), axis=0).max() * 1.25 / 128  # of one input px, in image px
    np.testing.assert_allclose(face.landmarks, np.tile(BLOB, (68, 1)), rtol=0, atol=0.02 * input_px)
    np.testing.assert_array_equal(face.box, BOXES[name])
    assert face.scores.shape == (68,) and (face.scores >= 0.249).all()  # the least maximum of a tent


def test_many_faces_come_back_in_the_order_of_their_boxes(finder):
    boxes = [(181 - side, 141 - side, 181 + side, 141 + side) for side in range(30, 100)]
    faces = finder(picture(), boxes)
    assert [tuple(face.box) for face in faces] == boxes
    assert np.abs([face.landmarks - BLOB for face in faces]).max() < 0.05
    assert max(finder.model.sizes) > 1 and max(finder.model.sizes) <= 64  # in batches, yet never all at once


@pytest.mark.parametrize("boxes", [BOXES["enlarged"], BOXES["reduced"], BOXES["beyond the left border"]])
def test_a_flipped_picture_gives_flipped_landmarks(finder, boxes):
    image, (x0, y0, x1, y1) = picture(), boxes
    last = image.shape[1] - 1
    (plain,) = finder(image, [boxes])
    (mirrored,) = finder(image[:, ::-1], [(last - x1, y0, last - x0, y1)])
    np.testing.assert_allclose(last - mirrored.landmarks[:, 0], plain.landmarks[:, 0], atol=0.05)
    np.testing.assert_allclose(mirrored.landmarks[:, 1], plain.landmarks[:, 1], atol=0.05)


def test_a_view_of_an_array_is_as_good_as_the_array(weights):
    predictor = Predictor.from_pretrained(weights, device="cpu", dtype=torch.float32)
    image = np.random.default_rng(0).integers(0, 255, (90, 100, 3), np.uint8)
    views = (image[..., ::-1], image[::2, ::-1], image.transpose(1, 0, 2))
    for view in views:
        (seen,), (copied,) = (predictor(array, [(20, 10, 60, 40)]) for array in (view, view.copy()))
        np.testing.assert_array_equal(seen.landmarks, copied.landmarks)


def test_from_pretrained_takes_a_file_a_folder_and_text(weights, tmp_path):
    (tmp_path / "best.safetensors").write_bytes(weights.read_bytes())
    image = draw_face(0, 0, W300)[0]
    faces = [Predictor.from_pretrained(path)(image, [(60, 60, 200, 200)])[0] for path in (str(weights), tmp_path)]
    np.testing.assert_array_equal(faces[0].landmarks, faces[1].landmarks)
    assert faces[0].landmarks.dtype == np.float64 and faces[0].landmarks.shape == (68, 2)


IMAGE = np.zeros((40, 50, 3), np.uint8)
BAD_IMAGES = {
    "grey": (IMAGE[..., 0], r"image: expected RGB uint8 \[H, W, 3\], got uint8 \(40, 50\)"),
    "alpha": (np.zeros((40, 50, 4), np.uint8), r"got uint8 \(40, 50, 4\)"),
    "real": (IMAGE / 255, r"got float64 \(40, 50, 3\)"),
    "path": ("face.jpg", "got str"),
    "tensor": (torch.zeros(3, 4, 4), "got Tensor"),
    "no rows": (IMAGE[:0], r"at least one pixel, got \(0, 50, 3\)"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_images_of_no_use_are_refused(finder, name):
    image, message = BAD_IMAGES[name]
    with pytest.raises(InputError, match=message):
        finder(image)


BAD_BOXES = {
    "one box alone": ([1, 2, 3, 4], r"expected \[N, 4\].* got shape \(4,\)"),
    "three numbers": ([[1, 2, 3]], r"got shape \(1, 3\)"),
    "ragged": ([[1, 2, 3, 4], [1, 2]], "expected numbers"),
    "with gradients": (torch.ones(1, 4, requires_grad=True), "expected numbers"),
    "text": ([["a", "b", "c", "d"]], "expected numbers"),
    "not a number": ([[1, 1, 9, 9], [1, np.nan, 3, 4]], "box 1 should hold finite numbers"),
    "infinite": ([[1, 1, np.inf, 9]], "box 0 should hold finite numbers"),
    "beyond reason": ([[0, 0, 1e200, 1e200]], "box 0 should hold finite numbers below"),
    "empty": ([[5, 5, 5, 9]], "box 0 is empty: expected x0 < x1"),
    "turned round": ([[9, 9, 5, 5]], "box 0 is empty"),
    "width and height": ([[30, 30, 20, 20]], "box 0 is empty"),
    "outside": ([[50, 0, 90, 30]], "box 0 lies outside the 50 x 40 image"),
    "above": ([[0, -30, 20, -1]], "box 0 lies outside"),
}


@pytest.mark.parametrize("name", BAD_BOXES)
def test_boxes_of_no_use_are_refused_in_one_line(finder, name):
    boxes, message = BAD_BOXES[name]
    with pytest.raises(InputError, match=message) as raised:
        finder(IMAGE, boxes)
    assert "\n" not in str(raised.value)


def test_pictures_without_faces_give_none(finder):
    assert finder(IMAGE) == [] and finder(IMAGE, []) == [] and finder(IMAGE, np.zeros((0, 4))) == []
    assert finder(np.zeros((1, 1, 3), np.uint8)) == []
    assert finder.model.sizes == []


def test_files_that_are_no_weights_are_refused(weights, tmp_path):
    cut, text, missing = tmp_path / "cut.safetensors", tmp_path / "text.safetensors", tmp_path / "missing.safetensors"
    cut.write_bytes(weights.read_bytes()[:5000])
    text.write_text("not weights")
    for path, message in (
        (cut, "not a whole"),
        (text, "not a whole"),
        (missing, "no weights"),
        (tmp_path, "no weights"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            Predictor.from_pretrained(path)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_unknown_devices_and_dtypes_are_refused(weights):
    cases = [
        ({"device": "gpu"}, "device: expected"),
        ({"dtype": "half"}, "dtype: expected auto, torch.float32.*'half'"),
    ]
    for settings, message in (*cases, ({"dtype": torch.float64}, "dtype: expected auto.* got torch.float64")):
        with pytest.raises(InputError, match=message):
            Predictor.from_pretrained(weights, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "auto"])
def test_the_network_computes_in_the_dtype_that_is_asked_for(weights, dtype):
    predictor, seen = Predictor.from_pretrained(weights, device="cpu", dtype=dtype), []
    convolution = next(layer for layer in predictor.model.modules() if isinstance(layer, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    predictor(IMAGE, [(5, 5, 30, 30)])
    expected = find_precision("auto", torch.device("cpu")) or torch.float32 if dtype == "auto" else dtype
    assert seen == [expected]


def test_several_images_give_what_each_gives_alone(finder):
    images = [picture(), picture(height=240, width=330), picture(spread=5), IMAGE]
    boxes = [[BOXES["enlarged"], BOXES["wide"]], [], np.array([BOXES["reduced"]]), None]
    together = finder(images, boxes)
    assert [len(faces) for faces in together] == [2, 0, 1, 0] and finder.model.sizes == [3]  # one batch
    for image, given, faces in zip(images, boxes, together, strict=True):
        alone = finder(image, given)
        for one, other in zip(faces, alone, strict=True):
            np.testing.assert_array_equal(one.box, other.box)
            np.testing.assert_allclose(one.landmarks, other.landmarks, atol=1e-4)
    assert finder(tuple(images[2:]), boxes[2:])[0][0].landmarks.shape == (68, 2)
    assert finder([]) == [] and finder([IMAGE, IMAGE]) == [[], []]


def test_of_several_images_the_one_of_no_use_is_named(finder):
    cases = [
        (([IMAGE, IMAGE / 255],), r"image 1 of 2: image: expected RGB uint8 .* got float64"),
        (([IMAGE, IMAGE], [None, [[50, 0, 90, 30]]]), "image 1 of 2: boxes: box 0 lies outside the 50 x 40 image"),
        (([IMAGE, IMAGE], [[(1, 1, 9, 9)]]), "boxes: expected one entry for each of 2 images, got 1"),
        (([IMAGE, IMAGE], [(1, 1, 9, 9), (1, 1, 9, 9)]), r"image 0 of 2: boxes: expected \[N, 4\].*got shape \(4,\)"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            finder(*arguments)


def test_threads_that_share_a_predictor_get_what_each_gets_alone(weights):
    predictor = Predictor.from_pretrained(weights, device="cpu", dtype=torch.float32)
    images = [draw_face(0, index, W300, size=160 + 20 * index)[0] for index in range(6)]
    alone = [predictor(image) for image in images]
    assert sum(map(len, alone)) >= 2  # the detector takes part
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(predictor, images * 3))
    for faces, expected in zip(together, alone * 3, strict=True):
        for one, other in zip(faces, expected, strict=True):
            np.testing.assert_array_equal(one.box, other.box)
            np.testing.assert_array_equal(one.landmarks, other.landmarks)


def test_a_face_keeps_its_box_whatever_becomes_of_the_caller_s(finder):
    boxes = np.array([BOXES["wide"]], np.float64)
    (face,) = finder(picture(), boxes)
    boxes += 20
    assert face.box.tolist() == list(BOXES["wide"])


class TwoPeaks(BlobFinder):
    """Answers 1 at heatmap px (10, 8) and 0.9 at (14, 8), whatever it sees."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        heatmaps = torch.zeros(len(pictures), W300.num_landmarks, 32, 32)
        heatmaps[:, :, 8, 10], heatmaps[:, :, 8, 14] = 1.0, 0.9
        return heatmaps


@pytest.mark.parametrize("sigma, x", [(1.5, 10 + 4 * 0.9 / 1.9), (0.5, 10.0)])
def test_the_decoding_window_follows_the_sigma_of_the_description(sigma, x):
    model = TwoPeaks()
    predictor = Predictor(model, replace(description(model), sigma=sigma), device="cpu", dtype=torch.float32)
    (face,) = predictor(np.zeros((128, 128, 3), np.uint8), [(12.3, 12.3, 114.7, 114.7)])  # image px are input px
    np.testing.assert_allclose(face.landmarks[0], [(x + 0.5) * 4 - 0.5, 33.5], atol=1e-3)
