"""The folder of a run: which one it gets, and that nothing of an earlier run in it is lost."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from iact.checkpoint import RESUME, WEIGHTS
from iact.config import TrainConfig
from iact.errors import InputError
from iact.files import write_atomically

SETTINGS = "config.json"
LOCK = ".lock"
MAY_CHANGE = {"out", "resume", "root", "epochs", "device", "amp", "threads", "cache", "graph", "compile", "recompute"}
"""Settings that may differ on resuming: where the run is computed, and for how long."""


@contextmanager
def held_folder(config: TrainConfig) -> Iterator[Path]:
    """The run folder, which no other training writes into meanwhile; it goes again where nothing came into it.

    InputError where it holds a run that `config` must not or cannot continue, or one that is being trained."""
    folder = _named_folder(config)
    if config.resume:
        _check_resumable(config, folder)
    elif config.out is None:
        folder = _new_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        if not config.resume and any((folder / name).exists() for name in (RESUME, *WEIGHTS.values())):
            raise InputError(f"{folder} holds a run already: pass --resume to continue it, or another --out")
        yield folder


def epochs_begun_with(config: TrainConfig) -> int | None:
    """Those of the run that `config` is to go on with; None where there is none, or no run."""
    path = _named_folder(config) / SETTINGS
    return _read_settings(path).get("epochs") if config.resume and path.exists() else None


def save_settings(config: TrainConfig, folder: Path) -> None:
    """Writes config.json, from which a resumed run is checked and a finished one understood."""
    text = json.dumps(config.to_json(), indent=2) + "\n"
    write_atomically(folder / SETTINGS, lambda path: path.write_text(text))


def _check_resumable(config: TrainConfig, folder: Path) -> None:
    if not (folder / RESUME).exists():
        raise InputError(f"{folder / RESUME}: no checkpoint to resume from")
    begun = _read_settings(folder / SETTINGS)
    for name, value in config.to_json().items():
        if name not in MAY_CHANGE and begun.get(name, value) != value:
            raise InputError(
                f"{folder / SETTINGS}: this run was begun with {name} {begun[name]}, got {value}; "
                "--start-from trains its weights with other settings"
            )


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{path}: the settings of the run cannot be read ({error})") from None


def _named_folder(config: TrainConfig) -> Path:
    return config.out or Path("runs") / f"{config.data}-{config.model}"


def _new_folder(wanted: Path) -> Path:
    """Makes the folder of that name, or of the first number behind it that is free."""
    folder, number = wanted, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Held by one process at a time, where the file system has locks; a folder left empty goes with it.

    InputError where another process holds it."""
    lock = FileLock(folder / LOCK)
    try:
        with suppress(NotImplementedError):  # a file system without locks
            lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"{folder}: another training writes into this folder") from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # before it is released: the next holder makes its own
        if not any(folder.iterdir()):
            folder.rmdir()
        lock.release()
