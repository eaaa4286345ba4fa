"""Training: faces in, a run folder with weights, log and pictures out.

Every random draw depends on (seed, epoch, step) alone, so a run that was killed goes on as if it never had been."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from iact import metrics
from iact.checkpoint import RESUME, WEIGHTS, Description, load_resume, load_weights, save_resume, save_weights
from iact.config import TrainConfig, default_epochs
from iact.data import read_faces
from iact.data.augment import draw_batch
from iact.data.crops import TRAINING_MARGIN, Crops, cut_faces, training_size
from iact.data.faces import Face, Faces
from iact.errors import InputError, TrainingStopped
from iact.geometry import CROP_MARGIN, to_heatmap
from iact.inference import autocast, find_device, find_precision, predict_crops
from iact.layouts import Layout, find_layout
from iact.losses import landmark_loss
from iact.model import IACT, create_model, normalise
from iact.optimise import AveragedModel, build_optimiser, learning_rate, set_learning_rate
from iact.runfolder import choose_folder, save_settings
from iact.runlog import SHOWN, RunLog


@dataclass
class Run:
    """The moving parts of a run, and how far it has come."""

    config: TrainConfig
    folder: Path
    layout: Layout
    model: IACT
    averaged: AveragedModel
    optimiser: torch.optim.Optimizer
    dtype: torch.dtype | None  # that the network computes in; None: float32
    scaler: torch.amp.GradScaler
    train: Crops
    measured: Crops  # the faces held out, or a few training faces where none are
    measured_faces: Faces
    holds_out: bool
    epoch: int = 0  # epochs done
    best: float = math.inf  # NME of the best epoch on the measured faces

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.train) // self.config.batch_size)

    @property
    def step(self) -> int:
        return self.epoch * self.steps_per_epoch


def train(config: TrainConfig) -> Path:
    """Runs the training that `config` describes and returns the run folder. InputError for input that cannot be used,
    TrainingStopped when the loss is no longer a number."""
    config = config if config.epochs is not None else replace(config, epochs=default_epochs(config.data))
    _check_numbers(config)
    folder = choose_folder(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    run = _prepare(config, folder)
    save_settings(config, folder)
    with RunLog(folder, config.epochs, run.steps_per_epoch, run.epoch) as log:
        log.say(_summary(run))
        while run.epoch < config.epochs:
            loss = _train_epoch(run, log)
            run.epoch += 1
            _finish_epoch(run, log, loss)
        log.say(f"done: {folder / WEIGHTS['best']} (best) and {WEIGHTS['last']}")
    return folder


def _check_numbers(config: TrainConfig) -> None:
    least = {"epochs": 1, "batch_size": 1, "seed": 0, "threads": 0, "warmup_steps": 0, "weight_decay": 0.0}
    least |= {"clip": 0.0, "ema_faces": 0.0, "map_factor": 0.0, "coordinate_weight": 0.0}
    for name, value in least.items():
        if not getattr(config, name) >= value:
            raise InputError(f"{name}: expected at least {value}, got {getattr(config, name)}")
    for name in ("learning_rate", "sigma"):
        if not 0 < getattr(config, name) < math.inf:
            raise InputError(f"{name}: expected a number above 0, got {getattr(config, name)}")


def _train_epoch(run: Run, log: RunLog) -> float:
    """One pass over the training faces; the mean loss."""
    config = run.config
    run.model.train()
    log.start_epoch()
    order = _shuffle(len(run.train), config.seed, run.epoch)
    total_steps, first = config.epochs * run.steps_per_epoch, run.step
    total = torch.zeros((), device=run.train.pictures.device)
    for i, indices in enumerate(order.split(config.batch_size)[: run.steps_per_epoch]):
        step = first + i
        set_learning_rate(run.optimiser, learning_rate(config, step, total_steps))
        loss = _train_step(run, indices, step)
        run.averaged.update(run.model, step)
        total += loss
        log.advance(len(indices))
        if (i + 1) % 50 == 0 or i + 1 == run.steps_per_epoch:
            mean = float(total) / (i + 1)
            _stop_unless(math.isfinite(mean), "the loss is", run)
            log.show(loss=mean)
    _stop_unless(run.averaged.is_finite(), "the weights are", run)
    return mean


def _train_step(run: Run, indices: torch.Tensor, step: int) -> torch.Tensor:
    """One batch: augment, forward, loss, backward, update. The detached loss."""
    config, model = run.config, run.model
    seed = _mix_seed(config.seed, step)
    batch = draw_batch(run.train, indices, model.config.input_size, run.layout, config.augmentation, seed)
    pictures = normalise(batch.pictures).contiguous(memory_format=torch.channels_last)
    with autocast(pictures.device, run.dtype):
        heatmaps = model(pictures)
    loss = landmark_loss(
        heatmaps,
        to_heatmap(batch.landmarks, model.config.stride),
        None,  # covered landmarks are annotated too, and learning them helps
        kind=config.loss,
        sigma=config.sigma,
        map_factor=config.map_factor,
        coordinates=config.coordinates,
        coordinate_weight=config.coordinate_weight,
        seed=torch.tensor(seed, device=pictures.device),
    )
    run.optimiser.zero_grad(set_to_none=True)
    run.scaler.scale(loss).backward()
    if config.clip:
        run.scaler.unscale_(run.optimiser)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    run.scaler.step(run.optimiser)
    run.scaler.update()
    return loss.detach()


def _finish_epoch(run: Run, log: RunLog, loss: float) -> None:
    """Measures the averaged model, then writes log, weights and checkpoint."""
    nme, rate = _measure(run, log), run.optimiser.param_groups[0]["lr"]
    measured = "nme_held_out" if run.holds_out else "nme_training"
    log.record(epoch=run.epoch, loss=loss, **{measured: nme}, learning_rate=rate)
    better = nme < run.best or not run.holds_out
    if better:
        run.best = nme
    _save(run, better)


def _measure(run: Run, log: RunLog) -> float:
    """The mean NME (%) of the averaged model on the measured faces, whose picture goes to the log."""
    model, sigma = run.averaged.module, run.config.sigma
    predicted, _ = predict_crops(model, run.measured, run.layout, sigma=sigma, dtype=run.dtype)
    truth = np.stack([face.landmarks for face in run.measured_faces.records])
    log.picture(run.epoch, run.measured, run.measured_faces, predicted, run.layout)
    return float(metrics.nme(predicted, truth, metrics.interocular(truth, run.layout)).mean())


def _save(run: Run, better: bool) -> None:
    trained_on = f"{run.config.data} {run.config.split}, {len(run.train)} faces"
    last = Description(run.model.config, run.layout, run.config.sigma, run.epoch, trained_on, chosen_on="")
    if better:
        chosen_on = f"{len(run.measured)} held-out training faces" if run.holds_out else ""
        save_weights(run.folder / WEIGHTS["best"], run.averaged.module, replace(last, chosen_on=chosen_on))
    save_weights(run.folder / WEIGHTS["last"], run.averaged.module, last)
    state = {
        "epoch": run.epoch,
        "best": run.best,
        "model": run.model.state_dict(),
        "averaged": run.averaged.module.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "scaler": run.scaler.state_dict(),
    }
    save_resume(run.folder / RESUME, state)


def _prepare(config: TrainConfig, folder: Path) -> Run:
    """Reads and cuts the faces, builds the model, and where the run is resumed puts everything back."""
    device = find_device(config.device)
    faces = read_faces(
        config.data,
        config.root,
        config.split,
        layout=find_layout(config.synthetic_layout),
        count=config.synthetic_faces,
        seed=config.seed,
    )
    train_faces, measured_faces = _hold_out(faces, config.hold_out, config.seed)
    holds_out = len(measured_faces) > 0
    if not holds_out:
        measured_faces = replace(train_faces, records=train_faces.records[:SHOWN])
    torch.manual_seed(config.seed)
    model = create_model(
        config.model,
        faces.layout.num_landmarks,
        block=config.block,
        offsets=config.offsets,
        feature_attention=config.feature_attention,
        channel_attention=config.channel_attention,
    )
    if config.start_from is not None and not config.resume:
        _start_from(model, config.start_from)
    model = model.to(device, memory_format=torch.channels_last)
    size, dtype = model.config.input_size, find_precision(config.amp, device)
    run = Run(
        config=config,
        folder=folder,
        layout=faces.layout,
        model=model,
        averaged=AveragedModel(model, config.ema_faces, config.batch_size),
        optimiser=build_optimiser(model, config),
        dtype=dtype,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        train=_to(cut_faces(train_faces, training_size(size), TRAINING_MARGIN), device),
        measured=cut_faces(measured_faces, size, CROP_MARGIN),
        measured_faces=measured_faces,
        holds_out=holds_out,
    )
    if config.resume:
        _restore(run)
    return run


def _restore(run: Run) -> None:
    state = load_resume(run.folder / RESUME)
    try:
        run.model.load_state_dict(state["model"])
        run.averaged.module.load_state_dict(state["averaged"])
        run.optimiser.load_state_dict(state["optimiser"])
        if state.get("scaler"):  # empty unless the run computed in float16
            run.scaler.load_state_dict(state["scaler"])
        run.epoch, run.best = int(state["epoch"]), float(state["best"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{run.folder / RESUME}: not a checkpoint of this run ({reason})") from None


def _start_from(model: IACT, path: Path) -> None:
    """Copies every tensor that fits; only the head may differ."""
    own, given = model.state_dict(), load_weights(path)[0].state_dict()
    fitting = {name: tensor for name, tensor in given.items() if name in own and own[name].shape == tensor.shape}
    misfits = sorted(name for name in {*own, *given} - {*fitting} if not name.startswith("head.1."))
    if misfits:
        raise InputError(f"{path}: weights of another model than the one to train ({misfits[0]} does not fit)")
    model.load_state_dict({**own, **fitting})


def _to(crops: Crops, device: torch.device) -> Crops:
    return Crops(
        crops.pictures.to(device), crops.landmarks.to(device), crops.visible.to(device), crops.matrices, crops.margin
    )


def _hold_out(faces: Faces, share: float, seed: int) -> tuple[Faces, Faces]:
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


def _summary(run: Run) -> str:
    precision = "float32" if run.dtype is None else str(run.dtype).removeprefix("torch.")
    aside = len(run.measured) if run.holds_out else 0
    return (
        f"{run.config.model}, {run.layout.num_landmarks} landmarks, {len(run.train)} faces of {run.config.data} "
        f"{run.config.split} ({aside} more held out), {run.train.pictures.device.type} {precision}, into {run.folder}"
    )


def _shuffle(count: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(_mix_seed(seed, epoch, 7)))


def _mix_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _stop_unless(finite: bool, what: str, run: Run) -> None:
    if not finite:
        last = run.folder / WEIGHTS["last"]
        kept = f"the last good weights are {last}" if last.exists() else "no epoch was finished before"
        raise TrainingStopped(f"{what} not finite in epoch {run.epoch + 1}; {kept}")
