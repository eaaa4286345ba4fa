"""Picture files in, and the path of pictures through the network that everything shares."""

import struct
import zlib

import cv2
import numpy as np
import pytest
import torch

from iact.data.crops import cut_faces
from iact.data.faces import ImageFile
from iact.data.synthetic import synthetic_faces
from iact.errors import InputError
from iact.inference import BATCH_SIZE, find_device, find_precision, predict_arrays, predict_batch, predict_cuts
from iact.layouts import W300, flip_landmarks
from iact.model import create_model

COLOURS = np.repeat(np.repeat(np.arange(96).reshape(4, 8, 3), 8, axis=0), 8, axis=1).astype(np.uint8) * 2  # 32 x 64
BGR = COLOURS[..., ::-1]


def encoded(suffix: str, image: np.ndarray) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def turned_jpeg(orientation: int) -> bytes:
    """A JPEG of COLOURS whose Exif segment says how to turn it."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"MM\0*" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 0)
    exif = b"Exif\0\0" + tiff
    plain = encoded(".jpg", BGR)
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]


def read(path, data: bytes) -> np.ndarray:
    path.write_bytes(data)
    return ImageFile(path).read()


@pytest.mark.parametrize("name", ["a b.png", "größe.PNG", "顔/été.png", "no_suffix"])
def test_any_path_is_read_as_rgb(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    np.testing.assert_array_equal(read(tmp_path / name, encoded(".png", BGR)), COLOURS)


def test_grey_alpha_and_16_bit_pictures_become_rgb_uint8(tmp_path):
    grey = COLOURS[..., 0]
    np.testing.assert_array_equal(read(tmp_path / "grey.png", encoded(".png", grey)), np.stack([grey] * 3, axis=-1))
    alpha = np.dstack([BGR, grey])
    np.testing.assert_array_equal(read(tmp_path / "alpha.png", encoded(".png", alpha)), COLOURS)
    deep = read(tmp_path / "deep.png", encoded(".png", BGR.astype(np.uint16) * 256 + 77))
    assert deep.dtype == np.uint8 and np.abs(deep.astype(int) - COLOURS).max() <= 1
    deep_grey = read(tmp_path / "deep grey.png", encoded(".png", grey.astype(np.uint16) * 256 + 77))
    assert deep_grey.shape == (32, 64, 3) and np.abs(deep_grey[..., 1].astype(int) - grey).max() <= 1


def test_a_picture_of_one_pixel(tmp_path):
    np.testing.assert_array_equal(read(tmp_path / "dot.png", encoded(".png", BGR[9:10, 9:10])), COLOURS[9:10, 9:10])


@pytest.mark.parametrize(
    "orientation, turn", [(1, lambda x: x), (3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1))]
)
def test_the_exif_orientation_is_applied(tmp_path, orientation, turn):
    upright = read(tmp_path / "plain.jpg", encoded(".jpg", BGR))
    np.testing.assert_array_equal(read(tmp_path / "turned.jpg", turned_jpeg(orientation)), turn(upright))


def huge_png() -> bytes:
    """A few bytes that announce 100000 x 100000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


JPEG = encoded(".jpg", BGR)
BROKEN = {
    "empty": (b"", "not a picture that can be decoded"),
    "text": (b"no picture\n" * 20, "not a picture that can be decoded"),
    "header alone": (JPEG[:20], "not a picture that can be decoded"),
    "a JPEG without its last rows": (JPEG[:-40], "the picture is cut short"),
    "a JPEG without its last byte": (JPEG[:-1], "the picture is cut short"),
    "half a PNG": (encoded(".png", BGR)[:100], "not a picture that can be decoded"),
    "too many pixels": (huge_png(), "not a picture that can be decoded"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_are_refused_by_name(tmp_path, name):
    data, message = BROKEN[name]
    path = tmp_path / "broken.jpg"
    with pytest.raises(InputError) as raised:
        read(path, data)
    assert str(raised.value) == f"{path}: {message}"


FILM = b"\xff\xd9 ... \xff\xda ..."  # has by chance what ends and begins the pixels of a JPEG


@pytest.mark.parametrize("more", [b"maker's notes", FILM])
def test_bytes_behind_a_jpeg_do_no_harm(more, tmp_path):
    np.testing.assert_array_equal(read(tmp_path / "a.jpg", JPEG + more), read(tmp_path / "b.jpg", JPEG))


@pytest.mark.parametrize("fill", [b"", b"\xff\xff"])
def test_a_jpeg_with_a_thumbnail_is_cut_short_where_its_own_end_is_missing(fill, tmp_path):
    notes = b"Exif" + JPEG[: JPEG.index(b"\xff\xda") + 60] + b"\xff\xd9"
    data = JPEG[:2] + fill + b"\xff\xe1" + struct.pack(">H", 2 + len(notes)) + notes + JPEG[2:]
    np.testing.assert_array_equal(read(tmp_path / "a.jpg", data), read(tmp_path / "b.jpg", JPEG))
    with pytest.raises(InputError, match="cut short"):
        read(tmp_path / "c.jpg", data[:-40])


def test_missing_pictures_and_folders_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing.jpg"):
        with pytest.raises(InputError, match="no such picture"):
            ImageFile(path).read()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("iact_t", W300.num_landmarks).eval()


@pytest.fixture(scope="module")
def crops():
    return cut_faces(synthetic_faces(W300, 2), 128, 1.25)


def test_the_flip_test_gives_flipped_landmarks_for_flipped_pictures(model, crops):
    pictures = crops.pictures.float()
    plain, scores = predict_batch(model, pictures, W300, flip_test=True)
    flipped, flipped_scores = predict_batch(model, pictures.flip(3), W300, flip_test=True)
    np.testing.assert_allclose(flip_landmarks(flipped.numpy(), W300, 128), plain, atol=1e-3)
    np.testing.assert_allclose(flipped_scores[:, list(W300.mirror)], scores, atol=1e-5)
    alone, _ = predict_batch(model, pictures, W300)
    assert (alone - plain).abs().max() > 0.1  # an untrained network is not symmetric by itself


class Counting(torch.nn.Module):
    """Answers with one lit pixel, whose place and height the picture's first pixel tells; keeps the batches' sizes."""

    def __init__(self, model):
        super().__init__()
        self.config, self.sizes, self.nothing = model.config, [], torch.nn.Parameter(torch.zeros(1))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(pictures))
        number = (pictures[:, 0, 0, 0] * 64 + 127.5).round().long()
        heatmaps = torch.nn.functional.one_hot(number, 32 * 32) * (number[:, None] + 1)
        return heatmaps.reshape(-1, 1, 32, 32).expand(-1, W300.num_landmarks, -1, -1).float()


def test_faces_stay_in_order_over_several_batches_and_go_back_to_image_px(model):
    count = 2 * BATCH_SIZE + 5
    pictures = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 128, 128)
    matrices = np.array([[[2.0, 0, -n], [0, 2.0, 3]] for n in range(count)])
    counting = Counting(model)
    landmarks, scores = predict_cuts(counting, pictures, matrices, W300)
    number = np.arange(count)
    input_px = np.stack([number % 32, number // 32], axis=-1) * 4 + 1.5
    expected = (input_px - np.stack([-number, np.full(count, 3)], axis=-1)) / 2
    np.testing.assert_allclose(landmarks, np.repeat(expected[:, None], 68, axis=1))
    np.testing.assert_array_equal(scores[:, 0], number + 1)
    assert counting.sizes == [BATCH_SIZE, BATCH_SIZE, 5]


def test_arrays_hold_what_the_device_found(model, crops):
    found = predict_cuts(model, crops.pictures, crops.matrices, W300)
    for array, tensor in zip(predict_arrays(model, crops.pictures, crops.matrices, W300), found, strict=True):
        np.testing.assert_array_equal(array, tensor.numpy())
    assert found[0].shape == (2, 68, 2) and found[0].dtype == torch.float64


def test_devices_and_precisions_by_name(monkeypatch):
    assert find_device("cpu") == torch.device("cpu")
    assert find_precision("off", torch.device("cpu")) is None
    assert find_precision("bf16", torch.device("cpu")) == torch.bfloat16
    for capability, expected in (((7, 5), None), ((8, 0), torch.bfloat16), ((12, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert find_precision("auto", torch.device("cuda")) == expected
    for name in ("gpu", "meta", "cuda:99", ""):
        with pytest.raises(InputError, match="device: "):
            find_device(name)
    with pytest.raises(InputError, match="amp: expected one of auto, bf16, fp16, off, got 'bfloat16'"):
        find_precision("bfloat16", torch.device("cpu"))
