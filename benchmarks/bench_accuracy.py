"""Trains from nothing on a data set and measures the result: minutes, NME, FR, AUC, as JSON.

python benchmarks/bench_accuracy.py --data 300w --root DIR --test-split helen/testset --result FILE.json"""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from machine import ROOT, write_result

sys.path.insert(0, str(ROOT))

from iact.__main__ import run  # noqa: E402
from iact.checkpoint import WEIGHTS  # noqa: E402
from iact.commands import measure  # noqa: E402
from iact.config import TrainConfig  # noqa: E402
from iact.data import read_faces  # noqa: E402
from iact.evaluation import format_report  # noqa: E402
from iact.training import train  # noqa: E402


def main(config: Annotated[TrainConfig, tyro.conf.arg(name="")], test_split: str, result: Path) -> None:
    """Train, then evaluate.

    Args:
        config: Settings of the training run.
        test_split: The split to measure on.
        result: The JSON file to write."""
    read_faces(config.data, config.root, test_split)  # what is wrong there is better known before the training
    config = replace(config, out=config.out or Path("runs") / result.stem)
    started = time.perf_counter()
    folder = train(config)
    minutes = (time.perf_counter() - started) / 60
    figures = {}
    for name, flip_test in (("plain", False), ("flip_test", True)):
        weights = folder / WEIGHTS["last"]  # those of a fixed number of epochs, chosen on nothing
        report = measure(
            weights, config.data, config.root, test_split, flip_test=flip_test, device=config.device, amp=config.amp
        )
        print(format_report(report))
        figures[name] = report.to_json()
    command = " ".join(["python", *sys.argv])
    timing = {"minutes": round(minutes, 1), "threads": torch.get_num_threads()}
    write_result(
        result, {"benchmark": "accuracy", "command": command, **timing, "settings": config.to_json(), **figures}
    )


if __name__ == "__main__":
    run(main)
