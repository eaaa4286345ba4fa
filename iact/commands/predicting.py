"""`iact predict`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from iact.data.faces import ImageFile
from iact.errors import InputError
from iact.files import write_atomically
from iact.inference import Precision
from iact.plots import draw_landmarks, save_image
from iact.predictor import PredictedFace, Predictor

Box = Annotated[tuple[float, float, float, float] | None, tyro.conf.arg(metavar="X0 Y0 X1 Y1")]
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


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
