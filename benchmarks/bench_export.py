"""Times exported networks: ONNX in onnxruntime, in each precision, and AOTInductor's package, beside PyTorch.

python benchmarks/bench_export.py --device cpu --out benchmarks/results

Every file gives landmarks (`iact export --decode`) and was found to agree with PyTorch when it was made. A round calls
each of them once, after a rest: threads that still wait for more work of one runtime would disturb the next. The median
over the rounds and the spread between the quartiles are given. PyTorch is the folded network, channels_last, and the
decoding op, in float32: the Predictor without cutting. Weights are random, or those of --weights. On a GPU, pictures
are copied there and results back, PyTorch's and onnxruntime's (which needs the package onnxruntime-gpu) alike;
AOTInductor's package is for the CPU alone."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
import torch
from bench_inference import IACT, LANDMARKS, LEAST_ROUNDS, build, interleaved, summary
from comparison import parse
from machine import ROOT, write_result
from tables import file_name

sys.path.insert(0, str(ROOT))

from iact.__main__ import end  # noqa: E402
from iact.checkpoint import Description, load_weights, save_weights  # noqa: E402
from iact.export import export_model  # noqa: E402
from iact.export.onnx_graph import open_onnx  # noqa: E402
from iact.export.parity import draw_pictures  # noqa: E402
from iact.export.programs import open_package  # noqa: E402
from iact.heatmaps import SIGMA  # noqa: E402
from iact.inference import predict_batch  # noqa: E402
from iact.layouts import WFLW  # noqa: E402
from iact.model import fold  # noqa: E402

PRECISIONS = ("fp32", "fp16", "int8")  # of ONNX
REST = 0.1  # seconds
Call = Callable[[torch.Tensor], object]


def weights_of(name: str, folder: Path) -> Path:
    """A weights file of that size, with random weights."""
    model, _ = build(name)
    assert model.config.num_landmarks == LANDMARKS == WFLW.num_landmarks
    description = Description(model.config, WFLW, SIGMA, epoch=0, trained_on="nothing", chosen_on="")
    save_weights(folder / "random.safetensors", model, description)
    return folder / "random.safetensors"


def calls_of(weights: Path, device: torch.device, quick: bool, folder: Path) -> tuple[dict[str, Call], list[dict]]:
    """PyTorch and each file, to be called with pictures on the CPU; and how each file agrees with PyTorch."""
    model, description = load_weights(weights)
    network = fold(model).to(device, memory_format=torch.channels_last)

    def pytorch(pictures: torch.Tensor) -> list[torch.Tensor]:
        with torch.inference_mode():
            found = predict_batch(network, pictures.to(device), description.layout, sigma=description.sigma)
        return [result.cpu() for result in found]

    calls, files = {"PyTorch": pytorch}, []
    precisions = PRECISIONS[:1] if quick else PRECISIONS
    kinds = [("onnx", precision) for precision in precisions]
    if device.type == "cpu" and not quick:
        kinds.append(("aoti", "fp32"))
    for format, precision in kinds:
        path = folder / f"{precision}{'.onnx' if format == 'onnx' else '.pt2'}"
        exported = export_model(weights, path, format, decode=True, precision=precision)
        calls[f"{format} {precision}"] = opened(path, format, device)
        size = round(path.stat().st_size / 1e6, 2)
        files.append({"runtime": f"{format} {precision}", "megabytes": size, "parity": str(exported.parity)})
    return calls, files


def opened(path: Path, format: str, device: torch.device) -> Call:
    """The file in its runtime, with as many threads as PyTorch."""
    if format == "aoti":
        return open_package(path)
    providers = ("CUDAExecutionProvider",) if device.type == "cuda" else ("CPUExecutionProvider",)
    return open_onnx(path, threads=torch.get_num_threads(), providers=providers)


def rows_of(name: str, calls: dict[str, Call], chosen: argparse.Namespace, size: int) -> list[dict]:
    """One row for each runtime and batch."""
    rows = []
    for batch in chosen.batches:
        pictures = draw_pictures(batch, size, seed=0)
        bound = {runtime: lambda call=call, pictures=pictures: call(pictures) for runtime, call in calls.items()}
        times = interleaved(bound, chosen.seconds, 1 if chosen.quick else LEAST_ROUNDS, REST)
        rows += [{"model": name, "runtime": key, "batch": batch, **summary(found)} for key, found in times.items()]
    for row in rows:
        print(f"{name:<10} {row['runtime']:<10} {row['batch']:>3} {row['milliseconds']:>10.2f} ms +- {row['spread']}")
    return rows


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=IACT, default=IACT, metavar="MODEL", help=f"of {', '.join(IACT)}")
    add("--weights", type=Path, help="a weights file or run folder, instead of models with random weights")
    add("--batches", nargs="+", type=int, default=[1, 8], help="default: 1 8")
    return parse(parser, "export", arguments, cpu=20.0, gpu=10.0)


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    rows, files = [], []
    for name in [str(chosen.weights)] if chosen.weights else chosen.models:
        with TemporaryDirectory() as folder:
            weights = chosen.weights or weights_of(name, Path(folder))
            size = load_weights(weights)[1].model.input_size
            calls, made = calls_of(weights, torch.device(chosen.device), chosen.quick, Path(folder))
            rows += rows_of(name, calls, chosen, size)
            files += [{"model": name, **file} for file in made]
    device = torch.cuda.get_device_name() if chosen.device == "cuda" else "cpu"
    command = " ".join(["python", *(sys.argv if arguments is None else ["benchmarks/bench_export.py", *arguments])])
    said = {"benchmark": "export", "command": command, "device": device, "onnxruntime": onnxruntime.__version__}
    if chosen.out:
        path = chosen.out / file_name(device, "export") if chosen.out.is_dir() else chosen.out
        write_result(path, {**said, "load_average_at_start": chosen.load_average_at_start, "files": files}, rows)
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    end(main)
