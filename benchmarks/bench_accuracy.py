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
from iact.checkpoint import WEIGHTS, load_weights  # noqa: E402
from iact.config import TrainConfig  # noqa: E402
from iact.data import read_faces  # noqa: E402
from iact.data.crops import cut_faces  # noqa: E402
from iact.evaluation import Protocol, evaluate_predictions, format_report  # noqa: E402
from iact.geometry import CROP_MARGIN  # noqa: E402
from iact.inference import find_device, find_precision, predict_crops  # noqa: E402
from iact.training import train  # noqa: E402


def measure(folder: Path, config: TrainConfig, split: str, flip_test: bool) -> dict:
    """The report on the last weights of a run: those of a fixed number of epochs, chosen on nothing."""
    model, description = load_weights(folder / WEIGHTS["last"])
    device = find_device(config.device)
    faces = read_faces(config.data, config.root, split, layout=description.layout, count=200)
    crops = cut_faces(faces, model.config.input_size, CROP_MARGIN)
    dtype = find_precision(config.amp, device)
    predicted, _ = predict_crops(
        model.to(device), crops, faces.layout, sigma=description.sigma, flip_test=flip_test, dtype=dtype
    )
    protocol = Protocol.of(
        faces,
        data_set=config.data,
        box_rule=f"ground-truth landmarks x {CROP_MARGIN}",
        flip_test=flip_test,
        weights=f"epoch {description.epoch}, the last, chosen on nothing",
    )
    report = evaluate_predictions(predicted, faces, protocol)
    print(format_report(report))
    return report.to_json()


def main(config: Annotated[TrainConfig, tyro.conf.arg(name="")], test_split: str, result: Path) -> None:
    """Train, then evaluate.

    Args:
        config: Settings of the training run.
        test_split: The split to measure on.
        result: The JSON file to write."""
    config = replace(config, out=config.out or Path("runs") / result.stem)
    started = time.perf_counter()
    folder = train(config)
    minutes = (time.perf_counter() - started) / 60
    write_result(
        result,
        {
            "benchmark": "accuracy",
            "command": " ".join(["python", *sys.argv]),
            "settings": config.to_json(),
            "minutes": round(minutes, 1),
            "threads": torch.get_num_threads(),
            "plain": measure(folder, config, test_split, flip_test=False),
            "flip_test": measure(folder, config, test_split, flip_test=True),
        },
    )


if __name__ == "__main__":
    run(main)
