"""Which choices of the training matter: variants, several seeds, the same held-out training faces, paired intervals.

python benchmarks/bench_study.py --study recipe --data 300w --root DIR --model iact_t --epochs 15 --seeds 2

Studies: the recipe, one change at a time; table5 (attention), table6 (feature attention) and figure4 (convergence of
two losses in three networks) as in the paper. A tenth of the training split is held out, the same faces for every
variant and seed; test faces are not read. Whatever is finished is kept in a JSON below --out, and the same command goes
on after an interruption; more --seeds or other variants with --only join what is there. What another study in --out has
trained in the same setting is taken from it."""

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import starmap
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Literal, get_args

import torch
import tyro
from machine import ROOT, write_result

sys.path.insert(0, str(ROOT))

from studies import OURS, StudyName, Variant, choose  # noqa: E402
from study_report import MOST_CURVES, curves_of, plot_curves, summarise, table  # noqa: E402
from study_training import (  # noqa: E402
    HeldOut,
    drawn_config,
    folder_of,
    read_held_out,
    read_log,
    speed,
    train_drawn,
    train_variant,
)

from iact.__main__ import run  # noqa: E402
from iact.config import DataName, OptionalPath, TrainConfig  # noqa: E402
from iact.errors import InputError  # noqa: E402
from iact.files import write_atomically  # noqa: E402
from iact.inference import Precision, find_device, find_precision  # noqa: E402

OF_THE_MACHINE = {"amp", "cache", "compile", "device", "graph", "out", "recompute", "resume", "root", "seed", "threads"}
"""Settings that say nothing of what is compared; device and precision are recorded as what they come to."""


@dataclass(frozen=True)
class Settings:
    """What to compare, and in what setting; everything else is as in the default recipe of training."""

    study: StudyName
    data: DataName = "synthetic"
    """Faces drawn by the program, or the data set below the root."""
    root: OptionalPath = None
    """Folder of the data set as it was downloaded."""
    model: Literal["iact", "iact_s", "iact_t"] = "iact_t"
    epochs: int = 15
    """Of every training."""
    seeds: int = 2
    """Trainings of each variant: seeds 0, 1, ..."""
    only: tuple[str, ...] = ()
    """Variants to train, with those they are compared with; all when none is named."""
    table: bool = False
    """Train nothing: print the table of what is there, and draw its curves."""
    hold_out: float = 0.1
    """Share of the training faces that every variant is measured on."""
    batch_size: int = 16
    learning_rate: float = 2e-3
    synthetic_faces: int = 2000
    synthetic_layout: Literal["300w", "wflw", "cofw"] = "300w"
    out: Path = Path("benchmarks/results")
    """Folder of the study's JSON and plot, and of run folders (below runs/), each until its errors are in the JSON."""
    device: str = "auto"
    amp: Precision = "auto"
    threads: int = 0
    """CPU threads of a training; 0 leaves the choice to PyTorch."""
    workers: int = 1
    """Trainings at a time. On a CPU two of one thread each get more done than one of two."""

    @property
    def name(self) -> str:
        return f"study_{self.study}_{self.data}_{self.model}"

    @property
    def path(self) -> Path:
        return self.out / f"{self.name}.json"

    def config(self) -> TrainConfig:
        """The training that all variants change."""
        shared = {entry.name for entry in fields(self)} & {entry.name for entry in fields(TrainConfig)} - {"out"}
        return replace(TrainConfig(), **{name: getattr(self, name) for name in shared})


def main(settings: Annotated[Settings, tyro.conf.arg(name="")]) -> None:
    for name in ("seeds", "epochs", "workers"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name}: expected at least 1, got {getattr(settings, name)}")
    if not settings.table:
        carry_out(settings)
    result = read_result(settings.path)
    print(table(result))
    curves = curves_of(result["rows"])
    if 0 < len(curves) <= MOST_CURVES:
        title = "{study}: {data}, {model}".format(**result, **result["settings"])
        plot_curves(curves, title, settings.path.with_suffix(".png"))


def carry_out(settings: Settings) -> None:
    """Trains and measures what the JSON lacks: all variants with the first seed, then with the next."""
    config, chosen = settings.config(), choose(settings.study, settings.only, settings.data)
    held_out = read_held_out(config)
    begun = {"settings": describe(config), "held_out": held_out.names, "trained_on": held_out.trained_on}
    wanted = [(variant, seed) for seed in range(settings.seeds) for variant in chosen]
    rows = rows_so_far(settings.path, begun)
    rows += rows_of_others(settings, begun, missing(wanted, rows))
    write(settings, begun, rows)  # before a run folder is made, which only these settings may go on with
    try:
        train_all(missing(wanted, rows), config, held_out, settings, begun, rows)
    except InputError:
        if not rows:
            settings.path.unlink()  # or settings that nothing can be trained with would refuse all others
        raise


def train_all(
    todo: list[tuple[Variant, int]],
    config: TrainConfig,
    held_out: HeldOut,
    settings: Settings,
    begun: dict,
    rows: list[dict],
) -> None:
    """Trains each variant with its seed, and keeps its rows before the next."""
    place = settings.out / "runs" / settings.name
    announce(todo, rows, replace(config, out=place / "trial"), held_out.trained_on, settings.workers)
    if any(variant.from_drawn for variant, _ in todo):
        train_drawn(replace(config, out=place / "trial"))  # before several workers want it
    configs = [replace(config, seed=seed, out=folder_of(variant, seed, place)) for variant, seed in todo]
    jobs = [(variant, one, held_out) for (variant, _), one in zip(todo, configs, strict=True)]
    for (_, one, _), found in zip(jobs, trained(jobs, settings.workers), strict=True):
        rows += found
        write(settings, begun, rows)
        shutil.rmtree(one.out)  # checkpoints of all trainings together would fill a disk


def trained(jobs: list[tuple[Variant, TrainConfig, HeldOut]], workers: int) -> Iterator[list[dict]]:
    """The rows of each training, in order; so many processes share them, which end with this one."""
    if workers == 1:
        yield from starmap(train_aloud, jobs)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves the block below, which ends the workers
    with get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
        for waiting in [pool.apply_async(train_aloud, job) for job in jobs]:
            yield waiting.get()


def train_aloud(variant: Variant, config: TrainConfig, held_out: HeldOut) -> list[dict]:
    print(f"\n{variant.name}, seed {config.seed}", flush=True)
    return train_variant(variant, config, held_out)


def describe(config: TrainConfig) -> dict:
    """What rows must have in common to stand in one table."""
    device = find_device(config.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    same = {name: value for name, value in config.to_json().items() if name not in OF_THE_MACHINE}
    return {**same, "device": where, "precision": str(find_precision(config.amp, device) or torch.float32)}


def read_result(path: Path) -> dict:
    """The JSON of a study. InputError where there is none, or it is damaged."""
    if not path.exists():
        raise InputError(f"{path}: no such study yet; without --table it is begun")
    try:
        result = json.loads(path.read_text())
        found = {name: result[name] for name in ("study", "settings", "held_out", "trained_on")}
        return found | {"rows": result.get("rows", [])}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not the JSON of a study ({error!r})") from None


def rows_so_far(path: Path, begun: dict) -> list[dict]:
    """The rows that an earlier command left. InputError where it was begun with other settings or faces."""
    if not path.exists():
        return []
    result = read_result(path)
    old, new = result["settings"], begun["settings"]
    for name in [*new, *(name for name in old if name not in new)]:
        if old.get(name) != new.get(name):
            raise InputError(
                f"{path}: this study was begun with {name} {old.get(name)}, got {new.get(name)}; "
                "another --out keeps them apart"
            )
    if result["held_out"] != begun["held_out"] or result["trained_on"] != begun["trained_on"]:
        raise InputError(f"{path}: this study was begun with other faces; another --out keeps them apart")
    return result["rows"]


def missing(wanted: list[tuple[Variant, int]], rows: list[dict]) -> list[tuple[Variant, int]]:
    """The variants and seeds that have no row."""
    done = {(row["variant"], row["seed"]) for row in rows}
    return [(variant, seed) for variant, seed in wanted if (variant.name, seed) not in done]


def rows_of_others(settings: Settings, begun: dict, wanted: list[tuple[Variant, int]]) -> list[dict]:
    """What other studies of the same setting and faces have of these; a variant's name says all that it changes."""
    paths = [replace(settings, study=study).path for study in get_args(StudyName) if study != settings.study]
    results = [read_result(path) for path in paths if path.exists()]
    same = [result for result in results if all(result[name] == begun[name] for name in begun)]
    found = {(row["variant"], row["seed"]): row for result in same for row in result["rows"]}
    keys = [(variant.name, seed) for variant, seed in wanted if not variant.also]  # which needs the weights
    return [found[key] for key in keys if key in found]


def write(settings: Settings, begun: dict, rows: list[dict]) -> None:
    """Keeps the rows, whatever happens next."""
    command = " ".join(["python", *sys.argv])
    result = {"benchmark": "study", "study": settings.study, "command": command, **begun, "summary": summarise(rows)}
    write_atomically(settings.path, partial(write_result, result=result, rows=rows))


def announce(
    todo: list[tuple[Variant, int]], rows: list[dict], config: TrainConfig, trained_on: int, workers: int
) -> None:
    """Says how long it will take, by the speed of what was trained before or of one epoch of each other network."""
    speeds = {row["network"]: row["faces_per_second"] for row in rows if "faces_per_second" in row}
    for variant, _ in todo:
        if variant.network not in speeds:
            print(f"one epoch of {variant.network}, to see how long it takes", flush=True)
            plain = Variant(variant.network, network=variant.network)
            speeds[variant.network] = speed(plain, config, trained_on)
    each = trained_on * config.epochs
    faces, seconds = each * len(todo), sum(each / speeds[variant.network] for variant, _ in todo)
    drawn = drawn_config(config)
    if any(variant.from_drawn for variant, _ in todo) and len(read_log(drawn.out)) < drawn.epochs:
        extra = drawn.epochs * drawn.synthetic_faces
        faces, seconds = faces + extra, seconds + extra / speeds[OURS]
    minutes = f"minutes of training: about {seconds / 60:.0f}, by {workers} workers"
    print(f"trainings: {len(todo)}, faces to see: {faces:,}, {minutes}", flush=True)


if __name__ == "__main__":
    run(main)
