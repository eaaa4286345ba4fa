"""Training: faces in, a run folder with weights, log and pictures out.

Every random draw depends on (seed, epoch, step) alone, so a run that was killed goes on as if it never had been."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from iact import metrics
from iact.checkpoint import (
    RESUME,
    WEIGHTS,
    Description,
    load_resume,
    load_weights,
    save_resume,
    save_weights,
)
from iact.config import TrainConfig
from iact.data import read_faces
from iact.data.augment import draw_batch
from iact.data.crops import TRAINING_MARGIN, Crops, cut_faces, training_size
from iact.data.faces import Face, Faces
from iact.errors import InputError, TrainingStopped
from iact.files import write_atomically
from iact.geometry import CROP_MARGIN, to_heatmap
from iact.inference import autocast, find_device, find_precision, predict_crops
from iact.layouts import Layout, find_layout
from iact.losses import landmark_loss
from iact.model import IACT, create_model, normalise
from iact.optimise import AveragedModel, build_optimiser, learning_rate, set_learning_rate
from iact.runlog import RunLog


@dataclass
class Run:
    """The moving parts of a run, and how far it has come."""

    config: TrainConfig
    folder: Path
    layout: Layout
    model: IACT
    averaged: AveragedModel
    optimiser: torch.optim.Optimizer
    train: Crops
    held_out: Crops | None
    held_out_faces: Faces | None
    epoch: int = 0  # epochs done
    best: float = math.inf  # NME of the best epoch on the faces held out

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.train) // self.config.batch_size)

    @property
    def step(self) -> int:
        return self.epoch * self.steps_per_epoch


def train(config: TrainConfig) -> Path:
    """Runs the training that `config` describes and returns the run folder. InputError for input that cannot be used,
    TrainingStopped when the loss is no longer a number."""
    folder = _open_folder(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    run = _prepare(config, folder)
    device, dtype = run.train.pictures.device, find_precision(config.amp, run.train.pictures.device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    with RunLog(folder, config.epochs, run.steps_per_epoch, run.epoch) as log:
        log.say(_summary(run, device, dtype))
        while run.epoch < config.epochs:
            loss = _train_epoch(run, log, dtype, scaler)
            run.epoch += 1
            _finish_epoch(run, log, loss, dtype)
        log.say(f"done: {folder / WEIGHTS['best']} (best) and {WEIGHTS['last']}")
    return folder


def _train_epoch(run: Run, log: RunLog, dtype: torch.dtype | None, scaler: torch.amp.GradScaler) -> float:
    """One pass over the training faces; the mean loss."""
    config = run.config
    run.model.train()
    order = _shuffle(len(run.train), config.seed, run.epoch)
    total_steps, first = config.epochs * run.steps_per_epoch, run.step
    total = torch.zeros((), device=run.train.pictures.device)
    for i, indices in enumerate(order.split(config.batch_size)[: run.steps_per_epoch]):
        step = first + i
        set_learning_rate(run.optimiser, learning_rate(config, step, total_steps))
        loss = _train_step(run, indices, step, dtype, scaler)
        run.averaged.update(run.model, step)
        total += loss
        log.advance(len(indices))
        if (i + 1) % 50 == 0 or i + 1 == run.steps_per_epoch:
            _stop_unless_finite(total, run)
            log.show(loss=float(total) / (i + 1))
    return float(total) / run.steps_per_epoch


def _train_step(run: Run, indices: torch.Tensor, step: int, dtype, scaler) -> torch.Tensor:
    """One batch: augment, forward, loss, backward, update. The detached loss."""
    config, model = run.config, run.model
    seed = _mix_seed(config.seed, step)
    batch = draw_batch(run.train, indices, model.config.input_size, run.layout, config.augmentation, seed)
    pictures = normalise(batch.pictures).contiguous(memory_format=torch.channels_last)
    with autocast(pictures.device, dtype):
        heatmaps = model(pictures)
    loss = landmark_loss(
        heatmaps,
        to_heatmap(batch.landmarks, model.config.stride),
        None,  # covered landmarks are annotated too, and learning them helps
        kind=config.loss,
        sigma=config.sigma,
        map_factor=config.map_factor,
        coordinate_weight=config.coordinate_weight,
        seed=torch.tensor(seed, device=pictures.device),
    )
    run.optimiser.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    if config.clip:
        scaler.unscale_(run.optimiser)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    scaler.step(run.optimiser)
    scaler.update()
    return loss.detach()


def _finish_epoch(run: Run, log: RunLog, loss: float, dtype: torch.dtype | None) -> None:
    """Measures the averaged model on the faces held out, then writes pictures, weights and checkpoint."""
    shown, faces = (run.held_out, run.held_out_faces) if run.held_out is not None else (None, None)
    nme = math.nan
    if shown is not None:
        predicted, _ = predict_crops(run.averaged.module, shown, run.layout, sigma=run.config.sigma, dtype=dtype)
        truth = np.stack([face.landmarks for face in faces.records])
        nme = float(metrics.nme(predicted, truth, metrics.interocular(truth, run.layout)).mean())
        log.picture(run.epoch, shown, faces, predicted, run.layout)
    log.record(epoch=run.epoch, loss=loss, nme_held_out=nme, learning_rate=run.optimiser.param_groups[0]["lr"])
    better = nme < run.best or run.held_out is None
    run.best = min(run.best, nme) if run.held_out is not None else run.best
    _save(run, better)


def _save(run: Run, better: bool) -> None:
    chosen_on = f"{len(run.held_out)} held-out training faces" if run.held_out is not None else ""
    trained_on = f"{run.config.data} {run.config.split}, {len(run.train)} faces"
    description = Description(
        run.model.config, run.layout, run.config.sigma, run.epoch, trained_on, chosen_on if better else ""
    )
    if better:
        save_weights(run.folder / WEIGHTS["best"], run.averaged.module, description)
    save_weights(run.folder / WEIGHTS["last"], run.averaged.module, description)
    state = {
        "epoch": run.epoch,
        "best": run.best,
        "model": run.model.state_dict(),
        "averaged": run.averaged.module.state_dict(),
        "optimiser": run.optimiser.state_dict(),
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
    train_faces, held_out_faces = _hold_out(faces, config.hold_out, config.seed)
    torch.manual_seed(config.seed)
    model = create_model(
        config.model,
        faces.layout.num_landmarks,
        block=config.block,
        offsets=config.offsets,
        feature_attention=config.feature_attention,
        channel_attention=config.channel_attention,
    )
    if config.start_from is not None:
        _start_from(model, config.start_from)
    model = model.to(device, memory_format=torch.channels_last)
    size = model.config.input_size
    run = Run(
        config=config,
        folder=folder,
        layout=faces.layout,
        model=model,
        averaged=AveragedModel(model, config.ema_faces, config.batch_size),
        optimiser=build_optimiser(model, config),
        train=_to(cut_faces(train_faces, training_size(size), TRAINING_MARGIN), device),
        held_out=cut_faces(held_out_faces, size, CROP_MARGIN) if len(held_out_faces) else None,
        held_out_faces=held_out_faces,
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
        run.epoch, run.best = state["epoch"], state["best"]
    except (KeyError, RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{run.folder / RESUME}: made by a run with other settings ({first})") from None


def _start_from(model: IACT, path: Path) -> None:
    """Copies every tensor that fits; only the head may differ."""
    source, _ = load_weights(path)
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in source.state_dict().items() if own[name].shape == tensor.shape}
    lost = [name for name in own if name not in fitting and not name.startswith("head.1")]
    if lost:
        raise InputError(f"{path}: weights of another model ({lost[0]} has another shape)")
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
        photographs.setdefault(face.image, []).append(face)
    groups = list(photographs.values())
    order = np.random.default_rng([seed, 1]).permutation(len(groups))
    kept_aside: set[str] = set()
    for i in order:
        if len(kept_aside) >= round(share * len(faces)):
            break
        kept_aside.update(face.name for face in groups[i])
    sides = [tuple(face for face in faces.records if (face.name in kept_aside) == aside) for aside in (False, True)]
    return Faces(faces.layout, faces.split, sides[0], faces.missing), Faces(faces.layout, "held out", sides[1])


def _open_folder(config: TrainConfig) -> Path:
    """The run folder, with the settings in it. A folder that holds a run is only touched to resume it."""
    folder = config.out or _free_folder(Path("runs") / f"{config.data}-{config.model}", config.resume)
    if not config.resume and (folder / RESUME).exists():
        raise InputError(f"{folder} holds a run already: pass --resume to continue it, or another --out")
    if config.resume and not (folder / RESUME).exists():
        raise InputError(f"{folder / RESUME}: no checkpoint to resume from")
    text = json.dumps(config.to_json(), indent=2) + "\n"
    write_atomically(folder / "config.json", lambda path: path.write_text(text))
    return folder


def _free_folder(wanted: Path, resume: bool) -> Path:
    if resume:
        return wanted
    number = 1
    while (candidate := wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")).exists():
        number += 1
    return candidate


def _summary(run: Run, device: torch.device, dtype: torch.dtype | None) -> str:
    precision = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    aside = 0 if run.held_out is None else len(run.held_out)
    return (
        f"{run.config.model}, {run.layout.num_landmarks} landmarks, {len(run.train)} faces of {run.config.data} "
        f"{run.config.split} ({aside} more held out), {device.type} {precision}, into {run.folder}"
    )


def _shuffle(count: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(_mix_seed(seed, epoch, 7)))


def _mix_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _stop_unless_finite(total: torch.Tensor, run: Run) -> None:
    if not math.isfinite(float(total)):
        last = run.folder / WEIGHTS["last"]
        kept = f"the last good weights are {last}" if last.exists() else "no epoch was finished before"
        raise TrainingStopped(f"the loss is not finite in epoch {run.epoch + 1}; {kept}")
