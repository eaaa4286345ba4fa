"""Makes the weights that the package brings along: half the bytes, a card with what they can and cannot do, pictures.

python benchmarks/ship_weights.py --run runs/300w --name iact-300w --root DIR

Measures the run's last weights on a test split before and after their parameters are rounded to bfloat16, with the
detector's boxes, and while one condition after the other gets worse. The pictures are of Eileen Collins, by NASA
(public domain, from scikit-image), since faces of the data sets may not be passed on."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from machine import ROOT, write_result

sys.path.insert(0, str(ROOT))

from limits import CONDITIONS, Sample, measure_detector, measure_limits, predict_samples  # noqa: E402
from weights_card import card  # noqa: E402

from iact import Predictor  # noqa: E402
from iact.__main__ import run  # noqa: E402
from iact.checkpoint import SHIPPED, WEIGHTS, load_weights, save_weights  # noqa: E402
from iact.commands import measure  # noqa: E402
from iact.data import read_faces  # noqa: E402
from iact.errors import InputError  # noqa: E402
from iact.files import write_atomically  # noqa: E402
from iact.plots import contact_sheet, draw_landmarks, save_image  # noqa: E402

PORTRAIT = (185.0, 85.0, 275.0, 180.0)  # the box of the landmarks in scikit-image's "astronaut"
SHOWN = 160  # px of a picture on the sheet


@dataclass(frozen=True)
class Settings:
    """What to ship, and the faces to measure it on."""

    run: Path
    """The run folder."""
    name: str
    """What from_pretrained will know them by."""
    root: Path
    data: str = "300w"
    split: str = "helen/testset"
    folder: Path = SHIPPED
    """Where the weights go, with their card and pictures."""
    out: Path = Path("benchmarks/results")
    """Folder of the JSON."""


def main(settings: Annotated[Settings, tyro.conf.arg(name="")]) -> None:
    trained, shipped = settings.run / WEIGHTS["last"], settings.folder / f"{settings.name}.safetensors"
    halve(trained, shipped)
    predictor = Predictor.from_pretrained(shipped)
    faces = read_faces(settings.data, settings.root, settings.split)
    result = {
        "benchmark": "weights",
        "command": " ".join(["python", *sys.argv]),
        "megabytes": round(shipped.stat().st_size / 1e6, 2),
        "weights": _described(shipped),
        "trained": _measured(trained, settings, "off"),
        "shipped": _measured(shipped, settings, "off"),
        "shipped_auto": _measured(shipped, settings, "auto"),
        "detector": measure_detector(predictor, faces),
    }
    path = settings.out / f"weights_{settings.name}.json"
    rows = measure_limits(predictor, faces)
    write_result(path, result, rows)
    write_atomically(
        shipped.with_suffix(".md"), lambda to: to.write_text(card(settings.name, result, rows), encoding="utf-8")
    )
    save_image(shipped.with_suffix(".jpg"), picture_of_limits(predictor))
    save_image(settings.out / f"{settings.name}_portrait.jpg", picture_of_portrait(predictor))
    print(f"{shipped}: {result['megabytes']} MB, its card and pictures beside it, {path}")


def halve(trained: Path, shipped: Path) -> None:
    """Writes the weights with their parameters in bfloat16; statistics of batch normalisation stay as they are."""
    model, description = load_weights(trained)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    save_weights(shipped, model, description)


def _described(weights: Path) -> dict:
    model, description = load_weights(weights)
    count = sum(parameter.numel() for parameter in model.parameters())
    return {
        "parameters": count,
        "input_size": model.config.input_size,
        "landmarks": description.layout.num_landmarks,
        "trained_on": description.trained_on,
        "epoch": description.epoch,
    }


def _measured(weights: Path, settings: Settings, amp: str) -> dict:
    """The reports without and with flip test."""
    protocol = (settings.data, settings.root, settings.split)
    tests = {"plain": False, "flip_test": True}
    reports = {
        name: measure(weights, *protocol, flip_test=flip, device="auto", amp=amp) for name, flip in tests.items()
    }
    return {name: report.to_json() for name, report in reports.items()}


def picture_of_portrait(predictor: Predictor) -> np.ndarray:
    """The upper half of the portrait, with what the detector and the model find."""
    image = _portrait()
    for face in predictor(image):
        image = draw_landmarks(image, face.landmarks, predictor.layout)
    return image[:300, 60:400]


def picture_of_limits(predictor: Predictor) -> np.ndarray:
    """A sheet with a row for each condition, from mild to severe: in green where the landmarks of the picture as it is
    would be, in red what the model finds."""
    first = Sample(_portrait(), np.zeros((1, 2)), np.array(PORTRAIT))
    landmarks, _ = predict_samples(predictor, [first])
    plain = Sample.of(first.image, landmarks[0])
    sheet = []
    for change, strengths in CONDITIONS.values():
        chosen = [strengths[i] for i in np.linspace(0, len(strengths) - 1, 4).round().astype(int)]
        samples = [change(plain, strength) for strength in chosen]
        predicted, _ = predict_samples(predictor, samples)
        sheet += [_close_up(*pair, predictor) for pair in zip(samples, predicted, strict=True)]
    return contact_sheet(sheet, 4)


def _portrait() -> np.ndarray:
    try:
        from skimage import data
    except ImportError:
        raise InputError("the pictures need scikit-image: pip install scikit-image") from None
    return data.astronaut()


def _close_up(sample: Sample, predicted: np.ndarray, predictor: Predictor) -> np.ndarray:
    """The face of the sample, and what is round it, at the size of the sheet."""
    from iact.geometry import crop_matrix, cut, landmark_box, transform_points

    matrix = crop_matrix(landmark_box(sample.landmarks), SHOWN, margin=1.7)
    image = cut(sample.image, matrix, SHOWN)
    points = [transform_points(points, matrix) for points in (sample.landmarks, predicted)]
    return draw_landmarks(image, points[0], predictor.layout, points[1])


if __name__ == "__main__":
    torch.manual_seed(0)
    run(main)
