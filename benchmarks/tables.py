"""Puts the figures of benchmarks/results/ops_*.json into the README's tables; --check only says whether they agree."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
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


def file_name(device: str) -> str:
    """The file of a device's results: ops_cpu.json, ops_nvidia_h200.json."""
    return f"ops_{re.sub(r'[^a-z0-9]+', '_', device.lower()).strip('_')}.json"


def render(result: dict, batch: int = 64) -> str:
    """The Markdown table of a result: ours beside its peers, for trained predictions in contiguous memory."""
    lines = [HEAD, re.sub(r"[^|]+", " --- ", HEAD)]
    for op, label in LABELS.items():
        for dtype in ("fp32", "bf16"):
            times = {row["implementation"]: row for row in result["rows"] if _is_shown(row, op, dtype, batch)}
            if "ours" in times:
                lines.append(_line(label, dtype, times))
    return "\n".join(lines)


def section(folder: Path) -> str:
    """All that stands between the markers: one table for the CPU, one for each GPU that was measured."""
    gpus = sorted(path for path in folder.glob("ops_*.json") if path.name != "ops_cpu.json")
    cpus = [path for path in [folder / "ops_cpu.json"] if path.exists()]
    caption = [CAPTION] if cpus or gpus else []
    return "\n\n".join([_part("On a CPU", cpus), _part("On a GPU", gpus), *caption])


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
    speed = f"a copy moves {result['copy_gigabytes_per_second']:.0f} GB/s"
    return f"{where}, torch {machine['torch']}; {speed}; [json](benchmarks/results/{name})."


def _is_shown(row: dict, op: str, dtype: str, batch: int) -> bool:
    whole = row["pass"] == ("forward+backward" if op.endswith("loss") else "forward")
    kind = (row["op"], row["dtype"], row["batch"], row["variant"], row["layout"])
    return whole and kind == (op, dtype, batch, "trained", "contiguous")


def _line(label: str, dtype: str, times: dict[str, dict]) -> str:
    ours = times["ours"]
    peers = [_peer(times.get(name), ours) for name in ("eager", "compile")]
    floor = f"{_figure(ours['floor_ms'])} ({ours['floor_percent']:.0f} %)"
    return f"| {' | '.join([label, dtype, str(ours['batch']), _figure(ours['milliseconds']), *peers, floor])} |"


def _peer(row: dict | None, ours: dict) -> str:
    if row is None:
        return "-"
    return f"{_figure(row['milliseconds'])} ({_figure(row['milliseconds'] / ours['milliseconds'], 2)}x)"


def _figure(value: float, digits: int = 3) -> str:
    """A positive number to that many significant digits, without an exponent."""
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - int(f"{rounded:e}".partition("e")[2]))
    return f"{rounded:.{decimals}f}"


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
