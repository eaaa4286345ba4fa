import dataclasses
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from iact.data.faces import ImageFile
from iact.errors import InputError
from iact.layouts import COFW, LAYOUTS, W300, WFLW
from iact.plots import (
    BACKGROUND,
    PREDICTION,
    TRUTH,
    contact_sheet,
    draw_landmarks,
    plot_ced,
    plot_landmark_errors,
    save_image,
)


def face_of(layout, size=400):
    return np.random.default_rng(1).uniform(0.2 * size, 0.8 * size, (layout.num_landmarks, 2))


def photograph(height, width):
    return np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_dots_are_where_the_landmarks_are(layout):
    step = np.arange(layout.num_landmarks)
    landmarks = np.stack([40 + 40 * (step % 10), 40 + 40 * (step // 10)], axis=-1).astype(float)
    image = np.zeros((460, 460, 3), np.uint8)
    drawn = draw_landmarks(image, landmarks, layout)
    x, y = landmarks.astype(int).T
    assert (drawn[y, x] == TRUTH).all()
    assert not image.any(), "the given image must stay as it is"


def test_the_picture_elsewhere_is_unchanged():
    image, landmarks = photograph(500, 400), face_of(W300, 200) + (30, 0)
    drawn = draw_landmarks(image, landmarks, W300, landmarks + 3)
    far = np.ones(image.shape[:2], bool)
    (left, top), (right, bottom) = np.floor(landmarks.min(0)).astype(int) - 8, np.ceil(landmarks.max(0)).astype(int) + 8
    far[top:bottom, left:right] = False
    assert far.mean() > 0.5
    assert np.array_equal(drawn[far], image[far])
    assert (drawn[~far] != image[~far]).any()


def test_a_dot_is_placed_to_a_fraction_of_a_pixel():
    layout, image = COFW, np.zeros((300, 300, 3), np.uint8)
    landmarks = np.full((29, 2), 250.0)
    landmarks[28] = (60.3, 80.7)  # the chin: on no curve
    drawn = draw_landmarks(image, landmarks, layout)[60:100, 40:80, 1].astype(float)
    y, x = np.mgrid[60:100, 40:80]
    centre = np.array([(drawn * x).sum(), (drawn * y).sum()]) / drawn.sum()
    assert np.abs(centre - landmarks[28]).max() < 0.15


def test_curves_are_drawn_between_landmarks():
    landmarks = np.full((68, 2), 10.0)
    landmarks[27:31] = [(50, 30), (50, 90), (50, 150), (90, 150)]  # the nose line, an open curve
    drawn = draw_landmarks(np.zeros((240, 100, 3), np.uint8), landmarks, W300)
    assert drawn[60, 50, 1] > 60 and drawn[120, 50, 1] > 60 and drawn[150, 70, 1] > 60
    assert not drawn[:140, 60:].any()


def test_truth_is_green_and_the_prediction_red():
    landmarks = np.full((29, 2), 20.0)
    predicted = np.full((29, 2), 70.0)
    drawn = draw_landmarks(np.zeros((100, 100, 3), np.uint8), landmarks, COFW, predicted)
    assert tuple(drawn[20, 20]) == TRUTH and tuple(drawn[70, 70]) == PREDICTION


def dot_area(size):
    landmarks = np.full((29, 2), 0.95 * size)
    landmarks[28] = 0.25 * size  # the chin: on no curve
    drawn = draw_landmarks(np.zeros((size, size, 3), np.uint8), landmarks, COFW)
    return drawn[: size // 2, : size // 2, 1].sum() / TRUTH[1]


def test_dots_grow_with_the_face():
    assert dot_area(2000) == pytest.approx(4 * dot_area(1000), rel=0.2)
    assert 1 < dot_area(128) < 9


@pytest.mark.parametrize("size", [1, 128])
def test_landmarks_far_outside_do_no_harm(size):
    landmarks = np.full((68, 2), 1e12) * np.random.default_rng(0).choice([-1, 1], (68, 2))
    assert draw_landmarks(np.zeros((size, size, 3), np.uint8), landmarks, W300, -landmarks).shape == (size, size, 3)


def test_a_line_to_a_landmark_far_outside_keeps_its_direction():
    landmarks = np.full((68, 2), 50.0)
    landmarks[30] = (1e12, 50)
    drawn = draw_landmarks(np.zeros((100, 100, 3), np.uint8), landmarks, W300)
    assert drawn[50, 90, 1] > 60 and not drawn[:, :40].any()


def test_contact_sheet_places_images_of_unequal_size():
    images = [np.full((20, 30, 3), value, np.uint8) for value in (101, 102, 103, 104)]
    images.append(np.full((10, 10, 3), 105, np.uint8))
    sheet = contact_sheet(images, columns=3)
    assert sheet.shape == (40, 90, 3)
    assert (sheet[:20, 60:] == 103).all() and (sheet[20:, :30] == 104).all()
    assert (sheet[25:35, 40:50] == 105).all()
    assert (sheet == 105).sum() == 300 and (sheet[20:, 60:] == BACKGROUND).all()


def test_a_short_contact_sheet_is_only_as_wide_as_its_images():
    assert contact_sheet([photograph(10, 12)] * 3).shape == (10, 36, 3)


def test_saved_image_reads_back_as_rgb(tmp_path):
    image = photograph(30, 20)
    save_image(tmp_path / "face.png", image)
    assert np.array_equal(ImageFile(tmp_path / "face.png").read(), image)
    assert [file.name for file in tmp_path.iterdir()] == ["face.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "face.png"
    save_image(path, photograph(8, 8))
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("iact.files.os.replace", full)
    with pytest.raises(InputError, match="face.png: cannot be written .No space left"):
        save_image(path, photograph(9, 9))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def legend_of(tmp_path, curves, monkeypatch):
    texts = []
    monkeypatch.setattr("iact.plots._save_figure", lambda figure, path: texts.append(figure))
    plot_ced(curves, 10, "WFLW $test$", tmp_path / "ced.png")
    return texts[0].axes[0]


def test_ced_curves_show_the_share_of_faces(tmp_path, monkeypatch):
    axes = legend_of(tmp_path, {"ours": np.array([2.0, 4.0, 12.0]), "_$x$": np.array([1.0])}, monkeypatch)
    x, y = axes.lines[0].get_data()
    assert y[np.searchsorted(x, 3.0)] == pytest.approx(100 / 3) and y[-1] == pytest.approx(200 / 3)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[0] == "NME 6.00 %, AUC 0.467   ours"
    assert labels[1].endswith(r"_\$x\$")


def test_plots_are_written_as_pictures(tmp_path):
    nme = np.random.default_rng(0).lognormal(1.2, 0.5, 50)
    plot_ced({f"system {index} $": nme + index for index in range(10)}, 8, "ten $", tmp_path / "ced.png")
    plot_landmark_errors(np.linspace(0, 9, 29), COFW, str(tmp_path / "bars.svg"), "bars $")
    picture = cv2.imread(str(tmp_path / "ced.png"))
    assert picture.shape[0] > 400 and 0.5 < (picture == 255).mean() < 0.99
    assert "<svg" in (tmp_path / "bars.svg").read_text()
    assert len(list(tmp_path.iterdir())) == 2


def test_landmark_errors_are_bars_in_the_colour_of_their_curve(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("iact.plots._save_figure", lambda figure, path: figures.append(figure))
    errors = np.linspace(1, 9, 98)
    plot_landmark_errors(errors, WFLW, tmp_path / "bars.png", "bars")
    bars = figures[0].axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx(errors)
    assert bars[60].get_facecolor() == bars[67].get_facecolor() != bars[59].get_facecolor()


def test_landmarks_of_ones_own_are_named_under_their_bars(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("iact.plots._save_figure", lambda figure, path: figures.append(figure))
    own = dataclasses.replace(COFW, landmarks=tuple(f"dot_${index}" for index in range(29)))
    plot_landmark_errors(np.ones(29), own, tmp_path / "bars.png", "t")
    assert figures[0].axes[0].get_xticklabels()[28].get_text() == r"dot_\$28"


def test_plots_leave_pyplot_alone(tmp_path):
    program = (
        "import sys, numpy as np; from iact.plots import plot_ced;"
        f"plot_ced({{'a': np.ones(3)}}, 10, 't', {str(tmp_path / 'a.png')!r});"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


grey, face = np.zeros((9, 9), np.uint8), np.ones((29, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: draw_landmarks(grey, face, COFW), r"image: expected RGB uint8 \[H, W, 3\], got uint8 .*\(9, 9\)"),
        (lambda path: draw_landmarks(np.zeros((9, 9, 3)), face, COFW), "image: .*got float64"),
        (lambda path: draw_landmarks(photograph(9, 9), face, W300), r"landmarks: .*\(68, 2\), got shape \(29, 2\)"),
        (lambda path: draw_landmarks(photograph(9, 9), face, COFW, face * np.nan), "predicted: .*finite: False"),
        (lambda path: contact_sheet([]), "contact sheet: .*got 0"),
        (lambda path: contact_sheet([photograph(9, 9), grey]), r"images\[1\]: expected RGB"),
        (lambda path: save_image(path / "face.xyz", photograph(9, 9)), "face.xyz: expected the suffix of a picture"),
        (lambda path: save_image(path / "face.pgm", photograph(9, 9)), "face.pgm: the format takes no colour picture"),
        (lambda path: save_image(path / "face.webp", photograph(2, 20000)), "face.webp: .* of 20000 x 2 px"),
        (lambda path: save_image(path / "face", photograph(9, 9)), "face: expected the suffix of a picture"),
        (lambda path: save_image(Path("/dev/null") / "a.png", photograph(9, 9)), "a.png: cannot be written"),
        (lambda path: plot_ced({}, 10, "t", path / "a.png"), "curves: .*got none"),
        (lambda path: plot_ced({"a": np.ones(3)}, 10, "t", path / "a.xyz"), "a.xyz: expected the suffix of a plot"),
        (lambda path: plot_landmark_errors(np.ones(5), COFW, path / "a.png", "t"), "per_landmark: expected 29"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(call, message, tmp_path):
    with pytest.raises(InputError, match=message):
        call(tmp_path)
    assert not list(tmp_path.iterdir())
