"""The Face record: what every reader gives and everything after it takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from iact.errors import InputError
from iact.files import is_utf8
from iact.layouts import Layout

FARTHEST = 1e6  # px from the corner of a picture


class ImageSource(Protocol):
    """Where a picture comes from. Two faces of one picture have equal sources."""

    def read(self) -> np.ndarray:
        """RGB uint8 [H, W, 3]; InputError naming the source when it cannot be read."""


@dataclass(frozen=True)
class ImageFile:
    """A picture in a file that OpenCV reads: grey, alpha and 16-bit ones become RGB uint8, EXIF rotation is applied."""

    path: Path

    def read(self) -> np.ndarray:
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such picture")
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise InputError(f"{self.path}: the picture cannot be read ({error.strerror})") from None
        try:
            return decode_picture(data)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None

    def frames(self) -> int:
        """How many pictures the file holds: more than one for an animation, or several scanned pages; 0 when it cannot
        be read; 1 where its name is not UTF-8, at which OpenCV would crash. `read` gives the first."""
        return cv2.imcount(str(self.path)) if is_utf8(self.path) else 1

    def __str__(self) -> str:
        return str(self.path)


def decode_picture(data: bytes) -> np.ndarray:
    """RGB uint8 [H, W, 3] of an encoded picture, turned as it says (by an EXIF tag, or in an AVIF by properties of its
    own); InputError where it is none."""
    if _is_cut_short(data):
        raise InputError("the picture is cut short")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # no bytes, or more pixels than OpenCV takes on
        image = None
    if image is None:
        raise InputError("not a picture that can be decoded")
    return cv2.cvtColor(_turn_avif(data, image), cv2.COLOR_BGR2RGB)


def _turn_avif(data: bytes, image: np.ndarray) -> np.ndarray:
    """The picture as an AVIF wants it shown (ISO/IEC 23008-12, 6.5.10 and 6.5.12), of which OpenCV knows nothing."""
    if data[4:12] != b"ftypavif":
        return image
    turns, mirrors = (data.find(b"\x00\x00\x00\x09" + name) + 8 for name in (b"irot", b"imir"))
    if turns > 7:
        image = np.rot90(image, data[turns] & 3)
    if mirrors > 7:
        image = np.flip(image, data[mirrors] & 1)
    return np.ascontiguousarray(image)


def _is_cut_short(data: bytes) -> bool:
    """Whether these are the bytes of a JPEG without its end; older decoders fill in the rest without a word. What
    follows the end, such as the film of a phone's moving photograph, does not matter."""
    scan = _first_scan(data)
    return scan > 0 and data.find(b"\xff\xd9", scan) < 0


def _first_scan(data: bytes) -> int:
    """Where the pixels of a JPEG begin, behind all segments, which may hold a thumbnail with an end of its own; 0 where
    they never do, and for other bytes."""
    place = 2
    while data.startswith(b"\xff\xd8") and data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        if data[place + 1] == 0xDA:
            return place
        filled = data[place + 1] == 0xFF  # any number of these may stand before a marker
        place += 1 if filled else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return 0


@dataclass(frozen=True, eq=False)
class Face:
    """One annotated face.

    `name` identifies it within its data set; `landmarks` float64 [K, 2] are image px (pixel centres are integers);
    `box` is the data set's own rectangle (x0, y0, x1, y1) where it has one; `visible` [K] is false for occluded
    landmarks; `tags` are the data set's attributes; `origin` is the file (and line) of the annotation, for messages.
    `photograph` names what several faces may have been cut from, where it is not the image itself."""

    name: str
    image: ImageSource
    landmarks: np.ndarray
    origin: str
    box: np.ndarray | None = None
    visible: np.ndarray | None = None
    tags: frozenset[str] = frozenset()
    photograph: str | None = None


@dataclass(frozen=True)
class Faces:
    """Faces of one split: the layout, the records, and sentences on what the split should hold but does not."""

    layout: Layout
    split: str
    records: tuple[Face, ...]
    missing: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)


def check_box(box: np.ndarray, origin: str) -> np.ndarray:
    """The box as float64 [4]; InputError naming `origin` when it lies far from any picture."""
    box = np.asarray(box, np.float64)
    if not (np.abs(box) <= FARTHEST).all():
        raise InputError(f"{origin}: the box {box.tolist()} lies far from any picture")
    return box


def check_landmarks(landmarks: np.ndarray, layout: Layout, origin: str) -> np.ndarray:
    """The landmarks as float64 [K, 2]; InputError naming `origin` when the count is wrong or a number is not finite."""
    landmarks = np.asarray(landmarks, np.float64)
    expected = (layout.num_landmarks, 2)
    if landmarks.shape != expected:
        raise InputError(f"{origin}: expected {expected[0]} landmarks, got an array of shape {landmarks.shape}")
    if not np.isfinite(landmarks).all():
        raise InputError(f"{origin}: landmark {int(np.argwhere(~np.isfinite(landmarks))[0, 0])} is not a finite number")
    if np.abs(landmarks).max() > FARTHEST:
        landmark = int(np.abs(landmarks).max(axis=1).argmax())
        raise InputError(f"{origin}: landmark {landmark} lies at {landmarks[landmark].tolist()}, far from any picture")
    return landmarks
