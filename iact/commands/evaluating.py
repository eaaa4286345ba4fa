"""`iact evaluate`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from iact.checkpoint import find_weights, load_weights
from iact.config import DataName, OptionalPath
from iact.convert import convert_landmarks, find_places
from iact.cost import measure_cost
from iact.data import cofw, read_faces, w300
from iact.detector import Detector, YuNet, detect_faces
from iact.errors import InputError
from iact.evaluation import (
    THRESHOLD,
    Protocol,
    Report,
    check_thresholds,
    compare,
    evaluate_predictions,
    format_comparison,
    format_report,
    places_of,
    write_reports,
)
from iact.evaluation.cutting import RULES, BoxRule, cut_by
from iact.files import printable
from iact.inference import Precision, find_device, find_precision, predict_arrays
from iact.layouts import LAYOUTS, WFLW, Layout
from iact.matching import doubt_first_pixel, match_predictions
from iact.predictions import read_predictions

FIRST_PIXELS = {"300w": w300.FIRST_PIXEL, "cofw": cofw.FIRST_PIXEL}  # of the annotation files, where it is not 0

DRAWN_FACES = 200  # to evaluate on where --data is synthetic

SUFFIXES = (".safetensors", ".json", ".csv", ".npz")  # that names do without; "lr0.1" is a whole name


def evaluate(
    *,
    out: Path,
    weights: tuple[Path, ...] = (),
    predictions: tuple[Path, ...] = (),
    data: DataName = "synthetic",
    root: OptionalPath = None,
    split: str = "test",
    boxes: BoxRule = "landmarks",
    detector_model: OptionalPath = None,
    thresholds: tuple[float, ...] = (THRESHOLD,),
    first_pixel: Literal[0, 1] | None = None,
    flip_test: bool = False,
    device: str = "auto",
    amp: Precision = "auto",
) -> None:
    """Evaluate weights, or predictions of other systems, on a split; several of them are compared on the same faces.

    Args:
        out: The folder to write.
        weights: Weights files or run folders, of which the best is taken.
        predictions: Files of predictions, .json, .csv or .npz: a name and x and y of each landmark for each face.
        data: The data set.
        root: Its folder, as it was downloaded.
        split: 300w: common, challenging, full or a part such as helen/testset; wflw: test or a subset; cofw: test;
            points: the name of a .csv file in the folder.
        boxes: What weights see a face by: landmarks are the true ones, rectangle is the data set's own.
        detector_model: YuNet's file for --boxes detector, which else is OpenCV's Haar cascade.
        thresholds: Of failure rates and areas under the curve, in percent.
        first_pixel: The centre of the first pixel in files of predictions, 0 or 1; by default 0, or as in the
            annotation files where the file is one of SPIGA's results.
        flip_test: Average with the mirrored picture; for weights.
        device: auto, cpu or cuda.
        amp: Precision of the network."""
    if not weights and not predictions:
        raise InputError("weights: expected --weights or --predictions, got neither")
    if not thresholds:
        raise InputError("thresholds: expected one or more, got none")
    check_thresholds(thresholds)
    detector = _choose_detector(boxes, detector_model)
    settings = {"boxes": boxes, "detector": detector, "flip_test": flip_test, "device": device, "amp": amp}
    where = (data, root, split)
    names = name_systems([*weights, *predictions])
    _check_places(names, predictions, out)
    files = [find_weights(path) for path in weights]
    scored = [score(path, *where, first_pixel=first_pixel, thresholds=thresholds) for path in predictions]  # is quick
    measured = [measure(path, *where, **settings, thresholds=thresholds) for path in files]
    reports = dict(zip(names, measured + scored, strict=True))
    _require_same_faces(reports)
    write_reports(reports, out)
    _say(reports, out)


def measure(
    weights: Path,
    data: str,
    root: Path | None,
    split: str,
    *,
    flip_test: bool,
    device: str,
    amp: Precision,
    boxes: BoxRule = "landmarks",
    detector: Detector = detect_faces,
    thresholds: Sequence[float] = (THRESHOLD,),
) -> Report:
    """The report on a weights file's predictions for a split, 98 landmarks converted to 68 where the split has
    these. InputError when they name other landmarks."""
    model, description = load_weights(weights)
    faces = read_faces(data, root, split, layout=description.layout, count=DRAWN_FACES)
    converted = _conversion(weights, description.layout, faces.layout, data)
    target = find_device(device)
    dtype = find_precision(amp, target)
    pictures, matrices, found = cut_by(boxes, faces, model.config.input_size, description.layout, detector)
    settings = {"sigma": description.sigma, "flip_test": flip_test, "dtype": dtype}
    own, _ = predict_arrays(model.to(target), pictures, matrices, description.layout, **settings)
    predicted = np.zeros((len(faces), faces.layout.num_landmarks, 2))
    predicted[found] = convert_landmarks(own, description.layout, faces.layout)
    chosen = f"chosen on {description.chosen_on}" if description.chosen_on else "the last, chosen on nothing"
    name = f" ({type(detector).__name__ if isinstance(detector, YuNet) else 'Haar cascade'})"
    protocol = Protocol.of(
        faces,
        data_set=data,
        box_rule=RULES[boxes] + (name if boxes == "detector" else ""),
        flip_test=flip_test,
        weights=f"{weights} (epoch {description.epoch}, {chosen}{converted})",
    )
    cost = measure_cost(model, description.layout, target, dtype)
    return evaluate_predictions(predicted, faces, protocol, found=found, thresholds=thresholds, cost=cost)


def score(
    predictions: Path,
    data: str,
    root: Path | None,
    split: str,
    *,
    first_pixel: Literal[0, 1] | None = None,
    thresholds: Sequence[float] = (THRESHOLD,),
) -> Report:
    """The report on a file of predictions for a split. InputError when the file cannot be used for it."""
    given = read_predictions(predictions)
    count = given.landmarks.shape[1]
    drawn = next((layout for layout in LAYOUTS.values() if layout.num_landmarks == count), WFLW)
    faces = read_faces(data, root, split, layout=drawn, count=DRAWN_FACES)
    if first_pixel is None:
        first_pixel = FIRST_PIXELS.get(data, 0) if given.annotated else 0
    matched = match_predictions(given, faces, predictions)
    predicted = matched.landmarks - first_pixel
    truth = np.stack([face.landmarks for face in faces.records])
    doubt = doubt_first_pixel(matched.landmarks[matched.found], truth[matched.found], first_pixel)
    notes = [given.understood, f"first pixel at {first_pixel}", *matched.notes, *([doubt] if doubt else [])]
    protocol = Protocol.of(
        faces,
        data_set=data,
        box_rule="those of whoever made the predictions",
        flip_test=None,
        weights=f"{predictions} ({'; '.join(notes)})",
    )
    return evaluate_predictions(predicted, faces, protocol, found=matched.found, thresholds=thresholds)


def name_systems(paths: Sequence[Path]) -> list[str]:
    """A short name for each file or folder: its own, or with the folders above it where that is not the only one, and
    with its suffix where files differ in nothing else."""
    full = [Path(os.path.abspath(path)) for path in paths]  # a name ".." would lead out of the folder to write
    short = [path.with_suffix("") if path.suffix.lower() in SUFFIXES else path for path in full]
    for parts in ([path.parts[1:] or ("root",) for path in chosen] for chosen in (short, full)):
        for depth in range(1, max(map(len, parts), default=0) + 1):
            names = ["-".join(own[-depth:]) for own in parts]
            if len({*names}) == len(names):
                return names
    raise InputError(f"weights: expected different files, got one twice among {', '.join(map(str, paths))}")


def _check_places(names: Sequence[str], predictions: Sequence[Path], out: Path) -> None:
    """InputError where the report cannot go into that folder, or would replace what it is about."""
    if out.exists() and not out.is_dir():
        raise InputError(f"out: expected a folder, got the file {out}")
    places = {place.resolve() for place in places_of(names, out)}
    for path in predictions:
        if path.resolve() in places:
            raise InputError(f"out: {out} would have its report replace {path}; expected another folder")
    for name in names if len(names) > 1 else ():
        if (out / name).resolve() in places or ((out / name).exists() and not (out / name).is_dir()):
            raise InputError(f"out: the folder of {name} cannot be {out / name}, which is a file")


def _choose_detector(boxes: BoxRule, model: Path | None) -> Detector:
    if model is not None and boxes != "detector":
        raise InputError(f"detector-model: expected --boxes detector beside it, got --boxes {boxes}")
    return YuNet(model) if model else detect_faces


def _require_same_faces(reports: dict[str, Report]) -> None:
    (name, first), *others = reports.items()
    for other, report in others:
        if report.layout.names != first.layout.names or report.names != first.names:
            got = f"{name} has {len(first.names)} of {first.layout.name}, {other} {len(report.names)}"
            raise InputError(f"weights: expected systems with the same landmarks and faces, got others: {got}")


def _say(reports: dict[str, Report], out: Path) -> None:
    for name, report in reports.items():
        print(printable("\n".join([*([f"{name}:"] if len(reports) > 1 else []), format_report(report), ""])))
    (first, own), *others = reports.items()
    for name, report in others:
        print(printable(format_comparison(compare(own, report), first, name) + "\n"))
    print(printable(f"  written     {out}"))


def _conversion(weights: Path, own: Layout, asked: Layout, data: str) -> str:
    """What the protocol says of a conversion: nothing where the layouts are one. InputError where there is none."""
    try:
        find_places(own, asked)
        if own.landmarks and own.num_landmarks != asked.num_landmarks:
            raise InputError("the box around fewer landmarks is another than the model was trained with")
    except InputError as error:
        raise InputError(
            f"{weights}: predicts {own.num_landmarks} landmarks ({own.name}), "
            f"but {data} has {asked.num_landmarks} ({error})"
        ) from None
    return "" if own.name == asked.name else f"; {own.num_landmarks} landmarks converted to {asked.num_landmarks}"
