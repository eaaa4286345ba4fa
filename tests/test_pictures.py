"""Kinds of pictures that people have: what is read of each, and what is said of those that cannot be used."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, features
from programs import iact

from iact.data import ImageFile
from iact.data.synthetic import draw_face
from iact.layouts import W300

COLOURS = np.zeros((40, 60, 3), np.uint8)
COLOURS[:, :20], COLOURS[:, 20:40], COLOURS[:, 40:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
PICTURE = Image.fromarray(COLOURS)
LATER = [Image.fromarray(np.roll(COLOURS, 20 * step, axis=1)) for step in (1, 2)]

KINDS = {
    "cmyk.jpg": PICTURE.convert("CMYK"),
    "cmyk.tif": PICTURE.convert("CMYK"),
    "palette.png": PICTURE.quantize(8),
    "palette.gif": PICTURE,
    "transparent.png": Image.fromarray(np.dstack([COLOURS, np.zeros((40, 60), np.uint8)])),
    "plain.webp": PICTURE,
    "plain.bmp": PICTURE,
}
GREYS = {
    "bit.png": PICTURE.convert("1", dither=Image.Dither.NONE),
    "grey.jpg": PICTURE.convert("L"),
    "grey and alpha.png": PICTURE.convert("LA"),
    "deep.tif": Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257),
}


def three_columns(path: Path) -> np.ndarray:
    """A pixel [3, 3] of each of the three columns of a picture that is 60 x 40."""
    image = ImageFile(path).read()
    assert image.shape == COLOURS.shape and image.dtype == np.uint8
    return image[20, 10::20].astype(int)


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_has_its_colours_however_it_is_kept(tmp_path, name):
    KINDS[name].save(tmp_path / name)
    np.testing.assert_allclose(three_columns(tmp_path / name), COLOURS[20, 10::20], atol=6)
    assert ImageFile(tmp_path / name).frames() == 1


@pytest.mark.parametrize("name", GREYS)
def test_a_grey_picture_has_three_equal_channels(tmp_path, name):
    GREYS[name].save(tmp_path / name)
    columns = three_columns(tmp_path / name)
    expected = np.asarray(GREYS[name].convert("L") if name != "deep.tif" else COLOURS[..., 0]).astype(int)[20, 10::20]
    np.testing.assert_allclose(columns, np.repeat(expected[:, None], 3, axis=1), atol=2)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_an_animation_the_first_frame_is_read_and_all_are_counted(tmp_path, suffix):
    path = tmp_path / f"moving.{suffix}"
    PICTURE.save(path, save_all=True, append_images=LATER, **({} if suffix == "tif" else {"duration": 100}))
    np.testing.assert_allclose(three_columns(path), COLOURS[20, 10::20], atol=6)
    assert ImageFile(path).frames() == 3


def predict(trained: Path, source: Path, out: Path, *more: object):
    """How `iact predict` ended, and what it wrote."""
    ended = iact("predict", "--weights", trained, "--input", source, "--out", out, "--device", "cpu", *more)
    path = out / "landmarks.json"
    return ended, json.loads(path.read_text()) if path.exists() else None


def test_a_folder_of_all_kinds_is_predicted_and_later_frames_are_said(trained, tmp_path, capfd):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for name, picture in (KINDS | GREYS).items():
        picture.save(folder / name)
    PICTURE.save(folder / "moving.gif", save_all=True, append_images=LATER, duration=100)
    (folder / "empty.png").touch()
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    Image.fromarray(COLOURS[..., 0] / np.float32(255)).save(folder / "real.tif")
    ended, written = predict(trained, folder, out, "--whole-picture")
    assert ended.code == 1 and f"{len(KINDS) + len(GREYS) + 1} faces in" in ended.out
    left_out = dict(sentence.removeprefix(f"{folder}/").split(": ", 1) for sentence in written["left_out"])
    undecodable = dict.fromkeys(("empty.png", "phone.heic", "real.tif"), "not a picture that can be decoded")
    assert left_out == undecodable | {"moving.gif": "2 more frames or pages (only the first was used)"}
    assert ended.err.count("left out: ") == 4 and "WARN" not in capfd.readouterr().err
    assert len(list((out / "pictures").iterdir())) == len(written["pictures"])


def test_tiny_and_narrow_pictures_have_no_face(trained, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (70_000, 3)).save(folder / "long.png")
    ended, written = predict(trained, folder, out)
    assert ended.code == 0 and "0 faces in 2 pictures" in ended.out and "2 pictures without a face" in ended.out
    assert written["pictures"] == {"dot.png": [], "long.png": []}
    assert ImageFile(out / "pictures" / "long.png.jpg").read().shape == (2, 65500, 3)  # as long as a JPEG can be
    assert predict(trained, folder / "dot.png", out, "--whole-picture")[0].code == 0


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_it_says(tmp_path, suffix, orientation):
    if suffix == "avif" and not (features.check("avif") and cv2.haveImageWriter("picture.avif")):
        pytest.skip("Pillow or OpenCV is built without AVIF")
    quarters = COLOURS.copy()
    quarters[20:] //= 2
    exif = PICTURE.getexif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(quarters).save(path, exif=exif, quality=95)
    upright = quarters.transpose(1, 0, 2) if orientation > 4 else quarters
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
    np.testing.assert_allclose(ImageFile(path).read()[10::20, 10::20], np.flip(upright, flips)[10::20, 10::20], atol=8)


def test_a_picture_turned_by_its_exif_tag_gives_landmarks_of_the_upright_one(trained, tmp_path):
    upright = Image.fromarray(draw_face(0, 0, W300)[0])
    exif = upright.getexif()
    exif[0x0112] = 6  # to be turned to the right
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    faces = [
        predict(trained, tmp_path / f"{name}.png", tmp_path / name)[1]["pictures"] for name in ("upright", "turned")
    ]
    (one,), (other,) = (faces[0]["upright.png"], faces[1]["turned.png"])
    assert one == other


def test_a_huge_picture_gives_the_landmarks_of_the_small_one_enlarged(trained, tmp_path):
    scale, image = 20, draw_face(0, 0, W300)[0]  # 26 megapixels
    huge = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    cv2.imwrite(str(tmp_path / "small.png"), image[..., ::-1])
    cv2.imwrite(str(tmp_path / "huge.bmp"), huge[..., ::-1])
    _, small = predict(trained, tmp_path / "small.png", tmp_path / "1", "--box", 60, 60, 200, 200)
    box = [scale * (side + 0.5) - 0.5 for side in (60, 60, 200, 200)]
    _, large = predict(trained, tmp_path / "huge.bmp", tmp_path / "2", "--box", *box, "--no-overlays")
    (one,), (other,) = small["pictures"]["small.png"], large["pictures"]["huge.bmp"]
    expected = (np.array(one["landmarks"]) + 0.5) * scale - 0.5
    error = np.linalg.norm(np.array(other["landmarks"]) - expected, axis=1)
    assert np.median(error) < 0.5 * scale  # half a px of the small one
    assert not (tmp_path / "2" / "pictures").exists()
