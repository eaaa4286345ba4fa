"""The files of a report."""

import csv
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from iact.errors import InputError
from iact.evaluation.comparing import compare
from iact.evaluation.report import OCULAR, THRESHOLD, Report
from iact.evaluation.tables import format_tables
from iact.files import printable
from iact.geometry import crop_matrix, cut, landmark_box, transform_points
from iact.plots import BACKGROUND, contact_sheet, draw_landmarks, plot_ced, plot_landmark_errors, save_image

OWN_FILES = ("metrics.json", "per_face.csv", "predictions.csv", "landmark_errors.png", "worst.jpg")
TOGETHER = ("tables.md", "ced.png")
TILE = 224  # px of a face in the contact sheet
STRIP = 20  # px of a line above the sheet
SEEN = 1.6  # side of the tile over that of the box


def places_of(names: Sequence[str], out_dir: Path) -> list[Path]:
    """The files that `write_reports` writes into the folder for systems of these names."""
    several = len(names) > 1
    own = [out_dir / name / file for name in (names if several else ("",)) for file in OWN_FILES]
    return [*own, *(out_dir / file for file in (*TOGETHER, *(["comparison.json"] if several else [])))]


def write_reports(reports: Mapping[str, Report], out_dir: Path | str) -> None:
    """Writes the reports of one system or several, by their names, into the folder, made where needed.

    For each system metrics.json, per_face.csv, predictions.csv, landmark_errors.png and worst.jpg, in a folder of its
    name where there are several; for all of them tables.md, ced.png and, where there are several, comparison.json: each
    against the first. All are finished before the first replaces an older one. InputError when the folder cannot be
    written, or a picture cannot be read."""
    out_dir = Path(out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out_dir, prefix=".report-") as staging_name:
            staging = Path(staging_name)
            for name, report in reports.items():
                folder = staging / name if len(reports) > 1 else staging
                folder.mkdir(exist_ok=True)
                write_numbers(report, folder)
                _write_pictures(report, folder)
            _write_together(reports, staging)
            for file in sorted(path for path in staging.rglob("*") if path.is_file()):
                place = out_dir / file.relative_to(staging)
                place.parent.mkdir(exist_ok=True)
                os.replace(file, place)
    except OSError as error:
        raise InputError(f"{out_dir}: the report cannot be written ({error.strerror})") from error


def write_numbers(report: Report, folder: Path) -> None:
    """Writes metrics.json, per_face.csv and predictions.csv into a folder that exists."""
    _write_json(folder / "metrics.json", report.to_json())
    errors = {f"nme_{name}": [_number(nme) for nme in own.tolist()] for name, own in report.errors.items()}
    tags = [" ".join(sorted(own)) for own in report.tags]
    _write_csv(folder / "per_face.csv", {"name": report.names, **errors, "tags": tags})
    found = np.isfinite(report.predicted).all(axis=(1, 2))
    points = report.predicted[found].reshape(found.sum(), -1).round(4).T.tolist()
    columns = [f"{axis}_{name}" for name in report.layout.names for axis in "xy"]
    names = [name for name, one in zip(report.names, found, strict=True) if one]
    _write_csv(folder / "predictions.csv", {"name": names, **dict(zip(columns, points, strict=True))})


def _write_pictures(report: Report, folder: Path) -> None:
    protocol = report.protocol
    title = f"Error per landmark, {protocol.data_set} {protocol.split}, {protocol.faces} faces, inter-ocular"
    plot_landmark_errors(report.per_landmark, report.layout, folder / "landmark_errors.png", title)
    sheet = contact_sheet([_tile(report, index) for index in report.worst])
    title = f"{protocol.data_set} {protocol.split}: the worst of {protocol.faces} by inter-ocular NME, truth green"
    strip = np.full((2 * STRIP, sheet.shape[1], 3), BACKGROUND, np.uint8)
    for line, text in enumerate((title, f"boxes: {protocol.box_rule}")):
        _write(strip, text, (6, (line + 1) * STRIP - 6), 0.4)
    save_image(folder / "worst.jpg", np.concatenate([strip, sheet]))


def _write_together(reports: Mapping[str, Report], folder: Path) -> None:
    first = next(iter(reports.values()))
    counted = {name: report.errors[OCULAR][~np.isnan(report.errors[OCULAR])] for name, report in reports.items()}
    faces = len(next(iter(counted.values())))
    rules = ", ".join(dict.fromkeys(report.protocol.box_rule for report in reports.values()))
    title = f"{first.protocol.data_set} {first.protocol.split}, {faces} faces, inter-ocular\nboxes: {rules}"
    plot_ced(counted, max(first.thresholds, default=THRESHOLD), title, folder / "ced.png")
    (folder / "tables.md").write_text(format_tables(reports), encoding="utf-8", errors="surrogateescape")
    if len(reports) > 1:
        (reference, own), *others = reports.items()
        _write_json(
            folder / "comparison.json",
            {
                "reference": reference,
                "differences": {name: compare(own, report) for name, report in others},
                "protocols": {name: asdict(report.protocol) for name, report in reports.items()},
            },
        )


def _tile(report: Report, index: int) -> np.ndarray:
    """A face with truth and prediction, its name and its error, [TILE, TILE, 3]."""
    face = report.faces.records[index]
    matrix = crop_matrix(landmark_box(face.landmarks), TILE, SEEN)
    truth, predicted = (transform_points(points, matrix) for points in (face.landmarks, report.predicted[index]))
    tile = draw_landmarks(cut(face.image.read(), matrix, TILE), truth, report.layout, predicted)
    name = face.name if len(face.name) <= 34 else "..." + face.name[-31:]
    _write(tile, f"{report.errors[OCULAR][index]:.1f} %", (6, 16), 0.5)
    _write(tile, name, (6, TILE - 8), 0.36)
    return tile


def _write(image: np.ndarray, text: str, place: tuple[int, int], size: float) -> None:
    """White with a black rim, to be read on anything."""
    for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(image, printable(text), place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, width, cv2.LINE_AA)


def _write_json(path: Path, fields: dict) -> None:
    text = json.dumps(fields, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")  # names of files may be other bytes


def _write_csv(path: Path, columns: Mapping[str, list | tuple]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _number(nme: float) -> str:
    """At full precision, so that every number can be computed again from it; empty where left out."""
    return "" if np.isnan(nme) else repr(nme)
