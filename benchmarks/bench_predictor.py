"""Times the Predictor from an image in memory to landmarks, whole and in parts, and its first call in a new process.

python benchmarks/bench_predictor.py --device cpu --out benchmarks/results

Parts: detect (Haar, and YuNet where its model is given), cut (boxes to the network's input), network (with the way to
the device and the normalisation; of one face on a GPU also without its CUDA graph), decode (heatmaps to image px on the
host). Beside them the whole call, with boxes given and with the detector. The parts together are first compared with
the whole. A batch is that many faces of one image: a drawn face, 640 px, whose box is shifted a little. Weights are
random, and sampling offsets of half a pixel. --seconds is for all rounds of a network and a batch. A first call is the
median of several new processes, in which "import" is `import iact` with torch, "load" from_pretrained, "first" and
"second" a face with its box."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench_inference import IACT, LEAST_ROUNDS, build, interleaved, summary
from comparison import parse
from machine import ROOT, write_result
from tables import file_name

sys.path.insert(0, str(ROOT))

from iact import Predictor, ops  # noqa: E402
from iact.__main__ import end  # noqa: E402
from iact.capture import PictureGraph  # noqa: E402
from iact.checkpoint import Description, save_weights  # noqa: E402
from iact.data.synthetic import draw_face  # noqa: E402
from iact.detector import YuNet, detect_faces  # noqa: E402
from iact.geometry import from_heatmap, invert, landmark_box, transform_points  # noqa: E402
from iact.heatmaps import SIGMA, window_radius  # noqa: E402
from iact.inference import autocast  # noqa: E402
from iact.layouts import WFLW  # noqa: E402
from iact.model import normalise  # noqa: E402

SIDE = 640  # px, of the image
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROCESSES = 5
FIRST_CALL = """
import json, sys, time
times = [time.perf_counter()]
sys.path.insert(0, {root!r})
import numpy as np
import torch
from iact import Predictor
times.append(time.perf_counter())
predictor = Predictor.from_pretrained({weights!r}, device={device!r}, dtype=torch.{dtype})
times.append(time.perf_counter())
image, boxes = np.load({image!r}), {boxes!r}
for _ in range(2):
    predictor(image, boxes)
    times.append(time.perf_counter())
print(json.dumps([1e3 * (end - start) for start, end in zip(times, times[1:])]))
"""


def draw(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and the boxes [batch, 4] of its face, the first exact and each shifted a little further."""
    image, landmarks = draw_face(0, 0, WFLW, size=SIDE)[:2]
    return image, landmark_box(landmarks) + 0.1 * np.arange(batch)[:, None]


def save(name: str, folder: Path) -> Path:
    """A weights file with random weights."""
    path, model = folder / f"{name}.safetensors", build(name)[0]
    save_weights(path, model, Description(model.config, WFLW, SIGMA, 0, "nothing", ""))
    return path


def parts(predictor: Predictor, image: np.ndarray, boxes: np.ndarray) -> dict[str, Callable]:
    """Each part as a function of nothing, on what the part before it gives. Raises AssertionError where together they
    find other landmarks than the predictor."""
    one, model, device = predictor._cut(image, boxes), predictor.model, predictor.device

    @torch.no_grad()
    def network(forward: Callable = model) -> torch.Tensor:
        pictures = torch.from_numpy(one.pictures).permute(0, 3, 1, 2).to(device).float()
        with autocast(device, predictor.dtype):
            heatmaps = forward(normalise(pictures).contiguous(memory_format=torch.channels_last))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return heatmaps

    heatmaps = network()

    def decode() -> np.ndarray:
        points, _ = ops.decode_heatmaps(heatmaps, radius=window_radius(predictor.description.sigma))
        points = from_heatmap(points, model.config.stride).double().cpu().numpy()
        return transform_points(points, invert(one.matrices))

    whole = np.stack([face.landmarks for face in predictor(image, boxes)])
    np.testing.assert_allclose(decode(), whole, rtol=0, atol=0.05)
    calls = {"cut": lambda: predictor._cut(image, boxes), "network": network, "decode": decode}
    if isinstance(model, PictureGraph) and len(boxes) == 1:
        calls["network, no graph"] = partial(network, model.network)
    return calls


def steady(chosen: argparse.Namespace, name: str, weights: Path, dtype: str) -> Iterator[dict]:
    """The rows of one network in one dtype: parts and whole calls for each batch, detectors once."""
    predictor = Predictor.from_pretrained(weights, device=chosen.device, dtype=DTYPES[dtype])
    for batch in chosen.batches:
        image, boxes = draw(batch)
        calls = parts(predictor, image, boxes)
        calls["whole, boxes given"] = lambda image=image, boxes=boxes: predictor(image, boxes)
        if batch == 1:
            calls |= {"detect, haar": lambda image=image: detect_faces(image)}
            calls |= {"whole, haar": lambda image=image: predictor(image)}
            if chosen.detector_model:
                yunet = YuNet(chosen.detector_model)
                calls["detect, yunet"] = lambda image=image, yunet=yunet: yunet(image)
        times = interleaved(calls, chosen.seconds, 1 if chosen.quick else LEAST_ROUNDS)
        for part, found in times.items():
            yield {"model": name, "dtype": dtype, "batch": batch, "part": part} | summary(found)


def first_calls(chosen: argparse.Namespace, name: str, weights: Path, dtype: str, folder: Path) -> Iterator[dict]:
    """The rows of new processes."""
    image, boxes = draw(1)
    np.save(folder / "image.npy", image)
    values = {"root": str(ROOT), "weights": str(weights), "image": str(folder / "image.npy"), "boxes": boxes.tolist()}
    dtype_name = str(DTYPES[dtype]).removeprefix("torch.")
    program = FIRST_CALL.format(**values, device=chosen.device, dtype=dtype_name)
    command = [sys.executable, "-c", program]
    times = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(1 if chosen.quick else PROCESSES)
    ]
    for part, found in zip(("import", "load", "first", "second"), zip(*times, strict=True), strict=True):
        case = {"model": name, "dtype": dtype, "batch": 1, "part": f"new process, {part}"}
        yield case | {"milliseconds": round(statistics.median(found), 3), "rounds": len(found)}


def rows_of(chosen: argparse.Namespace) -> Iterator[dict]:
    """A row for each part, network, dtype and batch."""
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.models:
            weights = save(name, Path(folder))
            for dtype in chosen.dtypes:
                yield from first_calls(chosen, name, weights, dtype, Path(folder))
                yield from steady(chosen, name, weights, dtype)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=IACT, default=IACT, metavar="MODEL", help=f"of {', '.join(IACT)}")
    add("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"], help="bf16 is autocast (default: both)")
    add("--batches", nargs="+", type=int, default=[1, 64], help="faces in the image (default: 1 64)")
    add("--detector-model", type=Path, help="YuNet's file, to time it too")
    return parse(parser, "predictor", arguments, cpu=20.0, gpu=10.0)


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    rows = []
    for row in rows_of(chosen):
        rows.append(row)
        name = f"{row['model']:<7} {row['dtype']} {row['batch']:>3}  {row['part']:<20}"
        print(f"{name} {row['milliseconds']:>10.2f} ms", flush=True)
    if chosen.out:
        device = torch.cuda.get_device_name() if chosen.device == "cuda" else "cpu"
        path = chosen.out / file_name(device, "predictor") if chosen.out.is_dir() else chosen.out
        command = sys.argv if arguments is None else ["benchmarks/bench_predictor.py", *arguments]
        settings = {"command": " ".join(["python", *command]), "device": device, "image_px": SIDE}
        load = {"load_average_at_start": chosen.load_average_at_start}
        write_result(path, {"benchmark": "predictor", **settings, **load}, rows)
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    end(main)
