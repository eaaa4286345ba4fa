"""The walk through the epochs.

Every random draw depends on (seed, epoch, step) alone, so a run that was stopped goes on as if it never had been, on
any number of ranks."""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from iact import metrics
from iact.checkpoint import RESUME, WEIGHTS
from iact.config import TrainConfig, default_epochs
from iact.data.augment import PROBABILITIES
from iact.data.feed import CropBatch
from iact.errors import InputError, TrainingPaused, TrainingStopped
from iact.inference import predict_cuts
from iact.layouts import Layout
from iact.stop import asked_to_stop
from iact.training.folder import epochs_begun_with, held_folder, save_settings
from iact.training.log import RunLog, speaker
from iact.training.optimise import learning_rate, set_learning_rate
from iact.training.ranks import joined
from iact.training.run import Build, Run, build_model, prepare

SHOW_EVERY = 50  # steps


def train(config: TrainConfig, build: Build = build_model) -> Path:
    """Runs the training that `config` describes and returns the run folder; `build` makes another network than ours.

    Under torchrun all processes share each batch. InputError for input that cannot be used, TrainingStopped when the
    loss is no longer a number or another rank is gone, TrainingPaused when SIGTERM or Ctrl-C has ended it after a step,
    with a checkpoint."""
    if config.epochs is None:
        config = replace(config, epochs=epochs_begun_with(config) or default_epochs(config.data))
    _check_numbers(config)
    with asked_to_stop() as stop, joined(config.device) as ranks, ExitStack() as holding:
        folder = ranks.first_says(lambda: holding.enter_context(held_folder(config)))
        if config.threads:
            torch.set_num_threads(config.threads)
        console = Console(quiet=not ranks.first)
        run = prepare(config, folder, ranks, speaker(console), build)
        if ranks.first:
            save_settings(config, folder)
        with RunLog(folder, console, config.epochs, run.epoch, run.steps, run.step) as log:
            log.say(run.summary())
            _train(run, log, stop)
    return folder


def _check_numbers(config: TrainConfig) -> None:
    least = {"epochs": 1, "batch_size": 1, "accumulate": 1, "seed": 0, "threads": 0, "warmup_steps": 0, "clip": 0.0}
    least |= {"weight_decay": 0.0, "ema_faces": 0.0, "map_factor": 0.0, "coordinate_weight": 0.0}
    for name, value in least.items():
        if not getattr(config, name) >= value:
            raise InputError(f"{name}: expected at least {value}, got {getattr(config, name)}")
    if config.seed >= 2**63:
        raise InputError(f"seed: expected a number below 2^63, got {config.seed}")
    for name, value in vars(config.augmentation).items():
        most = 1 if name in PROBABILITIES else math.inf
        if not (0 <= value <= most and value < math.inf):
            raise InputError(f"augmentation.{name}: expected a number from 0 to {most}, got {value}")
    for name in ("learning_rate", "sigma"):
        if not 0 < getattr(config, name) < math.inf:
            raise InputError(f"{name}: expected a number above 0, got {getattr(config, name)}")


def _train(run: Run, log: RunLog, stop: Callable[[], bool]) -> None:
    begun, faces = time.perf_counter(), 0
    while run.epoch < run.config.epochs:
        if not _train_epoch(run, log, stop):
            run.share_statistics()  # the checkpoint of one rank is loaded by all
            run.ranks.mean_(run.loss)
            if run.ranks.first:
                run.save()
            raise TrainingPaused(f"stopped in epoch {run.epoch + 1}; --resume goes on from {run.folder / RESUME}")
        faces += log.images
        _finish_epoch(run, log)
    log.table(_ending(run, log, time.perf_counter() - begun, faces))


def _train_epoch(run: Run, log: RunLog, stop: Callable[[], bool]) -> bool:
    """Goes through the batches of the epoch that are not yet done; false where it was asked to stop before the end."""
    config = run.config
    run.model.train()
    log.start_epoch()
    run.feed.waited = 0.0
    order = run.faces.train[_shuffle(len(run.faces.train), config.seed, run.epoch)]
    batches = order.split(run.batch_size)[run.done : run.steps_per_epoch]
    share = run.ranks.share(run.batch_size)
    for batch in run.feed.batches(indices[share] for indices in batches):
        train_step(run, batch, share)
        log.advance(run.batch_size)
        if run.done % SHOW_EVERY == 0 or run.done == run.steps_per_epoch:
            log.show(_mean_loss(run), run.feed.waited)
        if run.done < run.steps_per_epoch and run.ranks.any(stop()):  # else the epoch is finished first
            return False
    return True


def train_step(run: Run, batch: CropBatch, share: slice) -> None:
    """One update of the weights and of their average, by this rank's `share` of the batch; adds the loss to the run's.

    TrainingStopped when another rank is gone."""
    step, config = run.step, run.config
    set_learning_rate(run.optimiser, learning_rate(config, step, run.steps))
    run.loss += run.compute(batch, _mix_seed(config.seed, step), run.batch_size, share)
    run.averaged.update(step)
    run.done += 1


def _mean_loss(run: Run) -> float:
    """Of the epoch so far, over all ranks. TrainingStopped where it is no number."""
    mean = run.loss / run.done
    run.ranks.mean_(mean)
    _stop_unless(math.isfinite(mean), "the loss is", run)
    return float(mean)


def _finish_epoch(run: Run, log: RunLog) -> None:
    """Measures the averaged model, then writes log, weights and checkpoint."""
    _stop_unless(run.averaged.is_finite(), "the weights are", run)
    loss = _mean_loss(run)
    run.share_statistics()
    run.epoch, run.done = run.epoch + 1, 0
    run.loss.zero_()
    nme = _measure(run, log)
    rate = float(run.optimiser.param_groups[0]["lr"])
    log.record(epoch=run.epoch, loss=loss, **{run.faces.measure: nme}, learning_rate=rate)
    better = not nme >= run.best or not run.faces.holds_out  # NaN where all measured faces are in profile
    if better:
        run.best = nme
    if run.ranks.first:
        run.save_weights(better)
        run.save()


def _measure(run: Run, log: RunLog) -> float:
    """The mean NME (%) of the averaged model on the measured faces, whose picture goes to the log. Each rank predicts
    and measures its share of them on its device, none twice."""
    faces, layout = run.faces, run.faces.layout
    share = run.ranks.share(len(faces.measured))
    own, _ = predict_cuts(
        run.averaged.module,
        faces.measured.pictures[share],
        faces.measured.matrices[share],
        layout,
        sigma=run.config.sigma,
        dtype=run.dtype,
    )
    truth = torch.from_numpy(np.stack([face.landmarks for face in faces.measured_faces.records])).to(own)[share]
    predicted = np.concatenate(run.ranks.gather(own.cpu().numpy()))
    log.picture(run.epoch, faces.measured, faces.measured_faces, predicted, layout)
    errors = np.concatenate(run.ranks.gather(_errors(own, truth, layout)))
    return float(errors.mean()) if len(errors) else math.nan


def _errors(predicted: torch.Tensor, truth: torch.Tensor, layout: Layout) -> np.ndarray:
    """The NME (%) of each face that is not in profile, of landmarks [N, K, 2]."""
    ocular = metrics.interocular(truth, layout)
    usable = metrics.usable_normaliser(ocular, truth)
    return metrics.nme(predicted[usable], truth[usable], ocular[usable]).cpu().numpy()


def _ending(run: Run, log: RunLog, seconds: float, faces: int) -> dict[str, str]:
    """What a finished run has to say."""
    name = "held-out" if run.faces.holds_out else "training"
    device, rows = run.compute.device, {}
    if log.rows:  # none where a finished run is resumed whose log is gone
        nme = float(log.rows[-1][run.faces.measure])
        rows["last epoch"] = f"NME {nme:.2f} % on {len(run.faces.measured)} {name} faces"
    rows["best epoch"] = f"NME {run.best:.2f} %: {run.folder / WEIGHTS['best']}"
    rows["time"] = f"{seconds / 60:.1f} min, {faces / seconds:.1f} images/s with what is done between epochs"
    if device.type == "cuda":
        rows["GPU memory"] = f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB at most"
    return rows


def _shuffle(count: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(_mix_seed(seed, epoch, 7)))


def _mix_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _stop_unless(finite: bool, what: str, run: Run) -> None:
    if not finite:
        last = run.folder / WEIGHTS["last"]
        kept = f"the last good weights are {last}" if last.exists() else "no epoch was finished before"
        raise TrainingStopped(f"{what} not finite in epoch {run.epoch + 1}; {kept}")
