"""`iact predict`."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track

from iact.config import OptionalPath
from iact.data.boxes import read_boxes
from iact.data.faces import ImageFile
from iact.detector import Detector, YuNet, detect_faces
from iact.errors import InputError
from iact.files import printable
from iact.inference import Precision, find_device, find_precision
from iact.layouts import Layout
from iact.plots import draw_landmarks, save_image
from iact.predictor import PredictedFace, Predictor
from iact.results import Format, write_csv, write_json, write_pts

Box = Annotated[tuple[float, float, float, float] | None, tyro.conf.arg(metavar="X0 Y0 X1 Y1")]
BoxesOf = Callable[[str, np.ndarray], Sequence | np.ndarray | None]  # by name and image; None is for the detector
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".jp2"}
VIDEOS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"}
JPEG_SIDE = 65500  # px that OpenCV writes at most


def predict(
    input: Path,
    out: Path,
    weights: Path = Path("iact-300w"),
    detector: Literal["haar", "yunet"] = "haar",
    detector_model: OptionalPath = None,
    box: Box = None,
    boxes: OptionalPath = None,
    whole_picture: bool = False,
    formats: tuple[Format, ...] = ("json",),
    overlays: bool = True,
    smooth: bool = True,
    flip_test: bool = False,
    device: str = "auto",
    amp: Precision = "auto",
) -> int:
    """Landmarks for a picture, every picture below a folder, a video or a camera.

    Of pictures, pictures/<name>.jpg has the landmarks drawn, and landmarks.json is {"layout": "300w", "pictures":
    {<name>: [<face>, ...], ...}, "left_out": [<sentence>, ...]}. A <name> is a picture's path below the input folder, a
    <face> is {"box": [x0, y0, x1, y1], "landmarks": [[x, y], ...], "scores": [number, ...]} in image px, where the
    centre of the first pixel is (0, 0). Exit code 1 when something was left out: a picture that cannot be used, or the
    later frames of an animated one.

    Args:
        input: A picture, a folder that is searched through for pictures, a video, or camera:0 for the first camera.
        out: The folder to write.
        weights: A weights file, a run folder, or weights that came with the package: iact-300w finds 68 landmarks.
        detector: What finds the faces: OpenCV's Haar cascade, or its YuNet, which needs --detector-model.
        detector_model: The file face_detection_yunet_2023mar.onnx.
        box: One face box for every picture, x0 y0 x1 y1 tight around the landmarks, instead of the detector's.
        boxes: Boxes for each picture, instead of the detector's: {<name>: [[x0, y0, x1, y1], ...], ...} in a JSON file,
            or rows name,x0,y0,x1,y1 under this header in a .csv file.
        whole_picture: Take the whole picture as the face box, instead of the detector's.
        formats: json, csv (landmarks.csv, a row for each face) and pts (points/<name>_<face>.pts, as 300W has it).
        overlays: Write pictures with the landmarks drawn.
        smooth: Steady the landmarks of a video.
        flip_test: Average with the mirrored picture.
        device: auto, cpu or cuda.
        amp: Precision of the network."""
    boxes_of = _choose_boxes(box, boxes, whole_picture)
    find = _choose_detector(detector, detector_model, box, boxes, whole_picture)
    video = _find_video(input)
    if video is not None and (boxes or whole_picture):
        raise InputError("boxes: --boxes and --whole-picture are for pictures; for a video, expected --box or neither")
    if not (formats or overlays):
        raise InputError("formats: expected at least one of json, csv and pts, or --overlays")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # this program says it in a sentence
    dtype = find_precision(amp, find_device(device)) or torch.float32
    predictor = Predictor.from_pretrained(weights, device=device, dtype=dtype, detector=find)
    settings = {"formats": formats, "overlays": overlays, "flip_test": flip_test}
    if video is None:
        return _predict_pictures(predictor, _find_pictures(input, out), boxes_of, out, **settings)
    from iact.video import predict_video

    print(predict_video(predictor, video, out, smooth=smooth, boxes=box and [box], **settings))
    return 0


def _choose_boxes(box: Box, boxes: Path | None, whole_picture: bool) -> BoxesOf:
    """Where the boxes of a picture come from. InputError for several answers."""
    flags = {"--box": box is not None, "--boxes": boxes is not None, "--whole-picture": whole_picture}
    given = [flag for flag, chosen in flags.items() if chosen]
    if len(given) > 1:
        raise InputError(f"boxes: expected one of --box, --boxes and --whole-picture, got {' and '.join(given)}")
    if boxes is not None:
        return partial(_boxes_in_file, read_boxes(boxes), boxes)
    return _whole_picture if whole_picture else lambda name, image: box and [box]


def _boxes_in_file(given: dict[str, np.ndarray], file: Path, name: str, image: np.ndarray) -> np.ndarray:
    if name not in given:
        raise InputError(f"{file} has no boxes for {name!r}")
    return given[name]


def _whole_picture(name: str, image: np.ndarray) -> list[tuple]:
    height, width = image.shape[:2]
    return [(-0.5, -0.5, width - 0.5, height - 0.5)]


def _choose_detector(name: str, model: Path | None, *given: object) -> Detector:
    """The detector of that name. InputError where its model is missing, or where boxes are `given` beside it."""
    if model is not None and name != "yunet":
        raise InputError(f"detector-model: {name} takes none; expected --detector yunet beside it")
    if name == "haar":
        return detect_faces
    if any(given):
        raise InputError(f"detector: expected either --detector {name} or given boxes, got both")
    if model is None:
        raise InputError("detector: yunet needs --detector-model with the file face_detection_yunet_2023mar.onnx")
    return YuNet(model)


def _find_video(source: Path) -> Path | int | None:
    """The video or the number of the camera that the input means, if it means one."""
    if camera := re.fullmatch(r"camera:(\d+)", str(source)):
        return int(camera[1])
    return source if source.suffix.lower() in VIDEOS and not source.is_dir() else None


def _find_pictures(source: Path, out: Path) -> dict[str, Path]:
    """The pictures to predict, by their names: the file itself, or all below the folder but those that an earlier run
    has drawn into `out`."""
    if not source.exists():
        raise InputError(f"{source}: no such picture, folder or video (a camera is called camera:0)")
    if source.is_file():
        return {source.name: source}
    found = (path for path in sorted(source.rglob("*")) if path.suffix.lower() in PICTURES and path.is_file())
    pictures = {path.relative_to(source).as_posix(): path for path in found if not _is_overlay(path, out)}
    if not pictures:
        raise InputError(f"{source}: no pictures in this folder (looked for {', '.join(sorted(PICTURES))})")
    return pictures


def _is_overlay(path: Path, out: Path) -> bool:
    """Whether this is <name>.jpg in the folder of drawings, where <name> is that of a picture, with its suffix."""
    drawn = (out / "pictures").resolve() in path.resolve().parents
    return drawn and path.suffix == ".jpg" and Path(path.stem).suffix.lower() in PICTURES


@dataclass
class _Found:
    """What there is of the pictures so far: faces by name, and sentences on what was left out."""

    faces: dict[str, list[PredictedFace]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def write(self, out: Path, layout: Layout, formats: Sequence[Format]) -> None:
        if "json" in formats:
            write_json(out / "landmarks.json", layout, self.faces, self.left_out)
        if "csv" in formats:
            write_csv(out / "landmarks.csv", layout, self.faces)


def _predict_pictures(
    predictor: Predictor,
    pictures: dict[str, Path],
    boxes_of: BoxesOf,
    out: Path,
    formats: Sequence[Format],
    overlays: bool,
    flip_test: bool,
) -> int:
    """Predicts, writes and says how it went; the exit code. What is done when Ctrl-C comes, or when a drawing cannot be
    written, is written too."""
    found, screen = _Found(), Console(stderr=True)
    try:
        for name, path in track(pictures.items(), "predicting", console=screen, disable=not screen.is_terminal):
            try:
                image, faces = _predict_picture(predictor, name, path, boxes_of, flip_test)
            except InputError as error:
                if len(pictures) == 1:
                    raise
                found.left_out.append(str(error))
                continue
            if overlays:
                save_image(out / "pictures" / f"{name}.jpg", _overlay(image, faces, predictor.layout))
            if "pts" in formats:
                write_pts(out / "points", name, faces)
            found.faces[name] = faces
            found.left_out += _later_frames(path)
    except (KeyboardInterrupt, InputError):
        if found.faces:
            found.write(out, predictor.layout, formats)
        raise
    found.write(out, predictor.layout, formats)
    return _say(found.faces, found.left_out, out)


def _predict_picture(
    predictor: Predictor, name: str, path: Path, boxes_of: BoxesOf, flip_test: bool
) -> tuple[np.ndarray, list[PredictedFace]]:
    """The picture and its faces. InputError naming the picture."""
    image = ImageFile(path).read()
    try:
        return image, predictor(image, boxes_of(name, image), flip_test=flip_test)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _later_frames(path: Path) -> list[str]:
    """A sentence on what else is in the file of an animation, or of several scanned pages; none for a picture."""
    more = ImageFile(path).frames() - 1
    return [f"{path}: {more} more frames or pages (only the first was used)"] if more > 0 else []


def _overlay(image: np.ndarray, faces: Sequence[PredictedFace], layout: Layout) -> np.ndarray:
    """The picture with landmarks drawn, reduced where a JPEG cannot hold it."""
    for face in faces:
        image = draw_landmarks(image, face.landmarks, layout)
    ratio = JPEG_SIDE / max(image.shape)
    if ratio >= 1:
        return image
    height, width = (max(1, int(side * ratio)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _say(found: dict[str, list[PredictedFace]], left_out: list[str], out: Path) -> int:
    """Prints the counts, and what was left out; the exit code."""
    faces, empty = sum(map(len, found.values())), sum(not faces for faces in found.values())
    print(f"{_count(faces, 'face')} in {_count(len(found), 'picture')}, into {printable(out)}", end="")
    print(f"; {_count(empty, 'picture')} without a face" if empty else "")
    for sentence in left_out:
        print(f"left out: {sentence}", file=sys.stderr)
    return 1 if left_out else 0


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"
