"""Times training: iact as it is and with parts of it replaced, beside HRNet-W18 fed by a DataLoader.

python benchmarks/bench_training.py --device cpu --out benchmarks/results

ours                  the default recipe, as `iact train` runs it
without_kernels       attention and heatmap loss in plain PyTorch: `grid_sample`, products, a target that is drawn first
references            attention and heatmap loss by iact's own references, as where its extension was not built
torchvision           the loss of without_kernels; attention by torchvision's deform_conv2d, three times, and PyTorch's
without_graph         the host starts every kernel; on a GPU only
without_device_cache  crops stay in the host's memory and are streamed
compile               torch.compile on top
dataloader            hrnet_w18 of timm with a landmark head, its usual way: JPEG files decoded, cut, changed and turned
                      into target heatmaps by worker processes, MSE, AdamW; its input is as large as the first iact's

A round is --steps steps, until the device is done. On a CPU all take turns in every round, so that a disturbance hits
all alike, and --seconds is for all of them; the DataLoader then prepares only what its own turn needs, in that turn. On
a GPU one is timed after the other, --seconds each. Compilation and the recording of graphs come before. Faces are drawn
by the program, in files of 256 px for the DataLoader (smaller than photographs, so decoded sooner), or 300W's.

images_per_second, milliseconds (a step): medians over the rounds; spread: between the quartiles. waited_percent: of the
step's time, what the host waited for data. augment_percent: what augmentation took, known on a CPU. peak_memory_mb: of
the GPU, 10^6 bytes, from the second step on, crops included. teraflops_per_second: forward and backward pass by
PyTorch's counter; product_percent: of a large product's speed in the same run. wflw_minutes, w300_minutes: computed
from the speed, 120 epochs of 7,500 and 3,148 faces. One whose loss is not finite, or does not fall, has no row."""

import argparse
import gc
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import cv2
import peers_training as peers
import torch
from bench_inference import HRNet, interleaved
from comparison import DTYPES, finish, parse, product_rate
from machine import ROOT
from ours_training import VARIANTS, Ours
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(ROOT))

from iact.__main__ import end  # noqa: E402
from iact.config import TrainConfig  # noqa: E402
from iact.data import Faces, read_faces  # noqa: E402
from iact.layouts import WFLW  # noqa: E402
from iact.model import SIZES, create_model  # noqa: E402

MODELS = ("iact", "iact_s", "iact_t", "hrnet_w18")
PRECISIONS = {"fp32": "off", "bf16": "bf16"}  # in the words of the trainer
USUAL = {"cpu": ("iact_t", "fp32", 16), "cuda": ("iact", "bf16", 64)}
STEPS = {"cpu": 4, "cuda": 20}  # of a round
WARM_UP = {"cpu": 1, "cuda": 6}  # steps; a GPU records its graphs in the fourth
LEAST_ROUNDS = 3
RECIPES = {"wflw": 7500, "w300": 3148}  # faces
EPOCHS = 120


@dataclass(frozen=True)
class Case:
    """What a row says it is of."""

    model: str
    implementation: str
    dtype: str
    batch: int


@dataclass(frozen=True)
class Data:
    """The faces, as settings of the trainer and, where a DataLoader needs them, as files."""

    faces: Faces
    settings: dict
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Turn:
    """Some steps: their mean loss, and the seconds waited for data and spent in augmentation."""

    loss: float
    waited: float
    augmented: float


class Contender(Protocol):
    """One that trains; `train(steps)` gives the mean loss when the device is done, and adds to the seconds."""

    waited: float
    augmented: float
    graphed: bool

    def train(self, steps: int) -> float: ...


class Racer:
    """A contender after its warm-up; each call is a turn."""

    def __init__(self, build: Callable[[], Contender], device: torch.device, steps: int):
        self.device, self.steps, self.turns = device, steps, []
        on_gpu = device.type == "cuda"
        gc.collect()  # what an earlier one held, and its worker processes
        before = torch.cuda.memory_allocated() if on_gpu else 0
        self.contender = build()
        self.first_loss = self.contender.train(1)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()  # the first step tries out algorithms
        self.contender.train(WARM_UP[device.type])
        self.peak_memory = torch.cuda.max_memory_allocated() - before if on_gpu else None  # a replay allocates nothing

    def __call__(self) -> None:
        self.contender.waited = self.contender.augmented = 0.0
        loss = self.contender.train(self.steps)
        self.turns.append(Turn(loss, self.contender.waited, self.contender.augmented))

    @property
    def falls(self) -> bool:
        """Whether all losses are finite, and the last is below that of the first step."""
        losses = [self.first_loss, *(turn.loss for turn in self.turns)]
        return all(map(math.isfinite, losses)) and losses[-1] < losses[0]


class Benchmark:
    """Collects rows, and why some are missing."""

    def __init__(self, chosen: argparse.Namespace, folder: Path):
        self.chosen, self.device = chosen, torch.device(chosen.device)
        self.data = prepare_data(chosen, folder)
        self.rates = {
            name: product_rate(self.device, DTYPES[name], min(1.0, chosen.seconds)) for name in chosen.precisions
        }
        self.rows: list[dict] = []
        self.left_out: dict[str, int] = {}
        self.wrong = False

    def run(self) -> None:
        for precision in self.chosen.precisions:
            for batch in self.chosen.batches:
                cases = [Case(*names, precision, batch) for names in contenders(self.chosen)]
                for group in [cases] if self.device.type == "cpu" else [[case] for case in cases]:
                    self._race(group)

    def _race(self, group: list[Case]) -> None:
        """Times some cases in turns."""
        torch._dynamo.reset()  # past 8 variants of a network it would quietly go on uncompiled
        racers = {case: racer for case in group if (racer := self._start(case))}
        rounds = 1 if self.chosen.quick else LEAST_ROUNDS
        times = interleaved(racers, self.chosen.seconds, rounds) if racers else {}
        for case, milliseconds in times.items():
            if racers[case].falls:
                self.rows.append(self._row(case, racers[case], milliseconds))
                print(line(self.rows[-1]), flush=True)
            else:
                self.wrong = True
                losses = [racers[case].first_loss, *(turn.loss for turn in racers[case].turns)]
                self._leave_out(f"{case}: the loss does not fall ({', '.join(f'{loss:.3g}' for loss in losses)})")

    def _start(self, case: Case) -> Racer | None:
        try:
            return Racer(partial(build, case, self.chosen, self.data), self.device, self.chosen.steps)
        except Exception as error:
            if case.implementation == "ours":
                raise
            reason = str(error).strip().partition("\n")[0]
            self._leave_out(f"{case.model}, {case.implementation}: {type(error).__name__}: {reason}")
            return None

    def _leave_out(self, reason: str) -> None:
        print(f"left out: {reason}", flush=True)
        self.left_out[reason] = self.left_out.get(reason, 0) + 1

    def _row(self, case: Case, racer: Racer, milliseconds: list[float]) -> dict:
        turns = racer.turns[-len(milliseconds) :]  # those before warmed up
        steps = [value / racer.steps for value in milliseconds]
        rate, rate_spread = middle([case.batch * 1e3 / value for value in steps])
        step, spread = middle(steps)
        size = input_size(case.model, self.chosen)
        speed = rate * flops_of_one(case.model, size, self.data.faces.layout.num_landmarks)
        found = {**vars(case), "input": size, "images_per_second": rate, "images_per_second_spread": rate_spread}
        found |= {"milliseconds": step, "spread": spread, "rounds": len(steps), "graphed": racer.contender.graphed}
        found["waited_percent"] = 1e5 * sum(turn.waited for turn in turns) / sum(milliseconds)
        if self.device.type == "cpu" and case.model != "hrnet_w18":
            found["augment_percent"] = 1e5 * sum(turn.augmented for turn in turns) / sum(milliseconds)
        if racer.peak_memory is not None:
            found["peak_memory_mb"] = racer.peak_memory / 1e6
        found |= {"teraflops_per_second": speed / 1e12, "product_percent": 100 * speed / self.rates[case.dtype]}
        found |= {f"{name}_minutes": count * EPOCHS / rate / 60 for name, count in RECIPES.items()}
        found |= {"loss_first": racer.first_loss, "loss_last": turns[-1].loss}
        return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in found.items()}

    def summary(self) -> dict:
        """What the result says beside its rows."""
        rates = {name: round(rate / 1e12, 3) for name, rate in self.rates.items()}
        found = {"data": self.data.settings["data"], "faces": len(self.data.faces), "steps": self.chosen.steps}
        found |= {"workers": self.chosen.workers, "product_teraflops_per_second": rates}
        return found | {"left_out": self.left_out}


def contenders(chosen: argparse.Namespace) -> list[tuple[str, str]]:
    """Model and implementation of everything to time with one precision and batch."""
    ways = {name: ["dataloader"] if name == "hrnet_w18" else chosen.implementations for name in chosen.models}
    return [(name, way) for name in chosen.models for way in ways[name]]


def input_size(name: str, chosen: argparse.Namespace) -> int:
    """Side of the input in px; HRNet's is that of the first iact."""
    ours = [model for model in (name, *chosen.models, USUAL[chosen.device][0]) if model != "hrnet_w18"]
    return SIZES[ours[0]].input_size


def build(case: Case, chosen: argparse.Namespace, data: Data) -> Contender:
    if case.model == "hrnet_w18":
        landmarks = torch.stack([torch.from_numpy(face.landmarks) for face in data.faces.records]).numpy()
        files = peers.LandmarkFiles(data.files, landmarks, data.faces.layout.mirror, input_size(case.model, chosen))
        dtype = None if case.dtype == "fp32" else DTYPES[case.dtype]
        return peers.HRNetTraining(files, case.batch, dtype, torch.device(chosen.device), chosen.workers)
    settings = {"device": chosen.device, "amp": PRECISIONS[case.dtype], "model": case.model, "batch_size": case.batch}
    return Ours(case.implementation, TrainConfig(**data.settings, **settings))


def prepare_data(chosen: argparse.Namespace, folder: Path) -> Data:
    """300W's training faces, or drawn ones; these are also written as files where a DataLoader is to read them."""
    cut = {"cache": folder / "cut"}  # so that only the first contender has to cut them
    if chosen.root:
        faces = read_faces("300w", chosen.root, "train")
        return Data(faces, {"data": "300w", "root": chosen.root, **cut}, tuple(f.image.path for f in faces.records))
    faces = read_faces("synthetic", None, "train", layout=WFLW, count=chosen.faces)
    files = []
    for face in faces.records if "hrnet_w18" in chosen.models else ():
        files.append(folder / f"{len(files)}.jpg")
        cv2.imwrite(str(files[-1]), cv2.cvtColor(face.image.read(), cv2.COLOR_RGB2BGR))
    return Data(faces, {"synthetic_layout": "wflw", "synthetic_faces": chosen.faces, "data": "synthetic", **cut}, files)


@cache
def flops_of_one(name: str, size: int, landmarks: int) -> float:
    """FLOPs of the forward and backward pass of one picture; every implementation is credited with those of ours."""
    network = HRNet(landmarks) if name == "hrnet_w18" else create_model(name, landmarks)
    with FlopCounterMode(display=False) as counter:
        network(torch.rand(2, 3, size, size)).sum().backward()
    return counter.get_total_flops() / 2


def middle(values: list[float]) -> tuple[float, float]:
    """The median, and what lies between the quartiles."""
    quartiles = statistics.quantiles(values, method="inclusive") if len(values) > 1 else [0.0, 0.0, 0.0]
    return statistics.median(values), quartiles[2] - quartiles[0]


def line(found: dict) -> str:
    """A row as it is printed while the benchmark runs."""
    name = f"{found['model']:<10} {found['implementation']:<21} {found['dtype']} {found['batch']:>3}"
    speed = f"{found['images_per_second']:>9.1f} images/s +- {found['images_per_second_spread']:.1f}"
    return f"{name} {speed}  {found['waited_percent'] + found.get('augment_percent', 0):>5.1f} % data"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, help="default: iact_t hrnet_w18, on a GPU iact hrnet_w18")
    add("--implementations", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="of iact (default: all)")
    add("--precisions", nargs="+", choices=PRECISIONS, help="default: fp32, on a GPU bf16")
    add("--batches", nargs="+", type=int, help="default: 16, on a GPU 64")
    add("--steps", type=int, help="of a round (default: 4, on a GPU 20)")
    add("--workers", type=int, default=peers.count_cores(), help="of the DataLoader (default: one for each core)")
    add("--root", type=Path, help="folder with the files of 300W, to train on those")
    add("--no-compile", action="store_true", help="leave torch.compile out")
    found = parse(parser, "training", arguments, cpu=300.0, gpu=15.0)
    model, precision, batch = USUAL[found.device]
    found.models, found.precisions = found.models or [model, "hrnet_w18"], found.precisions or [precision]
    found.batches, found.steps = found.batches or [batch], found.steps or (2 if found.quick else STEPS[found.device])
    dropped = [*["compile"] * found.no_compile, *["without_graph"] * (found.device == "cpu")]
    found.implementations = [name for name in found.implementations if name not in dropped]
    found.faces = 8 * max(found.batches)
    return found


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    with TemporaryDirectory() as folder:
        benchmark = Benchmark(chosen, Path(folder))
        benchmark.run()
    finish("training", chosen, arguments, benchmark.summary(), benchmark.rows)
    return 1 if benchmark.wrong else 0


if __name__ == "__main__":
    end(main)
