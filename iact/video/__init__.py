"""Landmarks for videos and cameras: faces followed from frame to frame, their landmarks steadied."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from iact.errors import InputError
from iact.files import printable
from iact.predictor import Predictor
from iact.stop import asked_to_stop
from iact.video.frames import Frame, Video, quiet
from iact.video.outputs import Outputs
from iact.video.smoothing import OneEuro, Smoother
from iact.video.tracking import TrackedFace, Tracker

__all__ = ["Frame", "OneEuro", "Smoother", "TrackedFace", "Tracker", "Video", "predict_video"]

FORMATS = ("json", "csv")


@dataclass
class _Seen:
    """Frames so far, those without a face, the numbers of the faces, and whether the user ended it."""

    frames: int = 0
    empty: int = 0
    ids: set[int] = field(default_factory=set)
    stopped: bool = False


def predict_video(
    predictor: Predictor,
    source: Path | int,
    out: Path,
    *,
    formats: Sequence[str] = ("json",),
    smooth: bool = True,
    flip_test: bool = False,
    overlays: bool = True,
    boxes: Sequence | np.ndarray | None = None,
) -> str:
    """Landmarks for a video file, or for the camera of that number until Ctrl-C; the sentence on what was found.

    Writes into the folder `out`: the video with landmarks and face numbers drawn, <name>.mp4; landmarks.json,
    {"layout", "video", "frames_per_second", "frames": [[{"id", "box", "landmarks", "scores"}, ...], ...],
    "times": [second, ...]}; landmarks.csv, a row for each face of each frame. `boxes` [N, 4] are where the faces are
    in every frame; without them faces are found and followed. A rate that varies becomes constant in <name>.mp4;
    "times" tell it. Ctrl-C or SIGTERM end it after the frame at hand, and what was done is kept. InputError where
    nothing can be read or written."""
    out = Path(out)
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"formats: {name} is not for videos; expected json or csv")
    with quiet(), asked_to_stop() as stop:
        video = Video(source)
        find = _given(predictor, boxes, flip_test) if boxes is not None else Tracker(predictor, flip_test)
        smoother = Smoother() if smooth else None
        with Outputs(out, predictor.layout, video, formats, overlays) as outputs:
            seen = _predict(video, find, smoother, outputs, stop)
    return _sentence(video, seen, out)


def _predict(
    video: Video, find: Callable, smoother: Smoother | None, outputs: Outputs, stop: Callable[[], bool]
) -> _Seen:
    seen = _Seen()
    for frame in _shown(video):
        try:
            faces = find(frame.image)
        except InputError as error:
            raise InputError(f"{video.title}: {error}") from None
        faces = smoother(faces, frame.time) if smoother else faces
        outputs.add(frame, faces)
        seen.frames, seen.empty = seen.frames + 1, seen.empty + (not faces)
        seen.ids |= {face.id for face in faces}
        if stop():
            seen.stopped = True
            break
    return seen


def _given(predictor: Predictor, boxes: Sequence | np.ndarray, flip_test: bool) -> Callable:
    """What finds the faces of a frame in boxes that stay where they are."""

    def find(image: np.ndarray) -> list[TrackedFace]:
        faces = predictor(image, boxes, flip_test=flip_test)
        return [TrackedFace(face.box, face.landmarks, face.scores, id) for id, face in enumerate(faces)]

    return find


def _shown(video: Video) -> Iterable[Frame]:
    """The frames, with a progress bar where a terminal shows it."""
    screen = Console(stderr=True)
    label = "predicting (Ctrl-C ends)" if video.is_camera else "predicting"
    return track(video, label, total=video.count, console=screen, disable=not screen.is_terminal)


def _sentence(video: Video, seen: _Seen, out: Path) -> str:
    """How it went, for the user."""
    sentence = f"{_count(seen.frames, 'frame')}, {_count(len(seen.ids), 'face')} followed, into {printable(out)}"
    sentence += f"; {_count(seen.empty, 'frame')} without a face" if seen.empty else ""
    if seen.stopped and not video.is_camera:
        return f"{sentence}; stopped before the end of the video"
    if video.count is not None and seen.frames < 0.95 * video.count:  # some formats only estimate their length
        return f"{sentence}; {video.title} says that it has {video.count} frames, so it may be cut short"
    return sentence


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"
