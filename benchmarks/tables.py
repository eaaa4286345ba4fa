"""Puts the figures of benchmarks/results into the README's tables; --check only says whether they agree."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- ops:begin -->", "<!-- ops:end -->"
HEAD = "| op | dtype | batch | ours, ms | eager, ms | torch.compile, ms | floor, ms (reached) |"
LABELS = {
    "heatmap_loss": "`heatmap_loss`, forward and backward",
    "decode_argmax": '`decode_heatmaps`, "argmax"',
    "decode_window": '`decode_heatmaps`, "window"',
    "decode_topk": '`decode_heatmaps`, "topk" of 9',
}
CAPTION = """\
98 heatmaps of 64 x 64 an image; behind each peer's time, how many times ours it is. The floor is what a plain copy,
measured in the same run, needs to move as many bytes: the predictions read once, and for a loss their gradient written
once. Eager is the formula in plain PyTorch, written for speed, computed in float32; torch.compile is that, compiled;
both were found to give our results before they were timed. The files hold more batches, dtypes and passes; there, our
"forward" includes the gradient, which the op computes in the same pass."""


BLOCK_HEAD = (
    "| op | C, map | dtype | batch | ours, ms | eager, ms | torch.compile, ms | library, ms | floor, ms (reached) |"
)
BLOCK_LABELS = {"deform_qkv": "`deform_qkv`", "attention": "`attention`", "msa": "`deform_attention`"}
BLOCK_SHAPES = ("96x32", "192x16", "384x8")  # those of iact
BLOCK_CAPTION = """\
Forward and backward, at the three shapes of `iact`, each with offsets of its own for q, k and v. Library: torchvision's
`deform_conv2d` three times, in float32 as autocast runs it (one thread of scalar code on a CPU);
`scaled_dot_product_attention`, the fastest of its backends; or both in a row. Eager is `grid_sample` and batched
products; softmax between two products. The floor is the longer of moving all inputs, outputs and gradients once and of
the matrix products, at the speed of a plain copy and of one large product in the same run. The files hold the forward
pass alone, more dtypes, batches and shapes, shared offsets, peak memory, TFLOP/s and GB/s."""
INFERENCE_HEAD = (
    "| network | input, px | parameters, M | GMAC | fp32, batch 1, ms | batch 8 | bf16, batch 1, ms | batch 8 |"
)
INFERENCE_CAPTION = """\
Each network in the fastest of its forms: contiguous, channels_last, or channels_last with batch normalisation folded
into the convolutions. Medians over rounds in which all networks take turns. HRNet-W18 has the landmark head of Sun et
al. 2019; ResNet-50 gives 98 coordinates and no heatmaps. Both are timm's. bf16 is autocast; with fp32, a GPU's
convolutions round to TF32, as is PyTorch's default."""

TRAINING_HEAD = (
    "| network | trained | input, px | dtype, batch | images/s | a step, ms | data, % of it | GPU memory, GB "
    "| % of a product's TFLOP/s | WFLW, min | 300W, min |"
)
TRAINING_LABELS = {
    "ours": "ours",
    "without_kernels": "plain PyTorch for attention and loss",
    "references": "extension not built",
    "torchvision": "torchvision and SDPA, plain loss",
    "without_graph": "no CUDA graph",
    "without_device_cache": "crops streamed",
    "compile": "and torch.compile",
    "dataloader": "DataLoader",
}
TRAINING_CAPTION = """\
Whole steps: data, forward and backward pass, update. Behind a time, how many times that of the first row it is. `iact`
is trained by the default recipe, on crops in memory: as it is, then with one thing replaced or added. HRNet-W18, timm's
with a landmark head, is trained on files by a DataLoader with a process for each core, MSE and AdamW. Data is what the
host waits for and, for ours on a CPU, augmentation; the DataLoader's processes augment, on a CPU at the expense of the
step. All rows of a network are credited with the FLOPs of ours. The minutes are computed from the speed: 120 epochs of
7,500 faces (WFLW) and of 3,148 (300W)."""


def file_name(device: str, kind: str) -> str:
    """The file of a device's results: ops_cpu.json, ops_nvidia_h200.json."""
    return f"{kind}_{re.sub(r'[^a-z0-9]+', '_', device.lower()).strip('_')}.json"


def render(result: dict) -> str:
    """The Markdown table of a result, by the benchmark it comes from."""
    return TABLES[result["benchmark"]].render(result["rows"])


def section(folder: Path) -> str:
    """All that stands between the markers: for each benchmark a table of the CPU and one of each GPU measured."""
    return "\n\n".join(_tables(kind, table, folder) for kind, table in TABLES.items())


def _tables(kind: str, table: "Table", folder: Path) -> str:
    cpu = folder / file_name("cpu", kind)
    gpus = sorted(path for path in folder.glob(f"{kind}_*.json") if path != cpu)
    cpus = [cpu] if cpu.exists() else []
    caption = [table.caption] if cpus or gpus else []
    return "\n\n".join([_part(f"{table.title} on a CPU", cpus), _part(f"{table.title} on a GPU", gpus), *caption])


def replaced(readme: str, text: str) -> str:
    """The README with the text between its markers."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def _part(title: str, paths: Sequence[Path]) -> str:
    if not paths:
        return f"{title}: not measured yet."
    found = [(path.name, json.loads(path.read_text())) for path in paths]
    return "\n\n".join(f"{title}: {_place(result, name)}\n\n{render(result)}" for name, result in found)


def _place(result: dict, name: str) -> str:
    machine = result["machine"]
    where = (
        f"{machine['processor']}, threads: {machine['torch_threads']}"
        if result["device"] == "cpu"
        else f"{result['device']}, CUDA {machine['cuda']}, driver {machine['driver']}"
    )
    speeds = (
        [f"a copy moves {result['copy_gigabytes_per_second']:.0f} GB/s"]
        if "copy_gigabytes_per_second" in result
        else []
    )
    for dtype, rate in result.get("product_teraflops_per_second", {}).items():
        speeds.append(f"a product in {dtype} does {_figure(rate)} TFLOP/s")
    return "; ".join([f"{where}, torch {machine['torch']}", *speeds, f"[json](benchmarks/results/{name})."])


def _ops_table(rows: Sequence[dict]) -> str:
    """Ours beside its peers, for trained predictions in contiguous memory, at the first batch."""
    lines = _heading(HEAD)
    for op, label in LABELS.items():
        for dtype in ("fp32", "bf16"):
            times = {row["implementation"]: row for row in rows if _is_shown(row, op, dtype, rows[0]["batch"])}
            if "ours" in times:
                lines.append(_line([label, dtype], times, ["eager", "compile"]))
    return "\n".join(lines)


def _block_table(rows: Sequence[dict]) -> str:
    """Ours beside its peers, forward and backward, in the first dtype and batch."""
    lines = _heading(BLOCK_HEAD)
    first = {name: rows[0][name] for name in ("dtype", "batch")} | {"pass": "forward+backward"}
    for op, label in BLOCK_LABELS.items():
        for shape in BLOCK_SHAPES:
            case = (first | {"op": op, "shape": shape}).items()
            shown = [row for row in rows if case <= row.items() and row["offsets"] != "shared"]
            times = {row["implementation"]: row for row in shown}
            if "ours" in times:
                libraries = [row for row in shown if row["implementation"].startswith(("sdpa", "torchvision"))]
                times["library"] = min(libraries, key=lambda row: row["milliseconds"], default=None)
                place = "{}, {} x {}".format(*re.match(r"(.+)x((.+))", shape).groups())
                lines.append(_line([label, place, first["dtype"]], times, ["eager", "compile", "library"]))
    return "\n".join(lines)


def _inference_table(rows: Sequence[dict]) -> str:
    """The networks, each in the form that was fastest."""
    lines = _heading(INFERENCE_HEAD)
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        size = [str(own[0][name]) for name in ("input", "parameters_millions", "gmac")]
        cases = [(dtype, batch) for dtype in ("fp32", "bf16") for batch in (1, 8)]
        times = [[row["milliseconds"] for row in own if (row["dtype"], row["batch"]) == case] for case in cases]
        lines.append(f"| {' | '.join([model, *size, *(_figure(min(found)) if found else '-' for found in times)])} |")
    return "\n".join(lines)


def _training_table(rows: Sequence[dict]) -> str:
    """All networks and ways to train them; times are compared with the first of the same dtype and batch."""
    lines = _heading(TRAINING_HEAD)
    for row in rows:
        first = next(other for other in rows if all(other[name] == row[name] for name in ("dtype", "batch")))
        memory = _figure(row["peak_memory_mb"] / 1e3) if "peak_memory_mb" in row else "-"
        data = f"{row['waited_percent'] + row.get('augment_percent', 0):.1f}"
        case = [
            row["model"],
            TRAINING_LABELS[row["implementation"]],
            str(row["input"]),
            f"{row['dtype']}, {row['batch']}",
        ]
        step = _figure(row["milliseconds"]) if row is first else _peer(row, first)
        speeds = [_figure(row["images_per_second"]), step, data, memory, f"{row['product_percent']:.0f}"]
        lines.append(
            f"| {' | '.join([*case, *speeds, *(_figure(row[f'{name}_minutes']) for name in ('wflw', 'w300'))])} |"
        )
    return "\n".join(lines)


def _heading(head: str) -> list[str]:
    return [head, re.sub(r"[^|]+", " --- ", head)]


def _is_shown(row: dict, op: str, dtype: str, batch: int) -> bool:
    whole = row["pass"] == ("forward+backward" if op.endswith("loss") else "forward")
    kind = (row["op"], row["dtype"], row["batch"], row["variant"], row["layout"])
    return whole and kind == (op, dtype, batch, "trained", "contiguous")


def _line(labels: list[str], times: dict[str, dict], names: list[str]) -> str:
    ours = times["ours"]
    peers = [_peer(times.get(name), ours) for name in names]
    floor = f"{_figure(ours['floor_ms'])} ({ours['floor_percent']:.0f} %)"
    return f"| {' | '.join([*labels, str(ours['batch']), _figure(ours['milliseconds']), *peers, floor])} |"


def _peer(row: dict | None, ours: dict) -> str:
    if row is None:
        return "-"
    return f"{_figure(row['milliseconds'])} ({_figure(row['milliseconds'] / ours['milliseconds'], 2)}x)"


def _figure(value: float, digits: int = 3) -> str:
    """A positive number to that many significant digits, without an exponent."""
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - int(f"{rounded:e}".partition("e")[2]))
    return f"{rounded:.{decimals}f}"


@dataclass(frozen=True)
class Table:
    """What the README shows of one benchmark."""

    title: str
    render: Callable[[Sequence[dict]], str]
    caption: str


TABLES = {
    "ops": Table("Losses and decoding", _ops_table, CAPTION),
    "attention_block": Table("Projection and attention", _block_table, BLOCK_CAPTION),
    "inference": Table("Whole networks", _inference_table, INFERENCE_CAPTION),
    "training": Table("Training", _training_table, TRAINING_CAPTION),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where the README differs")
    check = parser.parse_args(arguments).check
    path = ROOT / "README.md"
    old = path.read_text()
    new = replaced(old, section(ROOT / "benchmarks" / "results"))
    if check and new != old:
        print("README.md: its tables are not those of benchmarks/results; run: python benchmarks/tables.py")
        return 1
    if not check:
        path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
