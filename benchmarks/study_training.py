"""One training of a study, and the errors of its network on the held-out faces."""

import csv
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import load_file
from studies import OURS, Measuring, Variant, builder
from torch import nn

from iact import metrics, ops
from iact.checkpoint import RESUME, WEIGHTS, load_resume
from iact.config import TrainConfig, default_epochs
from iact.data import read_faces
from iact.data.crops import Crops, cut_faces
from iact.data.faces import Faces
from iact.errors import InputError, TrainingStopped
from iact.geometry import CROP_MARGIN, from_heatmap, invert, transform_points
from iact.heatmaps import window_radius
from iact.inference import BATCH_SIZE, autocast, find_device, find_precision
from iact.layouts import find_layout
from iact.model import SIZES, normalise
from iact.training import run, train
from iact.training.log import LOG
from iact.training.run import Build

DIGITS = 3  # of an error in percent
LAST = WEIGHTS["last"]


@dataclass(frozen=True)
class HeldOut:
    """The faces to measure with, as the network sees them; `trained_on` counts the others of the split."""

    faces: Faces
    crops: Crops
    trained_on: int

    @property
    def names(self) -> list[str]:
        return [face.name for face in self.faces.records]


def read_held_out(config: TrainConfig) -> HeldOut:
    """The faces that every training of this configuration holds out, but for those whose eyes' distance is useless."""
    layout = find_layout(config.synthetic_layout)
    found = read_faces(
        config.data, config.root, config.split, layout=layout, count=config.synthetic_faces, seed=run.FACES_SEED
    )
    train_faces, aside = run.hold_out(found, config.hold_out, run.FACES_SEED)
    if not len(aside):
        raise InputError(f"hold-out: a share of {config.hold_out} of {len(found)} faces leaves none to measure with")
    truth = np.stack([face.landmarks for face in aside.records])
    usable = metrics.usable_normaliser(metrics.interocular(truth, found.layout), truth)
    aside = replace(aside, records=tuple(face for face, use in zip(aside.records, usable, strict=True) if use))
    crops = cut_faces(aside, SIZES[config.model].input_size, CROP_MARGIN)
    return HeldOut(aside, crops, len(train_faces))


def train_whole(config: TrainConfig, build: Build) -> list[dict[str, str]]:
    """Trains to the last epoch, or goes on where it was stopped; the rows of its log.

    TrainingStopped where the loss is no number, TrainingPaused where somebody stopped it."""
    begun = (config.out / RESUME).exists()
    if not begun or load_resume(config.out / RESUME)["epoch"] < config.epochs:  # the log is written before the weights
        train(replace(config, resume=begun), build)
    return read_log(config.out)


def read_log(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's log, one an epoch; none where there is no run."""
    path = folder / LOG
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def train_variant(variant: Variant, config: TrainConfig, held_out: HeldOut) -> list[dict]:
    """Trains one variant with the seed of `config` in the folder `config.out`: its row of the study, and one for every
    other way of measuring the same weights."""
    if variant.from_drawn:
        config = replace(config, start_from=train_drawn(config) / LAST)
    config, build = replace(config, **variant.changes), builder(variant.network)
    row = {"variant": variant.name, "against": variant.against, "network": variant.network, "seed": config.seed}
    try:
        log = train_whole(config, build)
    except TrainingStopped as error:
        return [row | {"failed": str(error)}]
    network = _load(config, build, held_out)
    seconds = _seconds(log, config.batch_size, held_out.trained_on)
    row |= {
        "minutes": round(seconds / 60, 2),
        "faces_per_second": round(held_out.trained_on * config.epochs / seconds, 2),
        "curve": [round(float(epoch["nme_held_out"]), 4) for epoch in log],
    }
    found = [row | {"errors": errors_of(network, held_out, config, Measuring())}]
    for name, measuring in variant.also.items():
        same = {"variant": name, "against": variant.name, "seed": config.seed, "minutes": 0.0}
        found.append(same | {"errors": errors_of(network, held_out, config, measuring)})
    return found


def drawn_config(config: TrainConfig) -> TrainConfig:
    """The training on drawn faces with the landmarks of the data, beside the folder of `config`."""
    drawn = replace(config, data="synthetic", root=None, synthetic_layout=config.data, seed=0)
    return replace(drawn, epochs=default_epochs("synthetic"), out=config.out.parent / "drawn")


def train_drawn(config: TrainConfig) -> Path:
    """The folder of the training on drawn faces, which is done once for all seeds."""
    config = drawn_config(config)
    train_whole(config, builder(OURS))
    return config.out


def speed(variant: Variant, config: TrainConfig, trained_on: int) -> float:
    """Faces per second in one epoch of the variant's network, trained for that and thrown away."""
    with TemporaryDirectory() as folder:
        trial = replace(config, epochs=1, out=Path(folder) / "trial", **variant.changes)
        log = train_whole(trial, builder(variant.network))
    return trained_on / _seconds(log, config.batch_size, trained_on)


def _seconds(log: list[dict[str, str]], batch_size: int, trained_on: int) -> float:
    """What the training took, without what is done between epochs, over interruptions."""
    faces = trained_on // min(batch_size, trained_on) * min(batch_size, trained_on)
    return math.fsum(faces / float(epoch["images_per_second"]) for epoch in log)


def _load(config: TrainConfig, build: Build, held_out: HeldOut) -> nn.Module:
    """The network of a finished training, with the weights of its last epoch."""
    network = build(replace(config, start_from=None), held_out.faces.layout.num_landmarks)
    network.load_state_dict(load_file(config.out / LAST))
    return network.eval().to(find_device(config.device), memory_format=torch.channels_last)


@torch.no_grad()
def errors_of(network: nn.Module, held_out: HeldOut, config: TrainConfig, measuring: Measuring) -> list[float]:
    """The NME (%) of each held-out face."""
    device, points = next(network.parameters()).device, []
    dtype, mirror = find_precision(config.amp, device), list(held_out.faces.layout.mirror)
    for part in held_out.crops.pictures.split(BATCH_SIZE):
        pictures = normalise(part.to(device).float()).contiguous(memory_format=torch.channels_last)
        with autocast(device, dtype):
            heatmaps = network(pictures)
            if measuring.flip_test:
                heatmaps = (heatmaps.float() + network(pictures.flip(3))[:, mirror].flip(3).float()) / 2
        radius = window_radius(config.sigma)
        found, _ = ops.decode_heatmaps(heatmaps, method=measuring.decoding, radius=radius)
        points.append(from_heatmap(found, network.config.stride).double().cpu())
    predicted = transform_points(torch.cat(points).numpy(), invert(held_out.crops.matrices))
    truth = np.stack([face.landmarks for face in held_out.faces.records])
    nme = metrics.nme(predicted, truth, metrics.interocular(truth, held_out.faces.layout))
    return np.round(nme, DIGITS).tolist()


def folder_of(variant: Variant, seed: int, place: Path) -> Path:
    return place / f"{re.sub(r'[^A-Za-z0-9._]+', '-', variant.name)}-{seed}"
