"""A run: its faces, its network, how far it has come, and how that is kept."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from iact.checkpoint import RESUME, WEIGHTS, Description, load_resume, load_weights, save_resume, save_weights
from iact.config import TrainConfig
from iact.data import read_faces
from iact.data.cache import cached_crops
from iact.data.crops import TRAINING_MARGIN, Crops, cut_faces, training_size
from iact.data.faces import Face, Faces
from iact.data.feed import Feed
from iact.data.shapes import fit_shape_modes
from iact.errors import InputError
from iact.geometry import CROP_MARGIN
from iact.inference import find_device, find_precision
from iact.layouts import Layout, find_layout
from iact.model import IACT, create_model
from iact.training.log import SHOWN
from iact.training.optimise import AveragedModel, build_optimiser, restore_optimiser
from iact.training.ranks import Ranks, share_batch_norm
from iact.training.step import Step, captures, recompute_blocks

FACES_SEED = 0
"""Decides which faces are drawn and which held out: whatever the seed of a run, so that seeds can be compared."""

Build = Callable[[TrainConfig, int], IACT]
"""Makes the network from the settings and the number of landmarks."""


@dataclass(frozen=True)
class RunFaces:
    """The faces of a run: crops of the whole split, the indices of those to train on, and the faces to measure with."""

    layout: Layout
    split: Crops
    train: torch.Tensor
    measured: Crops  # the faces held out, or a few training faces where none are
    measured_faces: Faces
    holds_out: bool

    @property
    def measure(self) -> str:
        """What the log calls the error on the measured faces."""
        return "nme_held_out" if self.holds_out else "nme_training"


@dataclass
class Run:
    """The moving parts of a run, and how far it has come."""

    config: TrainConfig
    folder: Path
    ranks: Ranks
    faces: RunFaces
    feed: Feed
    model: IACT
    averaged: AveragedModel
    optimiser: torch.optim.Optimizer
    dtype: torch.dtype | None  # that the network computes in; None: float32
    compute: Step
    epoch: int = 0  # epochs done
    done: int = 0  # steps done of the next one
    best: float = math.inf  # NME of the best epoch on the measured faces

    def __post_init__(self) -> None:
        self.loss = torch.zeros((), device=self.compute.device)  # the sum over the steps done of this epoch

    @property
    def batch_size(self) -> int:
        return min(self.config.batch_size, len(self.faces.train))

    @property
    def steps_per_epoch(self) -> int:
        return len(self.faces.train) // self.batch_size

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def step(self) -> int:
        return self.epoch * self.steps_per_epoch + self.done

    def summary(self) -> str:
        """The run in one line."""
        config, precision = self.config, "float32" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        aside = len(self.faces.measured) if self.faces.holds_out else 0
        ranks = f"{self.ranks.count} ranks, " if self.ranks.count > 1 else ""
        return (
            f"{config.model}, {self.faces.layout.num_landmarks} landmarks, {len(self.faces.train)} faces of "
            f"{config.data} {config.split} ({aside} more held out), {ranks}{self.compute.device.type} {precision}, "
            f"into {self.folder}"
        )

    def share_statistics(self) -> None:
        """Gives all ranks the mean of their batch-normalisation statistics, each rank's being of its own pictures."""
        for network in (self.model, self.averaged.module):
            for tensor in network.buffers():
                if tensor.is_floating_point():
                    self.ranks.mean_(tensor)

    def save_weights(self, better: bool) -> None:
        """Writes the averaged weights of the epoch just done as the last ones, and as the best where they are."""
        config, faces = self.config, self.faces
        trained_on = f"{config.data} {config.split}, {len(faces.train)} faces"
        last = Description(self.model.config, faces.layout, config.sigma, self.epoch, trained_on, chosen_on="")
        if better:
            chosen_on = f"{len(faces.measured)} held-out training faces" if faces.holds_out else ""
            save_weights(self.folder / WEIGHTS["best"], self.averaged.module, replace(last, chosen_on=chosen_on))
        save_weights(self.folder / WEIGHTS["last"], self.averaged.module, last)

    def save(self) -> None:
        """Writes what going on from here needs."""
        state = {
            "epoch": self.epoch,
            "done": self.done,
            "loss": self.loss,
            "best": self.best,
            "model": self.model.state_dict(),
            "averaged": self.averaged.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.compute.scaler.state_dict(),
            "landmarks": list(self.faces.layout.names),
        }
        save_resume(self.folder / RESUME, state)

    def restore(self) -> None:
        """Puts back what `save` wrote. InputError where that is of another run, or damaged."""
        state, landmarks = load_resume(self.folder / RESUME), list(self.faces.layout.names)
        try:
            if state.get("landmarks", landmarks) != landmarks:
                raise ValueError("it has other landmarks, or in another order")
            self.model.load_state_dict(state["model"])
            self.averaged.module.load_state_dict(state["averaged"])
            restore_optimiser(self.optimiser, state["optimiser"])
            if state.get("scaler"):  # empty unless the run computed in float16
                self.compute.scaler.load_state_dict(state["scaler"])
            self.epoch, self.done, self.best = int(state["epoch"]), int(state["done"]), float(state["best"])
            self.loss.copy_(state["loss"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise InputError(f"{self.folder / RESUME}: not a checkpoint of this run ({reason})") from None


def build_model(config: TrainConfig, num_landmarks: int) -> IACT:
    """The network that the settings describe, with new weights or those to start from."""
    torch.manual_seed(config.seed)
    model = create_model(
        config.model,
        num_landmarks,
        block=config.block,
        offsets=config.offsets,
        stride=config.heatmap_stride,
        feature_attention=config.feature_attention,
        channel_attention=config.channel_attention,
    )
    if config.start_from is not None and not config.resume:
        _start_from(model, config.start_from)
    return model


def prepare(
    config: TrainConfig, folder: Path, ranks: Ranks, say: Callable[[str], None], build: Build = build_model
) -> Run:
    """Reads and cuts the faces, builds the model, and where the run is resumed puts everything back."""
    device = _device(config, ranks)
    dtype = find_precision(config.amp, device)
    found = read_faces(
        config.data,
        config.root,
        config.split,
        layout=find_layout(config.synthetic_layout),
        count=config.synthetic_faces,
        seed=FACES_SEED,
    )
    for sentence in found.missing:
        say(sentence)
    sides = hold_out(found, config.hold_out, FACES_SEED)
    model = build(config, found.layout.num_landmarks).to(device, memory_format=torch.channels_last)
    faces = _cut(found, *sides, model.config.input_size, config.cache, say)
    shapes = None
    if config.augmentation.shape:
        shapes = fit_shape_modes(faces.split.landmarks[faces.train], found.layout).to(device)
    averaged = AveragedModel(model, config.ema_faces, config.batch_size)
    if config.recompute:
        recompute_blocks(model)
    if config.sync_batch_norm and ranks.count > 1:
        model = share_batch_norm(model, device)
    optimiser = build_optimiser(model, config, captures(config, device))
    run = Run(
        config=config,
        folder=folder,
        ranks=ranks,
        faces=faces,
        feed=Feed(faces.split, device),
        model=model,
        averaged=averaged,
        optimiser=optimiser,
        dtype=dtype,
        compute=Step(config, model, optimiser, faces.layout, faces.split.margin, shapes, dtype, ranks, say),
    )
    parts = ranks.count * config.accumulate
    if run.batch_size % parts:
        raise InputError(
            f"batch-size: expected a multiple of {parts} (ranks x accumulate), got {run.batch_size} faces a batch"
        )
    if config.resume:
        run.restore()
    return run


def _device(config: TrainConfig, ranks: Ranks) -> torch.device:
    device = find_device(config.device)
    return torch.device("cuda", ranks.local) if device.type == "cuda" and ranks.count > 1 else device


def _cut(
    faces: Faces, train: Faces, held_out: Faces, size: int, cache: Path | None, say: Callable[[str], None]
) -> RunFaces:
    """All faces cut for training, read back from the cache where they are there, and those to measure with as the
    network of that input size sees them."""
    measured = held_out if len(held_out) else replace(train, records=train.records[:SHOWN])
    place = {face.name: i for i, face in enumerate(faces.records)}
    return RunFaces(
        layout=faces.layout,
        split=cached_crops(faces, training_size(size), TRAINING_MARGIN, cache, say),
        train=torch.tensor([place[face.name] for face in train.records]),
        measured=cut_faces(measured, size, CROP_MARGIN),
        measured_faces=measured,
        holds_out=len(held_out) > 0,
    )


def _start_from(model: IACT, path: Path) -> None:
    """Copies every tensor that fits; only the head may differ."""
    source = load_weights(path)[0]
    if source.config.block != model.config.block:  # those of ViT and DETR have tensors of the same names and shapes
        raise InputError(f"{path}: weights of another model than the one to train (block {source.config.block})")
    own, given = model.state_dict(), source.state_dict()
    fitting = {name: tensor for name, tensor in given.items() if name in own and own[name].shape == tensor.shape}
    misfits = sorted(name for name in {*own, *given} - {*fitting} if not name.startswith("head.1."))
    if misfits:
        raise InputError(f"{path}: weights of another model than the one to train ({misfits[0]} does not fit)")
    model.load_state_dict({**own, **fitting})


def hold_out(faces: Faces, share: float, seed: int) -> tuple[Faces, Faces]:
    """Training faces and held-out ones; all faces of one photograph fall on the same side."""
    if not 0 <= share < 1:
        raise InputError(f"hold-out: expected a share from 0 to below 1, got {share}")
    photographs: dict[object, list[Face]] = {}
    for face in faces.records:
        photographs.setdefault(face.photograph or face.image, []).append(face)
    groups = list(photographs.values())
    order = np.random.default_rng([seed, 1]).permutation(len(groups))
    kept_aside: set[str] = set()
    for i in order:
        if len(kept_aside) >= round(share * len(faces)):
            break
        kept_aside.update(face.name for face in groups[i])
    if kept_aside and len(kept_aside) == len(faces):
        raise InputError(f"hold-out: a share of {share} of {len(faces)} faces leaves none to train on")
    sides = [tuple(face for face in faces.records if (face.name in kept_aside) == aside) for aside in (False, True)]
    return Faces(faces.layout, faces.split, sides[0], faces.missing), Faces(faces.layout, "held out", sides[1])
