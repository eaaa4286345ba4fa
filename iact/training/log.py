"""What a run shows and keeps for people: progress bar, log.csv, TensorBoard events, pictures of predictions."""

import csv
import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from iact.data.crops import Crops
from iact.data.faces import Faces
from iact.errors import InputError
from iact.files import write_atomically
from iact.geometry import transform_points
from iact.layouts import Layout
from iact.plots import contact_sheet, draw_landmarks, save_image

LOG = "log.csv"
SHOWN = 16  # faces in the picture of an epoch


def speaker(console: Console) -> Callable[[str], None]:
    """Prints a line as it is, however wide."""
    return partial(console.print, highlight=False, markup=False, soft_wrap=True)


class RunLog:
    """The log of one run folder. Rows that a killed run wrote after its last checkpoint are dropped on resuming.

    The console is quiet in all processes but one of those that train together: they write and show nothing."""

    def __init__(self, folder: Path, console: Console, epochs: int, epochs_done: int, steps: int, steps_done: int):
        """Of `epochs`, `epochs_done` are done, and of all `steps` in them `steps_done`."""
        self.folder, self.console, self.epochs, self.kept = folder, console, epochs, not console.quiet
        self.say = speaker(console)
        self.rows = _read_rows(folder / LOG, epochs_done)
        self.events = SummaryWriter(str(folder), purge_step=epochs_done + 1) if self.kept else None
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:.1f} images/s"),
            TextColumn("data {task.fields[waiting]:.0%}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.kept,
        )
        fields = {"epoch": self._label(epochs_done), "loss": np.nan, "rate": 0.0, "waiting": 0.0}
        self.task = self.bar.add_task("train", total=steps, completed=steps_done, **fields)
        self.start_epoch()

    def __enter__(self) -> "RunLog":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.kept:
            self.events.close()

    def _label(self, epochs_done: int) -> str:
        return f"{min(epochs_done + 1, self.epochs)}/{self.epochs}"

    def start_epoch(self) -> None:
        """Starts the clock of the images/s, which count training alone."""
        self.images, self.rate, self.waiting, self.started = 0, 0.0, 0.0, time.perf_counter()

    def advance(self, images: int) -> None:
        self.images += images
        self.bar.advance(self.task)

    def show(self, loss: float, waited: float) -> None:
        """Shows the mean loss of the epoch, and of its time the share that was `waited` (seconds) for data."""
        seconds = time.perf_counter() - self.started
        self.rate, self.waiting = self.images / seconds, waited / seconds
        self.bar.update(self.task, loss=loss, rate=self.rate, waiting=self.waiting)

    def record(self, epoch: int, **values: float) -> None:
        """A row of log.csv and the same numbers for TensorBoard, with the speed of the epoch."""
        values |= {"images_per_second": self.rate, "waiting_for_data": self.waiting}
        self.rows.append({"epoch": epoch, **{name: f"{value:.6g}" for name, value in values.items()}})
        self.bar.update(self.task, epoch=self._label(epoch))
        if not self.kept:
            return
        write_atomically(self.folder / LOG, lambda path: path.write_text(_as_csv(self.rows)))
        for name, value in values.items():
            self.events.add_scalar(name, value, epoch)
        self.events.flush()
        self.say("  ".join(f"{name} {value}" for name, value in self.rows[-1].items()))

    def picture(self, epoch: int, crops: Crops, faces: Faces, predicted: np.ndarray, layout: Layout) -> None:
        """A sheet of faces with truth and prediction [N, K, 2] (image px) drawn, as a file and for TensorBoard."""
        if not self.kept:
            return
        sheet = contact_sheet(
            [_draw(crops, faces, predicted, layout, i) for i in range(min(SHOWN, len(crops)))], columns=8
        )
        save_image(self.folder / "pictures" / f"epoch_{epoch:03d}.jpg", sheet)
        self.events.add_image("predictions", sheet, epoch, dataformats="HWC")

    def table(self, rows: dict[str, str]) -> None:
        """Ends the bar and prints names and values under each other."""
        self.bar.stop()
        for name, value in rows.items():
            self.say(f"{name:<12}{value}")


def _draw(crops: Crops, faces: Faces, predicted: np.ndarray, layout: Layout, i: int) -> np.ndarray:
    picture = crops.pictures[i].permute(1, 2, 0).numpy()
    picture = np.repeat(np.repeat(picture, 2, axis=0), 2, axis=1) if picture.shape[0] < 200 else picture
    enlarge = picture.shape[0] / crops.pictures.shape[-1]
    points = (transform_points(p, crops.matrices[i]) for p in (faces.records[i].landmarks, predicted[i]))
    truth, found = ((p + 0.5) * enlarge - 0.5 for p in points)
    return draw_landmarks(picture, truth, layout, found)


def _read_rows(path: Path, epochs: int) -> list[dict[str, str]]:
    """The rows of the first `epochs` epochs."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text()))) if path.exists() else []
        return [row for row in rows if int(row["epoch"]) <= epochs]
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not the log of a run ({error!r})") from None


def _as_csv(rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
