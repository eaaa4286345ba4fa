"""Times the losses and the decoding of iact.ops, the eager PyTorch a user would write, and torch.compile of that.

python benchmarks/bench_ops.py --device cuda --out benchmarks/results

Every peer is compared with ours before it is timed. All dtypes, batches and passes are timed for trained predictions
in contiguous memory; untrained ones and channels_last at the first batch, losses with their gradient. "forward" runs
without autograd. Compiled code is made for the first batch alone, then, as torch.compile does by itself, once more for
any batch."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import peers
import torch
from machine import ROOT, write_result
from tables import file_name, render
from timing import Inputs, Timing, copy_bandwidth, measure, rotated

sys.path.insert(0, str(ROOT))

from iact import heatmaps as codec  # noqa: E402
from iact import ops  # noqa: E402

LANDMARKS, SIZE = 98, 64
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ALIKE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # relative L2 of a loss or gradient, by dtype
ALIKE_DECODED = 1e-5  # relative L2 of coordinates or scores: "argmax" and "topk" of a clear peak differ by 1e-4
FP16_SCALE = 65536.0  # of the loss, as a gradient scaler has it: the plain gradient of a mean underflows
SEED = 5
OPS: dict[str, tuple[Callable, Callable]] = {  # ours and the peer
    "heatmap_loss": (
        lambda pred, landmarks, seed, noise: ops.heatmap_loss(pred, landmarks, seed=seed),
        lambda pred, landmarks, seed, noise: peers.heatmap_loss(pred, landmarks, noise),
    ),
    "smooth_wing_loss": (ops.smooth_wing_loss, peers.smooth_wing_loss),
    "adaptive_wing_loss": (ops.adaptive_wing_loss, peers.adaptive_wing_loss),
    "decode_argmax": (lambda maps: ops.decode_heatmaps(maps, method="argmax"), peers.decode_argmax),
    "decode_window": (lambda maps: ops.decode_heatmaps(maps, radius=peers.RADIUS), peers.decode_window),
    "decode_topk": (lambda maps: ops.decode_heatmaps(maps, method="topk", k=peers.TOP), peers.decode_topk),
}
USUAL = [op for op in OPS if op != "adaptive_wing_loss"]  # it has the kernel of Smooth Wing


@dataclass(frozen=True)
class Case:
    """One thing to time. Trained predictions are the target and noise of 0.01, untrained ones noise of 0.3."""

    op: str
    dtype: str
    backward: bool
    batch: int
    variant: str = "trained"
    layout: str = "contiguous"

    @property
    def is_loss(self) -> bool:
        return self.op.endswith("loss")

    @property
    def least_bytes(self) -> int:
        """Each map once: the prediction read, the target read where it is given, the gradient written."""
        width = DTYPES[self.dtype].itemsize
        target = 4 if self.op in ("smooth_wing_loss", "adaptive_wing_loss") else 0
        return self.batch * LANDMARKS * SIZE**2 * (width + target + (width if self.backward else 0))


class Disagreement(Exception):
    """A peer that does not compute what ours computes."""


def cases(names: list[str], dtypes: list[str], batches: list[int]) -> Iterator[Case]:
    """All cases, those that share compiled code side by side."""
    for op in names:
        for dtype in dtypes:
            passes = (False, True) if op.endswith("loss") else (False,)
            for backward in passes:
                if backward and op == "heatmap_loss":
                    yield Case(op, dtype, backward, batches[0], variant="untrained")
                if backward is passes[-1]:
                    yield Case(op, dtype, backward, batches[0], layout="channels_last")
                yield from (Case(op, dtype, backward, batch) for batch in batches)


def draw_inputs(case: Case, device: torch.device) -> Inputs:
    """Random inputs of the op, the same every time."""
    generator = torch.Generator(device).manual_seed(SEED)
    margin = peers.RADIUS
    spread = SIZE - 1 - 2 * margin
    landmarks = margin + spread * torch.rand(case.batch, LANDMARKS, 2, generator=generator, device=device)
    seed = torch.tensor(SEED, device=device)
    noise = codec.uniform(seed, landmarks.shape, device)
    target = peers.encode(landmarks, noise, SIZE, SIZE)
    wander = torch.randn(target.shape, generator=generator, device=device)
    pred = target + 0.01 * wander if case.variant == "trained" else 0.3 * wander
    layout = getattr(torch, {"contiguous": "contiguous_format"}.get(case.layout, case.layout))
    pred = pred.to(DTYPES[case.dtype], memory_format=layout).requires_grad_(case.backward)
    if case.op == "heatmap_loss":
        return pred, landmarks, seed, noise
    return (pred, target.to(memory_format=layout)) if case.is_loss else (pred,)


def with_pass(function: Callable, case: Case) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The call to time: the function alone, or a loss and its gradient along the prediction."""

    def forward(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            result = function(*inputs)
        return result if isinstance(result, tuple) else (result,)

    def forward_and_backward(pred: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = function(pred, *rest)
        scale = torch.full_like(loss, FP16_SCALE) if pred.dtype == torch.float16 else None
        return loss.detach(), *torch.autograd.grad(loss, pred, scale)

    return forward_and_backward if case.backward else forward


def check(found: tuple[torch.Tensor, ...], ours: tuple[torch.Tensor, ...], case: Case) -> None:
    """Raises Disagreement where a result is further from ours than rounding explains."""
    for one, other in zip(found, ours, strict=True):
        error = ((one.double() - other.double()).norm() / other.double().norm()).item()
        if one.dtype != other.dtype or not error <= (ALIKE[one.dtype] if case.is_loss else ALIKE_DECODED):
            raise Disagreement(f"differs from ours by {error:.1e} (relative L2), {one.dtype} against {other.dtype}")


class Bench:
    """Collects the rows of all cases, and why some are missing."""

    def __init__(self, device: torch.device, seconds: float, least_rounds: int, with_compile: bool):
        self.device, self.seconds, self.least_rounds, self.with_compile = device, seconds, least_rounds, with_compile
        self.bandwidth = copy_bandwidth(device, 1024 if device.type == "cuda" else 256, max(seconds, 0.01))
        self.rows: list[dict] = []
        self.left_out: dict[str, int] = {}
        self.wrong = False

    def run(self, wanted: list[Case]) -> None:
        for (op, _, _), group in groupby(wanted, key=lambda case: (case.op, case.dtype, case.backward)):
            torch._dynamo.reset()  # each group compiles anew: past 8 variants dynamo would quietly go on uncompiled
            ours, peer = OPS[op]
            calls = {"ours": ours, "eager": peer}
            if self.with_compile:
                calls["compile"] = torch.compile(peer, fullgraph=True)
            for case in group:
                self.time(case, calls)

    def time(self, case: Case, calls: dict[str, Callable]) -> None:
        inputs = draw_inputs(case, self.device)
        expected = with_pass(calls["ours"], case)(*inputs)
        sets = rotated(inputs)
        for name, function in calls.items():
            if name == "compile" and case.layout == "channels_last":
                continue
            call = with_pass(function, case)
            if name == "ours" or self.agrees(call, inputs, expected, name, case):
                timing = measure(call, sets, self.seconds, self.least_rounds)
                self.rows.append(row(case, name, timing, self.bandwidth))
                print(line(self.rows[-1]), flush=True)

    def agrees(self, call: Callable, inputs: Inputs, expected: tuple, name: str, case: Case) -> bool:
        try:
            if name == "compile":
                call(*inputs)  # a batch that is not the first may be compiled at its first call and again at its second
            check(call(*inputs), expected, case)
            return True
        except Disagreement as error:
            self.wrong = True
            self.leave_out(f"{name} of {case}: {error}")
        except Exception as error:
            if name != "compile":
                raise
            self.leave_out(f"compile: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        return False

    def leave_out(self, reason: str) -> None:
        if reason not in self.left_out:
            print(f"left out: {reason}", flush=True)
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


def row(case: Case, implementation: str, timing: Timing, bandwidth: float) -> dict:
    floor = case.least_bytes / bandwidth * 1e3
    found = {
        "op": case.op,
        "variant": case.variant,
        "layout": case.layout,
        "dtype": case.dtype,
        "batch": case.batch,
        "pass": "forward+backward" if case.backward else "forward",
        "implementation": implementation,
        "milliseconds": round(timing.milliseconds, 5),
        "spread": round(timing.spread, 5),
        "bytes": case.least_bytes,
        "floor_ms": round(floor, 5),
        "floor_percent": round(100 * floor / timing.milliseconds, 2),
        "rounds": timing.rounds,
        "graphed": timing.graphed,
    }
    memory = timing.peak_memory_mb
    return found if memory is None else found | {"peak_memory_mb": round(memory, 1)}


def line(found: dict) -> str:
    name = f"{found['op']:<18} {found['variant']:<9} {found['layout']:<13} {found['dtype']} {found['batch']:>3}"
    speed = f"{found['milliseconds']:>10.4f} ms +- {found['spread']:.4f}  {found['floor_percent']:>5.1f} % of the floor"
    return f"{name} {found['pass']:<16} {found['implementation']:<7} {speed}"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--ops", nargs="+", choices=OPS, default=USUAL, metavar="OP", help=f"of {', '.join(OPS)}")
    add("--dtypes", nargs="+", choices=DTYPES, help="default: fp32 bf16, on a GPU fp16 too")
    add("--batches", nargs="+", type=int, default=[64, 32, 37], help="the first gets all variants (default: 64 32 37)")
    add("--seconds", type=float, help="time for each row, after its warm-up (default: 0.5, on a GPU 0.1)")
    add("--quick", action="store_true", help="one round a row: to see that it works")
    add("--no-compile", action="store_true", help="leave torch.compile out")
    add("--out", type=Path, help="JSON file; in a folder it is called ops_cpu.json or ops_<card>.json")
    found = parser.parse_args(arguments)
    if found.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected a device that torch can use here, got cuda (torch sees no GPU)")
    return found


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    on_gpu = chosen.device == "cuda"
    load = round(os.getloadavg()[0], 2)
    seconds = 0.0 if chosen.quick else chosen.seconds or (0.1 if on_gpu else 0.5)
    bench = Bench(torch.device(chosen.device), seconds, 1 if chosen.quick else 3, not chosen.no_compile)
    bench.run(list(cases(chosen.ops, chosen.dtypes or list(DTYPES)[: 3 if on_gpu else 2], chosen.batches)))
    result = {
        "benchmark": "ops",
        "command": " ".join(["python", *(sys.argv if arguments is None else ["benchmarks/bench_ops.py", *arguments])]),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "load_average_at_start": load,
        "copy_gigabytes_per_second": round(bench.bandwidth / 1e9, 2),
        "left_out": bench.left_out,
    }
    print(render({**result, "rows": bench.rows}, chosen.batches[0]))
    if chosen.out:
        path = chosen.out / file_name(result["device"]) if chosen.out.is_dir() else chosen.out
        write_result(path, result, bench.rows)
        print(f"written: {path}")
    return 1 if bench.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
