"""Run folders: what is in them, and how to make one from the command line."""

import csv
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import load_file

from iact.config import TrainConfig

SPEEDS = ("images_per_second", "waiting_for_data")  # columns of a log that differ from run to run


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of its log."""
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    """All its files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_weights(one: Path, other: Path) -> bool:
    """Whether two weights files hold the same bits."""
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def command(config: TrainConfig) -> list[str]:
    """The arguments that make scripts/train.py run `config`."""
    default = TrainConfig()
    changed = [field.name for field in fields(config) if getattr(config, field.name) != getattr(default, field.name)]
    flags = {name: getattr(config, name) for name in changed}
    resume = ["--resume"] if flags.pop("resume", False) else []
    return [*(part for name, value in flags.items() for part in ("--" + name.replace("_", "-"), str(value))), *resume]
