"""Crops kept in a file: faces are decoded and cut once, and every later run maps the file into memory."""

import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from iact.data.crops import Crops, cut_faces
from iact.data.faces import Faces, ImageSource
from iact.errors import InputError
from iact.files import write_atomically

KEPT_BYTES = 20 * 10**9  # what the files of a folder may take together, as far as none of them was used in the last day
DAY = 86400.0

_FILES = f"*px-{'[0-9a-f]' * 16}.safetensors*"  # of this cache: crops, and what was left by a process that was killed
_TYPES = {"float64": "F64", "float32": "F32", "bool": "BOOL", "uint8": "U8"}  # in the words of the file format
_PACKAGE = Path(__file__).parents[1]
_CODE = ("geometry.py", "data/cache.py", "data/cofw.py", "data/crops.py", "data/faces.py", "data/synthetic/*.py")


def cached_crops(
    faces: Faces, size: int, margin: float, folder: Path | None = None, say: Callable[[str], None] = print
) -> Crops:
    """What `cut_faces` gives, read back from a file of `folder` where the same faces were cut before.

    The folder is by default `$IACT_CACHE`, `$XDG_CACHE_HOME/iact` or `~/.cache/iact`. The file counts as the same
    faces' while size, margin, names, landmarks, visibility and sources are equal, as are the files the sources read
    (their `path`; size and time of change) and the code that makes the pictures. The repr of a source must say which
    picture it is. A file that is damaged is made anew; where none can be kept, the crops are in memory alone; one
    sentence for `say` tells either. Of two processes that want the same file one waits for the other. InputError as
    from `cut_faces`, and then no file is left."""
    key = _key(faces, size, margin)
    name = re.sub(r"[^A-Za-z0-9]+", "_", f"{faces.layout.name} {faces.split}")
    try:
        path = (folder or _default_folder()) / f"{name}-{size}px-{key[:16]}.safetensors"
    except RuntimeError as error:  # nobody's home
        say(f"the cut faces are in memory only, and not kept for the next run ({error})")
        return cut_faces(faces, size, margin)
    crops, damage = _read(path, key)
    if crops is not None:
        return crops
    if damage:
        say(damage)
    try:
        lock = _lock(path, say)
    except (OSError, NotImplementedError) as error:  # the latter for a file system without locks
        say(f"{path.parent}: the cut faces cannot be kept there ({error})")
        return cut_faces(faces, size, margin)
    with lock:
        crops, _ = _read(path, key)  # another process may have made the file meanwhile
        return _build(faces, size, margin, path, key, say) if crops is None else crops


def _default_folder() -> Path:
    if os.environ.get("IACT_CACHE"):
        return Path(os.environ["IACT_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "iact"


def _key(faces: Faces, size: int, margin: float) -> str:
    """A hash of everything that the crops depend on."""
    key = hashlib.sha256(repr((size, float(margin), cv2.__version__)).encode())
    for pattern in _CODE:  # so that nobody has to remember to raise a version
        for path in sorted(_PACKAGE.glob(pattern)):
            key.update(path.read_bytes())
    for face in faces.records:
        visible = None if face.visible is None else np.asarray(face.visible, bool).tolist()
        key.update(repr((face.name, visible, repr(face.image), _stamp(face.image))).encode())
        key.update(np.asarray(face.landmarks, np.float64).tobytes())
    return key.hexdigest()


def _stamp(source: ImageSource) -> tuple[int, int] | None:
    """Bytes and time of change of the file that a source reads; none where it reads no file, or a missing one."""
    try:
        status = os.stat(source.path)
    except (AttributeError, OSError, TypeError):  # what is wrong with the file is said when it is read
        return None
    return status.st_size, status.st_mtime_ns


def _lock(path: Path, say: Callable[[str], None]) -> AbstractContextManager:
    """The lock of a file, held until the context is left or the process ends. OSError where there can be none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that cuts the same faces (it holds {lock.lock_file})")
        return lock.acquire()


def _build(faces: Faces, size: int, margin: float, path: Path, key: str, say: Callable[[str], None]) -> Crops:
    """The faces cut, and the file made of them where it can be; called by the holder of its lock."""
    say(f"cutting {len(faces)} faces to {size} px, once, into {path}")
    crops = cut_faces(faces, size, margin)
    try:
        for left_over in path.parent.glob(f".{path.name}.*.tmp"):  # by a process that was killed: this one has the lock
            left_over.unlink()
        _make_room(path.parent, sum(array.nbytes for array in _arrays(crops).values()), say)
        write_atomically(path, lambda temporary: _write(temporary, crops, key))
    except (InputError, OSError) as error:
        say(f"the cut faces are in memory only: {error}")
        return crops
    kept, _ = _read(path, key)
    return crops if kept is None else kept  # the mapped ones, which processes share


def _make_room(folder: Path, needed: int, say: Callable[[str], None]) -> None:
    """Removes the files used least recently until `needed` bytes fit into the folder, but none used in the last day."""
    files = []
    for path in folder.glob(_FILES):
        with suppress(FileNotFoundError):  # other processes come and go here
            files.append((path.stat(), path))
    excess, removed = needed + sum(status.st_size for status, _ in files) - KEPT_BYTES, 0
    for status, path in sorted(files, key=lambda file: file[0].st_mtime):
        if excess <= removed or time.time() - status.st_mtime < DAY:
            break
        with suppress(PermissionError):  # another user's, in a folder that they share
            path.unlink(missing_ok=True)
            removed += status.st_size
    if removed:
        say(f"{folder}: removed {removed / 1e9:.1f} GB of cut faces, the least recently used")


def _arrays(crops: Crops) -> dict[str, np.ndarray]:
    """The parts of the crops in the order of the file: the widest numbers first, so that all of them are aligned."""
    return {
        "matrices": crops.matrices,
        "landmarks": crops.landmarks.numpy(),
        "visible": crops.visible.numpy(),
        "pictures": crops.pictures.numpy(),
    }


def _checksum(crops: Crops, key: str) -> str:
    """The CRC-32 of everything in the crops, and of the key, so that no file passes for another."""
    checksum = zlib.crc32(f"{key} {float(crops.margin)}".encode())
    for name, array in _arrays(crops).items():
        checksum = zlib.crc32(array, zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), checksum))
    return f"{checksum:08x}"


def _write(path: Path, crops: Crops, key: str) -> None:
    """Writes a safetensors file straight from memory; the library's own `save` would hold a second copy."""
    header: dict = {"__metadata__": {"margin": str(float(crops.margin)), "checksum": _checksum(crops, key)}}
    start = 0
    for name, array in _arrays(crops).items():
        end = start + array.nbytes
        header[name] = {"dtype": _TYPES[array.dtype.name], "shape": array.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in _arrays(crops).values():
            file.write(array)


def _read(path: Path, key: str) -> tuple[Crops | None, str]:
    """The crops of a file, mapped into memory, or none and the sentence why: an empty one where there is no file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            crops = Crops(
                pictures=file.get_tensor("pictures"),
                landmarks=file.get_tensor("landmarks"),
                visible=file.get_tensor("visible"),
                matrices=file.get_tensor("matrices").numpy(),
                margin=float(metadata["margin"]),
            )
        if metadata.get("checksum") != _checksum(crops, key):
            raise ValueError("the checksum is wrong")
    except FileNotFoundError:
        return None, ""
    except (SafetensorError, OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        return None, f"{path}: damaged, so the faces are cut anew ({error})"
    with suppress(OSError):  # of another user, or on a disk that is read only
        os.utime(path)  # used now: see _make_room
    return crops, ""
