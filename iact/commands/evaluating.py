"""`iact evaluate`."""

from pathlib import Path

from iact.checkpoint import find_weights, load_weights
from iact.config import DataName, OptionalPath
from iact.data import read_faces
from iact.data.crops import cut_faces
from iact.errors import InputError
from iact.evaluation import Protocol, Report, evaluate_predictions, format_report, write_report
from iact.geometry import CROP_MARGIN
from iact.inference import Precision, find_device, find_precision, predict_crops


def evaluate(
    weights: Path,
    out: Path,
    data: DataName = "synthetic",
    root: OptionalPath = None,
    split: str = "test",
    flip_test: bool = False,
    device: str = "auto",
    amp: Precision = "auto",
) -> None:
    """Measure a model on a split; writes metrics.json, per_face.csv, a CED curve and errors per landmark.

    Args:
        weights: A weights file or a run folder.
        out: The folder to write.
        data: The data set.
        root: Its folder, as it was downloaded.
        split: 300w: common, challenging, full or a part such as helen/testset; wflw: test or a subset; cofw: test.
        flip_test: Average with the mirrored picture.
        device: auto, cpu or cuda.
        amp: Precision of the network."""
    report = measure(find_weights(weights), data, root, split, flip_test=flip_test, device=device, amp=amp)
    write_report(report, out)
    print(format_report(report))


def measure(
    weights: Path, data: str, root: Path | None, split: str, *, flip_test: bool, device: str, amp: Precision
) -> Report:
    """The report on a weights file's predictions for a split. InputError when they name other landmarks."""
    model, description = load_weights(weights)
    faces = read_faces(data, root, split, layout=description.layout, count=200)
    if faces.layout.name != description.layout.name:
        raise InputError(
            f"{weights}: predicts {description.layout.num_landmarks} landmarks ({description.layout.name}), "
            f"but {data} has {faces.layout.num_landmarks}"
        )
    target = find_device(device)
    crops = cut_faces(faces, model.config.input_size, CROP_MARGIN)
    settings = {"sigma": description.sigma, "flip_test": flip_test, "dtype": find_precision(amp, target)}
    predicted, _ = predict_crops(model.to(target), crops, faces.layout, **settings)
    chosen = f"chosen on {description.chosen_on}" if description.chosen_on else "the last, chosen on nothing"
    protocol = Protocol.of(
        faces,
        data_set=data,
        box_rule=f"ground-truth landmarks x {CROP_MARGIN}",
        flip_test=flip_test,
        weights=f"{weights} (epoch {description.epoch}, {chosen})",
    )
    return evaluate_predictions(predicted, faces, protocol)
