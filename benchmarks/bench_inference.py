"""Times whole networks: iact and its smaller sizes beside HRNet-W18 with a landmark head, and ResNet-50 (timm's).

python benchmarks/bench_inference.py --device cpu --out benchmarks/results

A round calls every network once, in each of its forms, so that a disturbance hits all alike; the median over the rounds
and the spread between the quartiles are given. --seconds is for all rounds of a precision and batch; there are at least
five. Forms: contiguous, channels_last, and channels_last with batch normalisation folded into the convolutions; iact is
folded as the Predictor folds it. Each form is compared with the first before it is timed. Weights are random, and
iact's sampling offsets of half a pixel. A picture is of the size that the network takes; on a GPU the time ends when
the GPU is done, with no CUDA graph."""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from comparison import finish, parse
from machine import ROOT
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

sys.path.insert(0, str(ROOT))

import iact  # noqa: E402
from iact.cost import count_gmac, count_parameters  # noqa: E402
from iact.model import fold  # noqa: E402

LANDMARKS = 98
IACT = ("iact", "iact_s", "iact_t")
MODELS = (*IACT, "hrnet_w18", "resnet50")
PRECISIONS = ("fp32", "bf16")
FORMS = ("contiguous", "channels_last", "folded")
LEAST_ROUNDS = 5
ALIKE = 1e-3  # relative L2 of a form's result in float32
SEED = 5


class HRNet(nn.Module):
    """HRNet-W18 as a landmark network (Sun et al. 2019): the four maps at the size of the first, two 1x1 convolutions;
    pictures [B, 3, S, S] to heatmaps [B, K, S / 4, S / 4]."""

    def __init__(self, landmarks: int):
        super().__init__()
        import timm

        self.features = timm.create_model("hrnet_w18", pretrained=False, features_only=True, feature_location="")
        width = sum(self.features.feature_info.channels()[-4:])
        first = nn.Conv2d(width, width, 1)
        self.head = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Conv2d(width, landmarks, 1))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        first, *rest = self.features(pictures)[-4:]
        size = first.shape[-2:]
        return self.head(torch.cat([first, *(F.interpolate(m, size, mode="bilinear") for m in rest)], dim=1))


def build(name: str) -> tuple[nn.Module, int]:
    """The network for inference and the side of its input in px; ResNet-50 gives 98 coordinates, no heatmaps."""
    torch.manual_seed(SEED)
    if name == "hrnet_w18":
        return HRNet(LANDMARKS).eval(), 256
    if name == "resnet50":
        import timm

        return timm.create_model(name, pretrained=False, num_classes=2 * LANDMARKS).eval(), 256
    model = iact.create_model(name, num_landmarks=LANDMARKS).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("offset.bias"):
            nn.init.normal_(parameter, std=0.5)
    return model, model.config.input_size


def folded(model: nn.Module) -> nn.Module:
    """A copy with each batch normalisation in the convolution before it; both have to be neighbours, in order."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        children = list(module.named_children())
        for (before, conv), (after, norm) in zip(children, children[1:], strict=False):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, before, fuse_conv_bn_eval(conv, norm))
                rest = [layer for name, layer in norm.named_children()]  # timm's holds the activation too
                setattr(module, after, nn.Sequential(*rest))
    return model


def forms(name: str, device: torch.device) -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Each form of the network with one picture for it, [1, 3, S, S]."""
    model, side = build(name)
    model = model.to(device)
    plain = torch.rand(1, 3, side, side, device=device)
    last = plain.contiguous(memory_format=torch.channels_last)
    light = fold(model) if name in IACT else folded(model)
    models = (
        copy.deepcopy(model),
        model.to(memory_format=torch.channels_last),
        light.to(memory_format=torch.channels_last),
    )
    return {form: (network, picture) for form, network, picture in zip(FORMS, models, (plain, last, last), strict=True)}


@torch.no_grad()
def check(name: str, found: dict[str, tuple[nn.Module, torch.Tensor]]) -> None:
    """Raises ValueError where a form of a network computes something else than the first, in whole float32: a GPU's
    convolutions round to TF32 by default, differently for each form."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        first, *others = (network(picture) for network, picture in found.values())
    for form, result in zip(FORMS[1:], others, strict=True):
        error = ((result - first).norm() / first.norm()).item()
        if not error <= ALIKE:
            raise ValueError(f"{name}, {form}: differs from {FORMS[0]} by {error:.1e} (relative L2)")


def describe(model: nn.Module, picture: torch.Tensor) -> dict[str, float | int]:
    """Size of the input, parameters in millions, and multiply-accumulates of one picture in 10^9."""
    work, parameters = count_gmac(model, picture), count_parameters(model)
    return {"input": picture.shape[-1], "parameters_millions": round(parameters, 2), "gmac": round(work, 2)}


def call_of(network: nn.Module, picture: torch.Tensor, batch: int, precision: str) -> Callable[[], None]:
    """One inference, until its result is there."""
    layout = torch.contiguous_format if picture.is_contiguous() else torch.channels_last
    pictures = picture.expand(batch, -1, -1, -1).contiguous(memory_format=layout)
    device = picture.device.type

    def call() -> None:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext():
            network(pictures)
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def interleaved(calls: dict, seconds: float, least_rounds: int, rest: float = 0.0) -> dict[object, list[float]]:
    """Milliseconds of each call in each round, for about that many seconds after a round of warm-up.

    `rest`: seconds of sleep before each call, in which waiting threads of the one before go to sleep too, and a call
    that wakes its own and is not timed."""
    for call in calls.values():
        call()
    found: dict[object, list[float]] = {key: [] for key in calls}
    begin, rounds = time.perf_counter(), 0
    while rounds < least_rounds or time.perf_counter() - begin < seconds:
        for key, call in calls.items():
            if rest:
                time.sleep(rest)
                call()
            start = time.perf_counter()
            call()
            found[key].append((time.perf_counter() - start) * 1e3)
        rounds += 1
    return found


def rows_of(chosen: argparse.Namespace) -> Iterator[dict]:
    """One row for each network, form, precision and batch."""
    device = torch.device(chosen.device)
    networks, sizes = {}, {}
    for name in chosen.models:
        networks[name] = forms(name, device)
        check(name, networks[name])
        sizes[name] = describe(*networks[name]["contiguous"])
    for precision in chosen.precisions:
        for batch in chosen.batches:
            calls = {
                (name, form): call_of(*pair, batch, precision)
                for name, found in networks.items()
                for form, pair in found.items()
            }
            times = interleaved(calls, chosen.seconds, 1 if chosen.quick else LEAST_ROUNDS)
            for (name, form), found in times.items():
                case = {"model": name, "form": form, "dtype": precision, "batch": batch}
                yield case | summary(found) | sizes[name]


def summary(milliseconds: list[float]) -> dict[str, float | int]:
    """The median, and what lies between the quartiles."""
    quartiles = statistics.quantiles(milliseconds, method="inclusive") if len(milliseconds) > 1 else [0.0, 0.0, 0.0]
    found = {"milliseconds": statistics.median(milliseconds), "spread": quartiles[2] - quartiles[0]}
    return {name: round(value, 3) for name, value in found.items()} | {"rounds": len(milliseconds)}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL", help=f"of {', '.join(MODELS)}")
    add("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="bf16 is autocast (default: both)")
    add("--batches", nargs="+", type=int, default=[1, 8], help="default: 1 8")
    return parse(parser, "inference", arguments, cpu=30.0, gpu=10.0)


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    torch.backends.cudnn.benchmark = True
    left_out = {} if find_spec("timm") else {"timm is not installed": sum(name not in IACT for name in chosen.models)}
    chosen.models = [name for name in chosen.models if name in IACT or not left_out]
    rows = []
    for row in rows_of(chosen):
        rows.append(row)
        name = f"{row['model']:<10} {row['form']:<14} {row['dtype']} {row['batch']:>3}"
        print(f"{name} {row['milliseconds']:>10.2f} ms +- {row['spread']:.2f}", flush=True)
    finish("inference", chosen, arguments, {"left_out": left_out}, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
