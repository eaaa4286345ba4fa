"""Ours beside its peers: each peer is compared with ours, then timed, or left out with the reason."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from machine import write_result
from tables import file_name, render
from timing import Inputs, Timing, copy_bandwidth, measure, rotated

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Results = tuple[torch.Tensor, ...]


class Disagreement(Exception):
    """A peer that does not compute what ours computes."""


class Case(Protocol):
    """One thing to time: what its rows say of it, what it has to move and compute, and what it counts as equal."""

    dtype: str
    least_bytes: int

    def labels(self) -> dict[str, str | int]: ...

    def flops(self) -> int: ...

    def tolerance(self, implementation: str, dtype: torch.dtype) -> float: ...


def check(found: Results, ours: Results, case: Case, implementation: str = "eager") -> None:
    """Raises Disagreement where a result is further from ours than rounding explains."""
    for one, other in zip(found, ours, strict=True):
        if one.shape != other.shape:
            raise Disagreement(f"is {list(one.shape)}, ours {list(other.shape)}")
        error = ((one.double() - other.double()).norm() / other.double().norm()).item()
        if one.dtype != other.dtype or not error <= case.tolerance(implementation, one.dtype):
            raise Disagreement(f"differs from ours by {error:.1e} (relative L2), {one.dtype} against {other.dtype}")


class Comparison:
    """Collects the rows of all cases, and why some are missing.

    `may_fail(implementation)` says of a peer that it need not run everywhere: it is then left out, with its error."""

    def __init__(self, device: torch.device, chosen: argparse.Namespace, may_fail: Callable[[str], bool]):
        self.device, self.may_fail, self.seconds = device, may_fail, chosen.seconds
        self.least_rounds = 1 if chosen.quick else 3
        self.bandwidth = copy_bandwidth(device, 1024 if device.type == "cuda" else 256, max(self.seconds, 0.01))
        self.rates: dict[str, float] = {}  # of products, in FLOP/s, by dtype
        self.rows: list[dict] = []
        self.left_out: dict[str, int] = {}
        self.wrong = False

    def time(self, case: Case, inputs: Inputs, calls: dict[str, Callable[..., Results]]) -> None:
        """Times all calls, of which "ours" comes first."""
        expected = calls["ours"](*inputs)
        sets = rotated(inputs)
        for name, call in calls.items():
            if name == "ours" or self.agrees(call, inputs, expected, name, case):
                timing = measure(call, sets, self.seconds, self.least_rounds)
                self.rows.append(row(case, name, timing, self.bandwidth, self.rates.get(case.dtype)))
                print(line(self.rows[-1]), flush=True)

    def agrees(self, call: Callable, inputs: Inputs, expected: Results, name: str, case: Case) -> bool:
        try:
            if name == "compile":
                call(*inputs)  # a batch that is not the first may be compiled at its first call and again at its second
            check(call(*inputs), expected, case, name)
            return True
        except Disagreement as error:
            self.wrong = True
            self.leave_out(f"{name} of {case}: {error}")
        except Exception as error:
            if not self.may_fail(name):
                raise
            self.leave_out(f"{name}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        return False

    def summary(self) -> dict:
        """What the result says beside its rows."""
        speeds = {"copy_gigabytes_per_second": round(self.bandwidth / 1e9, 2)}
        if self.rates:
            speeds["product_teraflops_per_second"] = {name: round(rate / 1e12, 3) for name, rate in self.rates.items()}
        return {**speeds, "left_out": self.left_out}

    def leave_out(self, reason: str) -> None:
        if reason not in self.left_out:
            print(f"left out: {reason}", flush=True)
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


def product_rate(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of a large square matrix product, of side 8192 on a GPU and 1024 on a CPU: the floor's other measure.

    The best of five medians, each over a fifth of the time: a floor should not rise because something disturbed it."""
    side = 8192 if device.type == "cuda" else 1024
    pair = tuple(torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    torch.mm(*pair)
    best = min(measure(torch.mm, [pair], seconds / 5).milliseconds for _ in range(5))
    return 2 * side**3 / best * 1e3


def row(case: Case, implementation: str, timing: Timing, bandwidth: float, rate: float | None) -> dict:
    """What was found of one implementation; with a product rate, the floor is the longer of moving and computing."""
    flops = case.flops() if rate else 0
    floor = max(case.least_bytes / bandwidth, flops / (rate or 1.0)) * 1e3
    found = {
        **case.labels(),
        "implementation": implementation,
        "milliseconds": round(timing.milliseconds, 5),
        "spread": round(timing.spread, 5),
        "bytes": case.least_bytes,
        "gigabytes_per_second": round(case.least_bytes / timing.milliseconds / 1e6, 3),
        "floor_ms": round(floor, 5),
        "floor_percent": round(100 * floor / timing.milliseconds, 2),
        "rounds": timing.rounds,
        "graphed": timing.graphed,
    }
    if flops:
        found |= {"flops": flops, "teraflops_per_second": round(flops / timing.milliseconds / 1e9, 4)}
    memory = timing.peak_memory_mb
    return found if memory is None else found | {"peak_memory_mb": round(memory, 1)}


def line(found: dict) -> str:
    """A row as it is printed while the benchmark runs."""
    columns = list(found)
    name = " ".join(f"{found[column]:<{9 if column != 'op' else 16}}" for column in columns[: columns.index("pass")])
    speed = f"{found['milliseconds']:>10.4f} ms +- {found['spread']:.4f}  {found['floor_percent']:>5.1f} % of the floor"
    return f"{name} {found['pass']:<16} {found['implementation']:<22} {speed}"


def parse(
    parser: argparse.ArgumentParser, kind: str, arguments: list[str] | None, cpu: float, gpu: float
) -> argparse.Namespace:
    """The arguments, with the flags that every benchmark has; exit code 2 without the device.

    `kind` begins the name of the file; `cpu` and `gpu` are the seconds where none are given."""
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--seconds", type=float, help=f"how long to time, after a warm-up (default: {cpu:g}, on a GPU {gpu:g})")
    add("--quick", action="store_true", help="one round a row: to see that it works")
    add("--out", type=Path, help=f"JSON file; in a folder it is called {kind}_cpu.json or {kind}_<card>.json")
    found = parser.parse_args(arguments)
    if found.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected a device that torch can use here, got cuda (torch sees no GPU)")
    found.load_average_at_start = round(os.getloadavg()[0], 2)
    found.seconds = 0.0 if found.quick else found.seconds or (gpu if found.device == "cuda" else cpu)
    return found


def finish(kind: str, chosen: argparse.Namespace, arguments: list[str] | None, result: dict, rows: list[dict]) -> None:
    """Prints a benchmark's table and writes its file where one is wanted."""
    command = sys.argv if arguments is None else [f"benchmarks/bench_{kind}.py", *arguments]
    result = {
        "benchmark": kind,
        "command": " ".join(["python", *command]),
        "device": torch.cuda.get_device_name() if chosen.device == "cuda" else "cpu",
        "load_average_at_start": chosen.load_average_at_start,
        **result,
    }
    if chosen.out:
        path = chosen.out / file_name(result["device"], kind) if chosen.out.is_dir() else chosen.out
        write_result(path, result, rows)
        print(f"written: {path}")
    print(render({**result, "rows": rows}))
