"""The frames of a video file or a camera, by OpenCV."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from iact.errors import InputError
from iact.files import is_utf8, printable

USUAL_RATE = 30.0  # frames a second, of sources that do not tell


@dataclass(frozen=True)
class Frame:
    """One picture of a video: RGB uint8 [H, W, 3], and its time in seconds from the first."""

    time: float
    image: np.ndarray


class Video:
    """The frames of a video file, or of the camera with that number: `for frame in Video(Path("clip.mp4"))`, once.

    Files that phones recorded upright are turned as they say. `rate` is in frames a second; of a file whose rate
    varies it is the mean, of a source that tells none 30. `count` is how many frames a file says it has, None where it
    does not, or of a camera. `size` is (width, height). InputError where there is no video or camera, or no frame, and
    for a path that is not UTF-8."""

    def __init__(self, source: Path | int):
        self.is_camera = isinstance(source, int)
        self.title = f"camera:{source}" if self.is_camera else str(source)
        self.name = f"camera_{source}" if self.is_camera else source.stem
        if not self.is_camera:
            check_name(source)
            if not source.is_file():
                raise InputError(f"{source}: no such video")
        self._capture = cv2.VideoCapture(source if self.is_camera else str(source))
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        if not self._capture.isOpened():
            got = "no camera answers to this number" if self.is_camera else "not a video that can be read, or cut short"
            raise InputError(f"{self.title}: {got}")
        self._first = self._read()
        if self._first is None:
            raise InputError(f"{self.title}: no frame could be read")
        self._started, self._first_time = time.monotonic(), self._clock()
        self.size = self._first.shape[1::-1]
        rate, count = self._capture.get(cv2.CAP_PROP_FPS), self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = float(rate) if 0 < rate < 1000 else USUAL_RATE  # 1000 is the unit of Matroska's clock, no rate
        self.count = int(count) if not self.is_camera and 0 < count < 1e9 else None

    def __iter__(self) -> Iterator[Frame]:
        image, last = self._first, 0.0
        self._first = None
        try:
            while image is not None:
                yield Frame(last, image)
                image = self._read()
                now = time.monotonic() - self._started if self.is_camera else self._clock() - self._first_time
                last = now if math.isfinite(now) and now > last else last + 1 / self.rate  # some clocks stand still
        finally:
            self._capture.release()

    def _read(self) -> np.ndarray | None:
        good, image = self._capture.read()
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if good and image is not None else None

    def _clock(self) -> float:
        """Seconds at which the file shows the frame that was read last."""
        return self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3


def check_name(path: Path) -> None:
    """InputError for a path that is not UTF-8: OpenCV's videos crash on it."""
    if not is_utf8(path):
        raise InputError(f"{printable(path)}: expected a path in UTF-8, which is all that OpenCV takes for videos")


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps OpenCV from printing what is wrong with a video, which we say in a sentence.

    FFmpeg inside OpenCV reads its level once, when it is first used, so that cannot be taken back."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
