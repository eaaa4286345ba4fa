"""Tables of predictions: which columns are x and y of which landmark."""

import csv
from pathlib import Path

import numpy as np
import pytest
from own_set import draw_set

from iact.commands.evaluating import score
from iact.data.faces import Face, Faces, ImageFile
from iact.errors import InputError
from iact.layouts import COFW
from iact.matching import match_predictions
from iact.predictions import read_predictions

POINTS = np.random.default_rng(0).uniform(0, 200, (29, 2)).round(2)


def write_rows(path: Path, header: list, rows: list) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def table(path, columns: list[str], points: np.ndarray) -> np.ndarray:
    """What is read again from a table of a face with these columns and points [K, 2]."""
    write_rows(path, ["name", *columns], [["a", *points.ravel()]])
    faces = Faces(COFW, "test", (Face("a", ImageFile(Path("/data/a.jpg")), POINTS, ""),))
    return match_predictions(read_predictions(path), faces, path).landmarks[0]


STYLES = ["x_{}", "x{}", "{}_x", "x_00{}", "landmark_{}_x", "x_landmark{}"]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("style", STYLES)
def test_numbered_landmarks_come_in_the_order_of_their_numbers(style, first, tmp_path):
    order = np.random.default_rng(1).permutation(29)
    names = [[style.format(i + first), style.format(i + first).replace("x", "y")] for i in order]
    np.testing.assert_array_equal(table(tmp_path / "a.csv", sum(names, []), POINTS[order]), POINTS)
    xs_first = [*(x for x, _ in names), *(y for _, y in names)]  # as OpenFace has it
    np.testing.assert_array_equal(table(tmp_path / "a.csv", xs_first, POINTS[order].T), POINTS)
    box = ["box_x0", "box_y0", "box_x1", "box_y1", "box_x", "box_y", "x_min", "y_min", "width", "score_0"]
    columns, cells = [*box, *sum(names, [])], np.append(np.zeros(len(box)), POINTS[order])
    np.testing.assert_array_equal(table(tmp_path / "a.csv", columns, cells), POINTS)


def test_landmarks_that_the_layout_does_not_have_are_refused(tmp_path):
    columns = [f"{axis}_{i}" for i in range(29) for axis in "xy"]
    for old, new, odd in (("_28", "_nose", "'nose'"), ("_28", "_999999999", "'999999999'"), ("_0", "_a_0", "'a_0'")):
        with pytest.raises(InputError, match=f"a.csv:1: expected the landmarks of layout cofw .* got {odd}") as caught:
            table(tmp_path / "a.csv", [c.replace(old, new) if c.endswith(old) else c for c in columns], POINTS)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="expected 29 landmarks a face, got 28"):
        table(tmp_path / "a.csv", columns[:-2], POINTS[:28])


def test_a_table_of_ones_own_landmarks_is_read_by_their_names(tmp_path):
    root = draw_set(tmp_path / "set", test=2)
    with (root / "test.csv").open() as file:
        rows = [[name, *reversed(cells)] for name, *cells in csv.reader(file)]
    write_rows(tmp_path / "mine.csv", rows[0], rows[1:])
    assert score(tmp_path / "mine.csv", "points", root, "test").results["nme_interocular"] < 1e-9
    write_rows(tmp_path / "mine.csv", [column.replace("nose", "chin") for column in rows[0]], rows[1:])
    with pytest.raises(InputError, match="expected the landmarks of layout five .* got 'chin'"):
        score(tmp_path / "mine.csv", "points", root, "test")
    write_rows(tmp_path / "mine.csv", rows[0][:-2], [row[:-2] for row in rows[1:]])
    with pytest.raises(InputError, match="expected the landmarks of layout five .* got no 'left_eye'"):
        score(tmp_path / "mine.csv", "points", root, "test")
