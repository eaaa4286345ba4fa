"""The programs behind `iact ...` and `scripts/`: arguments in, files and a short report out."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from iact.checkpoint import find_weights, load_weights
from iact.config import DataName, OptionalPath, TrainConfig
from iact.data import read_faces
from iact.data.check import check_dataset
from iact.data.crops import cut_faces
from iact.data.faces import ImageFile
from iact.errors import InputError
from iact.evaluation import Protocol, Report, evaluate_predictions, format_report, write_report
from iact.files import write_atomically
from iact.geometry import CROP_MARGIN
from iact.inference import Precision, find_device, find_precision, predict_crops
from iact.plots import draw_landmarks, save_image
from iact.predictor import PredictedFace, Predictor
from iact.training import train as run_training

Box = Annotated[tuple[float, float, float, float] | None, tyro.conf.arg(metavar="X0 Y0 X1 Y1")]
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def train(
    config: Annotated[TrainConfig, tyro.conf.arg(name="")],
    recipe: Literal["default", "paper"] = "default",
) -> None:
    """Train a model. With no arguments: drawn faces, the smallest model, a few minutes on two CPU cores.

    Args:
        recipe: Where the settings below start from; flags win over it. "paper" is the paper's letter."""
    run_training(config)


def evaluate(
    weights: Path,
    out: Path,
    data: DataName = "synthetic",
    root: OptionalPath = None,
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
    report = measure(find_weights(weights), data, root, split, flip_test=flip_test, device=device, amp=amp)
    write_report(report, out)
    print(format_report(report))


def measure(
    weights: Path, data: str, root: Path | None, split: str, *, flip_test: bool, device: str, amp: Precision
) -> Report:
    """The report on a weights file's predictions for a split. InputError when they name other landmarks."""
    model, description = load_weights(weights)
    faces = read_faces(data, root, split, layout=description.layout, count=200)
    if faces.layout.name != description.layout.name:
        raise InputError(
            f"{weights}: predicts {description.layout.num_landmarks} landmarks ({description.layout.name}), "
            f"but {data} has {faces.layout.num_landmarks}"
        )
    target = find_device(device)
    crops = cut_faces(faces, model.config.input_size, CROP_MARGIN)
    settings = {"sigma": description.sigma, "flip_test": flip_test, "dtype": find_precision(amp, target)}
    predicted, _ = predict_crops(model.to(target), crops, faces.layout, **settings)
    chosen = f"chosen on {description.chosen_on}" if description.chosen_on else "the last, chosen on nothing"
    protocol = Protocol.of(
        faces,
        data_set=data,
        box_rule=f"ground-truth landmarks x {CROP_MARGIN}",
        flip_test=flip_test,
        weights=f"{weights} (epoch {description.epoch}, {chosen})",
    )
    return evaluate_predictions(predicted, faces, protocol)


def predict(
    weights: Path,
    input: Path,
    out: Path,
    box: Box = None,
    whole_picture: bool = False,
    flip_test: bool = False,
    device: str = "auto",
    amp: Precision = "auto",
) -> int:
    """Landmarks for a picture or every picture below a folder; exit code 1 when some cannot be used.

    Writes pictures/<name>.jpg with the landmarks drawn, and landmarks.json: {"layout": "300w", "pictures": {<name>:
    [<face>, ...], ...}, "left_out": [<sentence>, ...]}. A <name> is a picture's path below the input folder, a <face>
    is {"box": [x0, y0, x1, y1], "landmarks": [[x, y], ...], "scores": [number, ...]} in image px, where the centre of
    the first pixel is (0, 0).

    Args:
        weights: A weights file or a run folder.
        input: A picture, or a folder that is searched through.
        out: The folder to write.
        box: One face box for every picture, x0 y0 x1 y1 tight around the landmarks, instead of the detector's.
        whole_picture: Take the whole picture as the face box, instead of the detector's.
        flip_test: Average with the mirrored picture.
        device: auto, cpu or cuda.
        amp: Precision of the network."""
    if box is not None and whole_picture:
        raise InputError("box: expected either --box or --whole-picture, got both")
    predictor = Predictor.from_pretrained(weights, device=device, amp=amp)
    pictures = _find_pictures(input, out)
    results, left_out, screen = {}, [], Console(stderr=True)
    for name, path in track(pictures.items(), "predicting", console=screen, disable=not screen.is_terminal):
        try:
            image, faces = _predict_picture(predictor, path, box, whole_picture, flip_test)
        except InputError as error:
            if len(pictures) == 1:
                raise
            left_out.append(str(error))
            continue
        results[name] = [_face_json(face) for face in faces]
        save_image(out / "pictures" / f"{name}.jpg", image)
    text = json.dumps({"layout": predictor.layout.name, "pictures": results, "left_out": left_out}, indent=1)
    write_atomically(out / "landmarks.json", lambda path: path.write_text(text + "\n", encoding="utf-8"))
    found, empty = sum(map(len, results.values())), sum(not faces for faces in results.values())
    print(f"{found} faces in {len(results)} pictures, into {out}; {empty} pictures without a face")
    for sentence in left_out:
        print(f"left out: {sentence}", file=sys.stderr)
    return 1 if left_out else 0


def _predict_picture(
    predictor: Predictor, path: Path, box: tuple | None, whole_picture: bool, flip_test: bool
) -> tuple[np.ndarray, list[PredictedFace]]:
    """The picture with landmarks drawn, and its faces. InputError naming the picture."""
    image = ImageFile(path).read()
    height, width = image.shape[:2]
    boxes = [(-0.5, -0.5, width - 0.5, height - 0.5)] if whole_picture else box and [box]
    try:
        faces = predictor(image, boxes, flip_test=flip_test)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    for face in faces:
        image = draw_landmarks(image, face.landmarks, predictor.layout)
    return image, faces


def _find_pictures(source: Path, out: Path) -> dict[str, Path]:
    """The pictures to predict, by their names: the file itself, or all below the folder but what `out` holds."""
    if not source.exists():
        raise InputError(f"{source}: no such picture or folder")
    if source.is_file():
        return {source.name: source}
    found = (path for path in sorted(source.rglob("*")) if path.suffix.lower() in PICTURES and path.is_file())
    written = (out / "pictures").resolve()
    pictures = {path.relative_to(source).as_posix(): path for path in found if written not in path.resolve().parents}
    if not pictures:
        raise InputError(f"{source}: no pictures in this folder (looked for {', '.join(sorted(PICTURES))})")
    return pictures


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
    from iact.ops.info import report

    table = Table(show_header=False, box=None)
    for name, value in report().items():
        table.add_row(name, value)
    Console().print(table)
