"""What every result says of itself: the machine, the versions, the commit."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "triton", "numpy", "opencv-python")


def describe_machine() -> dict[str, str | int]:
    """Processor, cores, GPU, system, Python, versions of the packages that matter, and the commit of this tree."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        **_torch_devices(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def write_result(path: Path, result: dict, rows: Sequence[dict] = ()) -> None:
    """Writes a result with the machine's description as JSON; `rows`, where there are any, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**result, "machine": describe_machine()}, indent=1)
    if rows:
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        text = text[: -len("\n}")] + f',\n "rows": [\n  {lines}\n ]\n}}'
    path.write_text(text + "\n")


def _torch_devices() -> dict[str, str | int]:
    import torch  # only here: the drawing of faces is measured without it

    found: dict[str, str | int] = {"torch_threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
        found |= {"gpu": torch.cuda.get_device_name(), "driver": driver, "cuda": torch.version.cuda or "unknown"}
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    return _output("git", "describe", "--always", "--dirty")


def _output(*command: str) -> str:
    """What a command prints, "unknown" where there is no such command or it fails."""
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return run.stdout.strip() or "unknown"


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
