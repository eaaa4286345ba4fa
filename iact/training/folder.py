"""The folder of a run: which one it gets, and that nothing of an earlier run in it is lost."""

import json
from pathlib import Path
from typing import Any

from iact.checkpoint import RESUME, WEIGHTS
from iact.config import TrainConfig
from iact.errors import InputError
from iact.files import write_atomically

SETTINGS = "config.json"
MAY_CHANGE = {"out", "resume", "root", "epochs", "device", "amp", "threads", "cache", "graph", "compile", "recompute"}
"""Settings that may differ on resuming: where the run is computed, and for how long."""


def choose_folder(config: TrainConfig) -> Path:
    """The run folder, as yet untouched. InputError where it holds a run that `config` must not or cannot continue."""
    folder = config.out or _free_folder(Path("runs") / f"{config.data}-{config.model}", config.resume)
    if config.resume:
        _check_resumable(config, folder)
    elif any((folder / name).exists() for name in (RESUME, *WEIGHTS.values())):
        raise InputError(f"{folder} holds a run already: pass --resume to continue it, or another --out")
    return folder


def epochs_begun_with(config: TrainConfig) -> int | None:
    """Those of the run that `config` is to go on with; None where there is none, or no run."""
    path = (config.out or _free_folder(Path("runs") / f"{config.data}-{config.model}", config.resume)) / SETTINGS
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


def _free_folder(wanted: Path, resume: bool) -> Path:
    if resume:
        return wanted
    number = 1
    while (candidate := wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")).exists():
        number += 1
    return candidate
