"""What each study compares: variants of the training, one change at a time, and networks other than ours."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from iact.config import PAPER, TrainConfig
from iact.data.augment import Augmentation
from iact.errors import InputError
from iact.heatmaps import DecodeMethod
from iact.layouts import LAYOUTS
from iact.model import SIZES, ModelConfig
from iact.model.iact import Head
from iact.training.run import Build, build_model

StudyName = Literal["recipe", "table5", "table6", "figure4"]
OURS = "iact"


@dataclass(frozen=True)
class Measuring:
    """How landmarks are read from heatmaps."""

    decoding: DecodeMethod = "window"
    flip_test: bool = False


@dataclass(frozen=True)
class Variant:
    """One way of training: `changes` are fields of TrainConfig, `network` is ours or a backbone of timm's.

    `against` names the variant that it is compared with, if any; `also` are other ways, by name, of measuring the same
    weights; `from_drawn` starts from weights that were trained on drawn faces."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    network: str = OURS
    against: str = ""
    from_drawn: bool = False
    also: Mapping[str, Measuring] = field(default_factory=dict)


class Backbone(nn.Module):
    """A network of timm's with our head on its maps at 1/4, 1/8, 1/16 and 1/32, for pictures as `config` wants them:
    [B, 3, S, S] to heatmaps [B, K, S / 4, S / 4]."""

    def __init__(self, name: str, config: ModelConfig):
        import timm

        super().__init__()
        self.config = config
        place = {"feature_location": ""} if name.startswith("hrnet") else {}  # the maps themselves, not widened ones
        self.features = timm.create_model(name, pretrained=False, features_only=True, out_indices=(1, 2, 3, 4), **place)
        first = self.features.feature_info.channels()[0]  # the others are 2, 4 and 8 times as wide, as ours
        self.head = Head(replace(config, channels=first))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        first, *rest = self.features(pictures)
        return self.head(first, rest)


def builder(network: str) -> Build:
    """What builds that network, from the settings of a run and the number of landmarks."""
    return build_model if network == OURS else partial(_build_backbone, network)


def _build_backbone(name: str, config: TrainConfig, num_landmarks: int) -> Backbone:
    torch.manual_seed(config.seed)
    return Backbone(name, replace(SIZES[config.model], num_landmarks=num_landmarks))


def choose(study: StudyName, only: tuple[str, ...], data: str) -> list[Variant]:
    """The variants of a study, or those of them in `only` and the ones that these are compared with.

    InputError for an unknown name, and where a network needs timm, which is not installed."""
    variants = [v for v in STUDIES[study] if not v.from_drawn or data in LAYOUTS]  # others have no drawn faces beside
    names = [variant.name for variant in variants]
    for name in only:
        if name not in names:
            raise InputError(f"only: expected some of {', '.join(names)}, got {name!r}")
    wanted = {*only, *(variant.against for variant in variants if variant.name in only)} if only else {*names}
    chosen = [variant for variant in variants if variant.name in wanted]
    foreign = [variant.network for variant in chosen if variant.network != OURS]
    if foreign and not find_spec("timm"):
        own = " ".join(variant.name for variant in variants if variant.network == OURS)
        raise InputError(f"{study}: {foreign[0]} comes from timm, which is not installed; without it: --only {own}")
    return chosen


def _one(**change: Any) -> Variant:
    (name, value), *_ = change.items()
    return Variant(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}", change, against="default")


def _strength(name: str, factor: float) -> Variant:
    """All strengths and probabilities of the augmentation times `factor`; mirroring is either as it is, or off."""
    strengths = {key: round(factor * value, 6) for key, value in asdict(Augmentation()).items() if key != "flip"}
    changed = Augmentation(**strengths, **({} if factor else {"flip": 0.0}))
    return Variant(f"augmentation={name}", {"augmentation": changed}, against="default")


def _paper() -> dict[str, Any]:
    """In what the paper's recipe differs from the default, but for the network and the epochs."""
    names = {entry.name for entry in fields(TrainConfig)} - {"model", "epochs"}
    return {name: getattr(PAPER, name) for name in names if getattr(PAPER, name) != getattr(TrainConfig(), name)}


def _losses(network: str) -> tuple[Variant, Variant]:
    """The two losses alone, with no weight map and no loss on coordinates, as the paper compares them."""
    plain, own = {"map_factor": 0.0, "coordinate_weight": 0.0}, f"{network}/smooth_wing"
    adaptive = {**plain, "loss": "adaptive_wing"}
    return Variant(own, plain, network), Variant(f"{network}/adaptive_wing", adaptive, network, against=own)


STUDIES: dict[StudyName, tuple[Variant, ...]] = {
    "recipe": (
        Variant(
            "default",
            also={
                "decoding=argmax": Measuring("argmax"),
                "decoding=topk": Measuring("topk"),
                "flip_test": Measuring(flip_test=True),
            },
        ),
        _one(loss="adaptive_wing"),
        _one(loss="mse"),
        _one(sigma=1.0),
        _one(sigma=2.0),
        _one(heatmap_stride=2),
        _one(offsets="shared"),
        _one(ema_faces=0.0),
        _one(ema_faces=10000.0),
        _strength("none", 0.0),
        _strength("half", 0.5),
        _strength("stronger", 1.5),
        Variant("augmentation=shapes", {"augmentation": Augmentation(shape=0.5)}, against="default"),
        _one(schedule="step"),
        _one(map_factor=0.0),
        _one(coordinate_weight=0.0),
        Variant("start_from=drawn", against="default", from_drawn=True),
        Variant("recipe=paper", _paper(), against="default"),
    ),
    "table5": (Variant("default"), _one(block="vit"), _one(block="detr")),
    "table6": (Variant("default"), _one(feature_attention=False), _one(channel_attention=False)),
    "figure4": (*_losses(OURS), *_losses("hrnet_w18"), *_losses("resnet50")),
}
