"""Writing files so that a crash, a full disk or a second process never leaves half of one."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from iact.errors import InputError

LONGEST = 220  # bytes of a name that may stand whole in that of its temporary file, which has more; systems allow 255


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary path in the same folder (made where missing), then moves the file into place.

    InputError naming the path when it cannot be written; an older file of that name is then untouched."""
    name = path.name if len(os.fsencode(path.name)) <= LONGEST else path.name[:50]
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):  # it is gone after a success; after a failure, that is what counts
            temporary.unlink()


def is_utf8(path: Path) -> bool:
    """Whether its name is text. Others are legal, but libraries written in C++ may crash on them."""
    return not any("\ud800" <= letter <= "\udfff" for letter in str(path))


def printable(text: Path | str) -> str:
    """A path, or a text with paths in it, as any terminal or file takes it, with escapes for what is not UTF-8."""
    return str(text).encode(errors="backslashreplace").decode()
