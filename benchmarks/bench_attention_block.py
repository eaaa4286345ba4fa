"""Times the deformable projection, attention, and both in a row, beside what one would write or pick in their place.

python benchmarks/bench_attention_block.py --device cuda --out benchmarks/results

deform_qkv  eager: `grid_sample` and batched products; compile: that, compiled; torchvision: its deform_conv2d three
            times, in float32 as autocast runs it; torchvision_fp16: the same in float16, on a GPU
attention   eager softmax; compile: that, compiled; sdpa_*: PyTorch's attention with each backend forced
msa         deform_attention; eager: both eager peers; torchvision+sdpa: torchvision and the fastest backend, taken from
            the rows of attention

Every peer is compared with ours before it is timed. Offsets are float32, of half a pixel, three sets or one shared.
All batches are timed in the first dtype, the other dtypes, the shared set and torch.compile (for one shape each time)
at the first batch; shapes that are not the model's at the first two batches. bytes: what has to move once, inputs and
outputs, and for the backward pass the gradients of both. FLOPs: the matrix products, by the ops' formulas. The floor is
the longer of the two, at the speed of a large copy and of a large product in that dtype, both measured in the same run.
On a CPU torchvision runs one thread of scalar code: up to seconds a call, so its rows there have few rounds."""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import peers_block as peers
import torch
from comparison import DTYPES, Comparison, Results, finish, parse, product_rate
from machine import ROOT
from timing import Inputs
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(ROOT))

from iact import ops  # noqa: E402

SHAPES = {  # channels, side of the map, heads
    "96x32": (96, 32, 2),
    "192x16": (192, 16, 4),
    "384x8": (384, 8, 8),
    "128x32": (128, 32, 4),
    "256x16": (256, 16, 8),
    "512x8": (512, 8, 8),
}
MODEL = list(SHAPES)[:3]
OPS = ("deform_qkv", "attention", "msa")
SETS = {"separate": 3, "shared": 1}
ALIKE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 4e-3}  # relative L2: every product and every result is rounded
ALIKE_FP16_COORDINATES = 5e-2  # torchvision in float16 places its samples by 1/64 px
SEED = 5


@dataclass(frozen=True)
class Case:
    """One thing to time."""

    op: str
    shape: str
    dtype: str
    batch: int
    backward: bool
    offsets: str = "separate"

    @property
    def heads(self) -> int:
        return SHAPES[self.shape][2]

    @property
    def arguments(self) -> int:
        """How many of the inputs are the op's; gradients of its results follow."""
        return 3 if self.op == "attention" else 4

    @property
    def least_bytes(self) -> int:
        """Inputs read and results written once; for the backward pass as much again, their gradients."""
        channels, side, heads = SHAPES[self.shape]
        width, maps, pixels = DTYPES[self.dtype].itemsize, self.batch * side**2 * channels, self.batch * side**2
        parameters = 3 * channels * (channels // heads * 9 + 1)
        projection = width * (maps + parameters) + 4 * pixels * 18 * SETS[self.offsets]
        moved = {"attention": 4 * width * maps, "deform_qkv": projection + 3 * width * maps}
        return moved.get(self.op, projection + width * maps) * (2 if self.backward else 1)

    def labels(self) -> dict[str, str | int]:
        offsets = "-" if self.op == "attention" else self.offsets
        kind = {"op": self.op, "shape": self.shape, "offsets": offsets, "dtype": self.dtype, "batch": self.batch}
        return {**kind, "pass": "forward+backward" if self.backward else "forward"}

    def flops(self) -> int:
        return self.batch * _flops_of_one(replace(self, batch=1, dtype="fp32"))

    def tolerance(self, implementation: str, dtype: torch.dtype) -> float:
        return ALIKE_FP16_COORDINATES if implementation == "torchvision_fp16" else ALIKE[self.dtype]


@cache
def _flops_of_one(case: Case) -> int:
    """What PyTorch's counter finds in ours; it sees tensors without data."""
    mode = FakeTensorMode()
    inputs = [mode.from_tensor(tensor) for tensor in draw_inputs(case, torch.device("cpu"))]
    with mode, FlopCounterMode(display=False) as counter:
        with_pass(ours(case), case)(*inputs)
    return counter.get_total_flops()


def cases(names: list[str], shapes: list[str], dtypes: list[str], batches: list[int]) -> Iterator[Case]:
    """All cases; those of attention come before those of msa, which need them."""
    for op in names:
        for shape in shapes:
            for backward in (False, True):
                first = Case(op, shape, dtypes[0], batches[0], backward)
                usual = shape in MODEL
                yield from (replace(first, batch=batch) for batch in (batches if usual else batches[:2]))
                yield from (replace(first, dtype=dtype) for dtype in dtypes[1:] if usual)
                if usual and op == "deform_qkv":
                    yield replace(first, offsets="shared")


def draw_inputs(case: Case, device: torch.device) -> Inputs:
    """Random inputs of the op, the same every time; for the backward pass also gradients of its results."""
    channels, side, heads = SHAPES[case.shape]
    generator = torch.Generator(device).manual_seed(SEED)
    normal = partial(torch.randn, generator=generator, device=device)
    size, pixels = channels // heads, side**2
    per_head = (case.batch, heads, pixels, size)
    if case.op == "attention":
        leaves, results = [normal(per_head) for _ in range(3)], [per_head]
    else:
        maps = normal(case.batch, channels, side, side).contiguous(memory_format=torch.channels_last)
        weight = normal(3 * channels, size, 3, 3) / math.sqrt(9 * size)
        offset = _off_pixels(0.5 * normal(case.batch, 18 * SETS[case.offsets], side, side))
        leaves = [maps, offset, weight, 0.1 * normal(3 * channels)]
        results = [per_head] * 3 if case.op == "deform_qkv" else [(case.batch, pixels, channels)]
    dtype = DTYPES[case.dtype]
    leaves = [leaf if case.arguments == 4 and i == 1 else leaf.to(dtype) for i, leaf in enumerate(leaves)]
    leaves = [leaf.requires_grad_(case.backward) for leaf in leaves]
    return *leaves, *(normal(shape).to(dtype) for shape in results if case.backward)


def _off_pixels(offset: torch.Tensor) -> torch.Tensor:
    """The offsets, kept from whole numbers: there the gradient jumps, and rounding would choose the side."""
    whole = offset.floor()
    return whole + 0.05 + 0.9 * (offset - whole)


def with_pass(function: Callable, case: Case) -> Callable[..., Results]:
    """The call to time: the results alone, or the results and the gradients of all arguments."""

    def forward(*inputs: torch.Tensor) -> Results:
        with torch.no_grad():
            return _as_tuple(function(*inputs))

    def forward_and_backward(*inputs: torch.Tensor) -> Results:
        leaves, gradients = inputs[: case.arguments], inputs[case.arguments :]
        results = _as_tuple(function(*leaves))
        return *(result.detach() for result in results), *torch.autograd.grad(results, leaves, gradients)

    return forward_and_backward if case.backward else forward


def _as_tuple(found: torch.Tensor | Results) -> Results:
    return found if isinstance(found, tuple) else (found,)


def ours(case: Case) -> Callable:
    if case.op == "attention":
        return ops.attention
    return partial(ops.deform_qkv if case.op == "deform_qkv" else ops.deform_attention, heads=case.heads)


def peers_of(case: Case, sdpa: str, on_gpu: bool) -> dict[str, Callable]:
    """The peers by name; `sdpa` is the backend that goes with torchvision in msa."""
    if case.op == "attention":
        backends = peers.SDPA if on_gpu else ("flash", "math")
        return {"eager": peers.attention, **{f"sdpa_{name}": partial(peers.sdpa, name) for name in backends}}
    eager, torchvision = (partial(f, heads=case.heads) for f in (peers.deform_qkv, peers.torchvision_qkv))
    if case.op == "msa":
        chained = {"eager": _chain(eager, peers.attention)}
        return {**chained, "torchvision+sdpa": _chain(torchvision, partial(peers.sdpa, sdpa))} if sdpa else chained
    found = {"eager": eager, "torchvision": torchvision}
    if on_gpu and case.dtype == "fp16":
        found["torchvision_fp16"] = partial(peers.torchvision_same_dtype, heads=case.heads)
    return found


def _chain(project: Callable, attend: Callable) -> Callable:
    """Projection, attention, and the concatenation of the heads: [B, H*W, C]."""
    return lambda *inputs: attend(*project(*inputs)).transpose(1, 2).flatten(2)


def fastest_sdpa(rows: list[dict], case: Case) -> str:
    """The backend that was fastest for the attention of this case, "" where none was timed."""
    wanted = replace(case, op="attention").labels().items()
    timed = [row for row in rows if wanted <= row.items() and row["implementation"].startswith("sdpa_")]
    best = min(timed, key=lambda row: row["milliseconds"], default={"implementation": "sdpa_"})
    return best["implementation"].removeprefix("sdpa_")


def run(comparison: Comparison, wanted: list[Case], with_compile: bool) -> None:
    """Times all cases. Compiled is what comes first for a shape: each compilation takes seconds."""
    first, on_gpu = wanted[0], comparison.device.type == "cuda"
    for case in wanted:
        functions = peers_of(case, fastest_sdpa(comparison.rows, case), on_gpu)
        is_first = (case.dtype, case.batch, case.offsets) == (first.dtype, first.batch, first.offsets)
        if with_compile and is_first and case.op != "msa":
            torch._dynamo.reset()
            functions["compile"] = torch.compile(functions["eager"], fullgraph=True, dynamic=False)
        calls = {name: with_pass(function, case) for name, function in ({"ours": ours(case)} | functions).items()}
        comparison.time(case, draw_inputs(case, comparison.device), calls)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--ops", nargs="+", choices=OPS, default=OPS, metavar="OP", help=f"of {', '.join(OPS)}; msa times attention too"
    )
    add("--shapes", nargs="+", choices=SHAPES, metavar="CxS", help=f"of {', '.join(SHAPES)}; on a CPU the first three")
    add("--dtypes", nargs="+", choices=DTYPES, help="default: fp32 bf16, on a GPU bf16 fp16 fp32")
    add("--batches", nargs="+", type=int, help="default: 4 1, on a GPU 32 64 37 1")
    add("--no-compile", action="store_true", help="leave torch.compile out")
    found = parse(parser, "attention_block", arguments, cpu=0.25, gpu=0.03)
    on_gpu = found.device == "cuda"
    found.shapes = found.shapes or (list(SHAPES) if on_gpu else MODEL)
    found.dtypes = found.dtypes or (["bf16", "fp16", "fp32"] if on_gpu else ["fp32", "bf16"])
    found.batches = found.batches or ([32, 64, 37, 1] if on_gpu else [4, 1])
    found.ops = [op for op in OPS if op in found.ops or (op == "attention" and "msa" in found.ops)]
    return found


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    device = torch.device(chosen.device)
    comparison = Comparison(device, chosen, may_fail=lambda name: name.startswith(("compile", "sdpa", "torchvision")))
    seconds = max(chosen.seconds, 0.01)
    comparison.rates = {name: product_rate(device, DTYPES[name], seconds) for name in chosen.dtypes}
    run(comparison, list(cases(chosen.ops, chosen.shapes, chosen.dtypes, chosen.batches)), not chosen.no_compile)
    finish("attention_block", chosen, arguments, comparison.summary(), comparison.rows)
    return 1 if comparison.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
