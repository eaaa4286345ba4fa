"""What a video leaves behind, written frame by frame: nothing but the frame at hand is in memory."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import cv2
import numpy as np

from iact.errors import InputError
from iact.files import printable, write_atomically
from iact.layouts import Layout
from iact.plots import draw_landmarks
from iact.results import face_cells, face_columns, face_fields
from iact.video.frames import Frame, Video, check_name
from iact.video.tracking import TrackedFace

LONGEST_STILL = 10.0  # seconds for which one frame is shown at most


class _File(Protocol):
    """A file of results while it is written."""

    def add(self, frame: Frame, faces: Sequence[TrackedFace]) -> None: ...

    def close(self) -> None: ...


class _Json:
    """{"layout", "video", "frames_per_second", "frames": [[<face>, ...], ...], "times": [...]}, a line for a frame."""

    def __init__(self, path: Path, layout: Layout, video: Video):
        self._file, self._times = path.open("w", encoding="utf-8"), []
        about = {"layout": layout.name, "video": video.title, "frames_per_second": video.rate}
        self._file.write(json.dumps(about)[:-1] + ', "frames": [')

    def add(self, frame: Frame, faces: Sequence[TrackedFace]) -> None:
        self._file.write(",\n" if self._times else "\n")
        self._file.write(json.dumps([{"id": face.id, **face_fields(face)} for face in faces]))
        self._times.append(round(frame.time, 4))

    def close(self) -> None:
        self._file.write(f'\n], "times": {json.dumps(self._times)}}}\n')
        self._file.close()


class _Csv:
    """A row for each face of each frame: frame, time, id, box_x0 ... box_y1, x and y of each landmark, their scores."""

    def __init__(self, path: Path, layout: Layout):
        self._file, self._frames = path.open("w", encoding="utf-8", newline=""), 0
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(["frame", "time", "id", *face_columns(layout)])

    def add(self, frame: Frame, faces: Sequence[TrackedFace]) -> None:
        for face in faces:
            self._rows.writerow([self._frames, round(frame.time, 4), face.id, *face_cells(face)])
        self._frames += 1

    def close(self) -> None:
        self._file.close()


class _Overlay:
    """An MPEG-4 video with landmarks and numbers drawn, in the source's size, less a last odd column or row.

    Its rate is constant: a frame is repeated until the next is due, as of a camera that gives fewer than it says, for
    `LONGEST_STILL` at most. After a longer gap, time goes on from there."""

    def __init__(self, path: Path, layout: Layout, video: Video):
        self._path, self._layout, self._frames = path, layout, 0
        self._last, self._start = np.zeros((0, 0, 3), np.uint8), 0.0  # s, of the video's time
        self._rate, (width, height) = round(video.rate, 2), video.size
        self._size = (max(2, width - width % 2), max(2, height - height % 2))  # the format halves its colours' size
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), self._rate, self._size)
        if not self._writer.isOpened():
            what = f"{self._size[0]} x {self._size[1]} px at {self._rate} frames a second"
            raise InputError(f"{video.title}: OpenCV cannot write a video of {what}; leave the overlays out")

    def add(self, frame: Frame, faces: Sequence[TrackedFace]) -> None:
        width, height = self._size
        image = cv2.cvtColor(draw_faces(frame.image, faces, self._layout), cv2.COLOR_RGB2BGR)[:height, :width]
        if image.shape[1::-1] != self._size:  # sources may change their size on the way
            image = cv2.resize(image, self._size)
        self._wait(frame.time)
        self._write(image)
        self._last = image

    def _wait(self, time: float) -> None:
        """Shows the frame before, until the one of that time (seconds) is due."""
        missing, longest = round((time - self._start) * self._rate) - self._frames, round(LONGEST_STILL * self._rate)
        for _ in range(min(missing, longest - 1)):  # it has been shown once
            self._write(self._last)
        if missing >= longest:
            self._start = time - self._frames / self._rate

    def _write(self, image: np.ndarray) -> None:
        self._writer.write(image)
        self._frames += 1

    def close(self) -> None:
        """OSError when the video is not whole: OpenCV says nothing about a full disk."""
        self._writer.release()
        written = cv2.VideoCapture(str(self._path)).get(cv2.CAP_PROP_FRAME_COUNT)
        if written != self._frames:
            raise OSError(f"{written:.0f} of {self._frames} frames were written; is the disk full?")


class Outputs:
    """The files of a video below a folder: `with Outputs(...) as outputs: outputs.add(frame, faces)`.

    All of them appear, whole, when the block ends well, and none of them otherwise; the folder is made with the first
    frame. InputError naming the folder when it cannot be written, or when the overlay would replace the video, or has
    a path that is not UTF-8."""

    def __init__(self, out: Path, layout: Layout, video: Video, formats: Sequence[str], overlays: bool):
        self._out, self._layout, self._video = out, layout, video
        names = [f"landmarks.{name}" for name in ("json", "csv") if name in formats]
        self._names = [*names, f"{video.name}.mp4"] if overlays else names
        if Path(video.title).resolve() in ((out / name).resolve() for name in self._names):
            raise InputError(f"{out}: {video.title} would be replaced by its overlay; choose another folder")
        if overlays:
            check_name(out.absolute())
        self._folder: TemporaryDirectory | None = None
        self._files: dict[str, _File] = {}

    def __enter__(self) -> "Outputs":
        return self

    def add(self, frame: Frame, faces: Sequence[TrackedFace]) -> None:
        """Writes the faces of the next frame."""
        try:
            if self._folder is None:
                self._start()
            for file in self._files.values():
                file.add(frame, faces)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _start(self) -> None:
        self._out.mkdir(parents=True, exist_ok=True)
        self._folder = TemporaryDirectory(prefix=".video-", dir=self._out, ignore_cleanup_errors=True)
        self._files = {name: self._open(Path(self._folder.name) / name) for name in self._names}

    def _open(self, path: Path) -> _File:
        if path.suffix == ".csv":
            return _Csv(path, self._layout)
        return (_Json if path.suffix == ".json" else _Overlay)(path, self._layout, self._video)

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._folder is None:
            return
        with self._folder as folder:
            if kind is not None:
                return
            try:
                for file in self._files.values():
                    file.close()
            except OSError as error:
                raise self._cannot_write(error) from error
            for name in self._names:
                made = Path(folder) / name
                write_atomically(self._out / name, lambda temporary, made=made: os.replace(made, temporary))

    def _cannot_write(self, error: OSError) -> InputError:
        return InputError(f"{printable(self._out)}: cannot be written ({error.strerror or error})")


def draw_faces(image: np.ndarray, faces: Sequence[TrackedFace], layout: Layout) -> np.ndarray:
    """A copy of the RGB image with the landmarks of all faces and, at their upper left, their numbers."""
    image = image.copy()
    for face in faces:
        image = draw_landmarks(image, face.landmarks, layout)
        (x, y), side = face.landmarks.min(axis=0), float(np.ptp(face.landmarks, axis=0).max())
        size = min(max(side / 200, 0.5), 3.0)
        corner = (round(float(np.clip(x, 0, image.shape[1]))), round(float(np.clip(y - 4, 22 * size, image.shape[0]))))
        for thick, paint in ((3, (0, 0, 0)), (1, (255, 255, 255))):  # white with a dark rim, on any skin
            width = max(1, round(thick * size))
            cv2.putText(image, str(face.id), corner, cv2.FONT_HERSHEY_SIMPLEX, size, paint, width, cv2.LINE_AA)
    return image
