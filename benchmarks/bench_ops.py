"""Times the losses and the decoding of iact.ops, the eager PyTorch a user would write, and torch.compile of that.

python benchmarks/bench_ops.py --device cuda --out benchmarks/results

Every peer is compared with ours before it is timed. All dtypes, batches and passes are timed for trained predictions
in contiguous memory; untrained ones and channels_last at the first batch, losses with their gradient. "forward" runs
without autograd. Compiled code is made for the first batch alone, then, as torch.compile does by itself, once more for
any batch."""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import peers
import torch
from comparison import DTYPES, Comparison, finish, parse
from machine import ROOT
from timing import Inputs

sys.path.insert(0, str(ROOT))

from iact import heatmaps as codec  # noqa: E402
from iact import ops  # noqa: E402

LANDMARKS, SIZE = 98, 64
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

    def flops(self) -> int:
        """None in matrix products."""
        return 0

    def tolerance(self, implementation: str, dtype: torch.dtype) -> float:
        return ALIKE[dtype] if self.is_loss else ALIKE_DECODED

    def labels(self) -> dict[str, str | int]:
        kind = {"op": self.op, "variant": self.variant, "layout": self.layout, "dtype": self.dtype, "batch": self.batch}
        return {**kind, "pass": "forward+backward" if self.backward else "forward"}


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


def run(comparison: Comparison, wanted: Iterator[Case], with_compile: bool) -> None:
    """Times all cases."""
    for (op, _, _), group in groupby(wanted, key=lambda case: (case.op, case.dtype, case.backward)):
        torch._dynamo.reset()  # each group compiles anew: past 8 variants dynamo would quietly go on uncompiled
        ours, peer = OPS[op]
        functions = {"ours": ours, "eager": peer}
        if with_compile:
            functions["compile"] = torch.compile(peer, fullgraph=True)
        for case in group:
            calls = {name: with_pass(function, case) for name, function in functions.items()}
            if case.layout == "channels_last":
                calls.pop("compile", None)
            comparison.time(case, draw_inputs(case, comparison.device), calls)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ops", nargs="+", choices=OPS, default=USUAL, metavar="OP", help=f"of {', '.join(OPS)}")
    add("--dtypes", nargs="+", choices=DTYPES, help="default: fp32 bf16, on a GPU fp16 too")
    add("--batches", nargs="+", type=int, default=[64, 32, 37], help="the first gets all variants (default: 64 32 37)")
    add("--no-compile", action="store_true", help="leave torch.compile out")
    return parse(parser, "ops", arguments, cpu=0.5, gpu=0.1)


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    comparison = Comparison(torch.device(chosen.device), chosen, may_fail=lambda name: name == "compile")
    dtypes = chosen.dtypes or list(DTYPES)[: 3 if chosen.device == "cuda" else 2]
    run(comparison, cases(chosen.ops, dtypes, chosen.batches), not chosen.no_compile)
    finish("ops", chosen, arguments, comparison.summary(), comparison.rows)
    return 1 if comparison.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
