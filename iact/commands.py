"""The programs behind `iact ...` and `scripts/`: arguments in, files and a short report out."""

import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from iact.checkpoint import find_weights, load_weights
from iact.config import DataName, TrainConfig
from iact.data import read_faces
from iact.data.check import check_dataset
from iact.data.crops import cut_faces
from iact.data.faces import ImageFile
from iact.errors import InputError
from iact.evaluation import Protocol, evaluate_predictions, format_report, write_report
from iact.files import write_atomically
from iact.geometry import CROP_MARGIN
from iact.inference import Precision, find_device, find_precision, predict_crops
from iact.plots import draw_landmarks, save_image
from iact.predictor import PredictedFace, Predictor
from iact.training import train as run_training

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def train(config: Annotated[TrainConfig, tyro.conf.arg(name="")]) -> None:
    """Train a model. With no arguments: drawn faces, the smallest model, a few minutes on two CPU cores."""
    run_training(config)


def evaluate(
    weights: Path,
    out: Path,
    data: DataName = "synthetic",
    root: Path | None = None,
    split: str = "test",
    flip_test: bool = False,
    device: str = "auto",
    amp: Precision = "auto",
) -> None:
    """Measure a model on a split; writes metrics.json, per_face.csv, a CED curve and errors per landmark.

    Args:
        weights: A weights file or a run folder.
        out: The folder to write.
        data: The data set.
        root: Its folder, as it was downloaded.
        split: 300w: common, challenging, full or a part such as helen/testset; wflw: test or a subset; cofw: test.
        flip_test: Average with the mirrored picture.
        device: auto, cpu or cuda.
        amp: Precision of the network."""
    model, description = load_weights(weights)
    faces = read_faces(data, root, split, layout=description.layout, count=200)
    if faces.layout.name != description.layout.name:
        raise InputError(
            f"{weights}: predicts {description.layout.num_landmarks} landmarks ({description.layout.name}), "
            f"but {data} has {faces.layout.num_landmarks}"
        )
    target = find_device(device)
    crops = cut_faces(faces, model.config.input_size, CROP_MARGIN)
    predicted, _ = predict_crops(
        model.to(target),
        crops,
        faces.layout,
        sigma=description.sigma,
        flip_test=flip_test,
        dtype=find_precision(amp, target),
    )
    protocol = Protocol.of(
        faces,
        data_set=data,
        box_rule=f"ground-truth landmarks x {CROP_MARGIN}",
        flip_test=flip_test,
        weights=f"{find_weights(weights)} (epoch {description.epoch}, {_chosen(description.chosen_on)})",
    )
    report = evaluate_predictions(predicted, faces, protocol)
    write_report(report, out)
    print(format_report(report))


def _chosen(chosen_on: str) -> str:
    return f"chosen on {chosen_on}" if chosen_on else "the last, chosen on nothing"


def predict(
    weights: Path,
    input: Path,
    out: Path,
    box: tuple[float, float, float, float] | None = None,
    whole_picture: bool = False,
    flip_test: bool = False,
    device: str = "auto",
    amp: Precision = "auto",
) -> int:
    """Landmarks for a picture or every picture below a folder; writes pictures with landmarks and landmarks.json.

    Args:
        weights: A weights file or a run folder.
        input: A picture, or a folder that is searched through.
        out: The folder to write.
        box: One face box for every picture, x0 y0 x1 y1 tight around the landmarks, instead of the detector's.
        whole_picture: Take the whole picture as the face box, instead of the detector's.
        flip_test: Average with the mirrored picture.
        device: auto, cpu or cuda.
        amp: Precision of the network."""
    predictor = Predictor.from_pretrained(weights, device=device, amp=amp)
    pictures = _find_pictures(input)
    results, unreadable = {}, []
    for path in track(pictures, "predicting", console=Console(stderr=True)):
        name = path.relative_to(input if input.is_dir() else path.parent).as_posix()
        try:
            image = ImageFile(path).read()
        except InputError as error:
            if len(pictures) == 1:
                raise
            unreadable.append(str(error))
            continue
        faces = predictor(image, _boxes(image, box, whole_picture), flip_test=flip_test)
        results[name] = [_face_json(face) for face in faces]
        for face in faces:
            image = draw_landmarks(image, face.landmarks, predictor.layout)
        save_image(out / "pictures" / f"{name}.jpg", image)
    text = json.dumps({"layout": predictor.layout.name, "pictures": results, "unreadable": unreadable}, indent=1)
    write_atomically(out / "landmarks.json", lambda path: path.write_text(text + "\n"))
    found, empty = sum(map(len, results.values())), sum(not faces for faces in results.values())
    print(f"{found} faces in {len(results)} pictures, into {out}; {empty} pictures without a face")
    for sentence in unreadable:
        print(f"left out: {sentence}")
    return 1 if unreadable else 0


def _find_pictures(source: Path) -> list[Path]:
    if not source.exists():
        raise InputError(f"{source}: no such picture or folder")
    if source.is_file():
        return [source]
    pictures = sorted(path for path in source.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    if not pictures:
        raise InputError(f"{source}: no pictures in this folder (looked for {', '.join(sorted(PICTURES))})")
    return pictures


def _boxes(image: np.ndarray, box: tuple | None, whole_picture: bool) -> np.ndarray | None:
    height, width = image.shape[:2]
    if whole_picture:
        return np.array([[0, 0, width - 1, height - 1]], np.float64)
    return None if box is None else np.array([box])


def _face_json(face: PredictedFace) -> dict:
    return {
        "box": face.box.round(2).tolist(),
        "landmarks": face.landmarks.round(3).tolist(),
        "scores": face.scores.round(4).tolist(),
    }


def check(data: Literal["300w", "wflw", "cofw"], root: Path, sheet: Path = Path("contact_sheet.png")) -> int:
    """Check the official files of a data set; exit code 1 when there are problems.

    Args:
        data: The data set.
        root: The folder that holds its official files.
        sheet: The contact sheet (PNG) to write: faces with their landmarks."""
    return 1 if check_dataset(data, root, sheet, Console()).problems else 0


def info() -> None:
    """Say what was built and which backend each op will use here."""
    from iact.ops.info import describe

    print(describe())
