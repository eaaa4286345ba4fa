"""What a training run is made of. The fields are the command line of `scripts/train.py`; a run folder keeps them."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from iact.data.augment import Augmentation
from iact.heatmaps import SIGMA
from iact.losses import CoordinateLoss, HeatmapLoss

DataName = Literal["synthetic", "300w", "wflw", "cofw", "points"]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]


def default_epochs(data: DataName) -> int:
    """Enough for the smallest model in minutes on drawn faces, in three quarters of an hour on 2,000 real ones."""
    return 6 if data == "synthetic" else 50


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run."""

    data: DataName = "synthetic"
    """Faces drawn by the program, or the data set below the root; "points" is one of your own."""
    root: OptionalPath = None
    """Folder of the data set as it was downloaded; for "points", of layout.json and a .csv for each split."""
    split: str = "train"
    """Part of the data set to train on."""
    hold_out: float = 0.05
    """Share of the training faces kept aside to measure every epoch and to choose the best one by; 0 for none."""
    synthetic_faces: int = 2000
    """How many faces are drawn when the data is synthetic."""
    synthetic_layout: Literal["300w", "wflw", "cofw"] = "300w"
    """Landmarks of drawn faces: those of 300W (68), WFLW (98) or COFW (29)."""

    model: Literal["iact", "iact_s", "iact_t"] = "iact_t"
    """The paper's size, a quarter of its work, or one for machines with no GPU (128 px input)."""
    block: Literal["spatial", "vit", "detr"] = "spatial"
    """Attention: the paper's, or with linear projections as in ViT or in DETR (Table 5)."""
    offsets: Literal["separate", "shared"] = "separate"
    """A set of sampling offsets for each of Q, K and V, or one for all."""
    heatmap_stride: Literal[1, 2, 4] = 4
    """Input px of a heatmap px: the paper's 4, or finer heatmaps."""
    feature_attention: bool = True
    """Exchange features between the branches (Table 6)."""
    channel_attention: bool = True
    """Weigh the channels of what was exchanged."""
    start_from: OptionalPath = None
    """Weights to start from: a file, a run folder, or a name such as iact-300w; other landmarks get a new head."""

    epochs: int | None = None
    """Passes over the training faces; by default 6 over drawn faces, 50 over real ones, or those of a run resumed."""
    batch_size: int = 16
    """Faces of a step, whatever the number of GPUs: they share them."""
    accumulate: int = 1
    """Parts that each rank computes its share of a batch in, one after the other, where memory is short."""
    sync_batch_norm: bool = False
    """Normalise over the faces of all ranks rather than over each rank's own."""
    learning_rate: float = 2e-3
    schedule: Literal["cosine", "step"] = "cosine"
    """Cosine to 1 % after a warm-up, or the paper's steps: x0.2 after 1/3 and 2/3 of the epochs, no warm-up."""
    warmup_steps: int = 200
    weight_decay: float = 0.03
    clip: float = 2.0
    """Largest norm of the gradient; 0 leaves it alone."""
    ema_faces: float = 3000.0
    """Half-life, in faces, of the averaged weights that are evaluated and saved; 0 for none."""

    loss: HeatmapLoss = "smooth_wing"
    sigma: float = SIGMA
    map_factor: float = 10.0
    """Extra weight of the pixels near a landmark in both wing losses (Adaptive Wing's weight map); 0 for none."""
    coordinates: CoordinateLoss = "smooth_l1"
    """Loss on the coordinates that the heatmaps decode to."""
    coordinate_weight: float = 0.2
    """Its weight, in heatmap px; 0 for none."""
    augmentation: Augmentation = field(default_factory=Augmentation)

    out: OptionalPath = None
    """Run folder; by default runs/<data>-<model>, numbered when it is taken."""
    resume: bool = False
    cache: OptionalPath = None
    """Folder in which cut faces are kept for the next run; by default ~/.cache/iact."""
    device: str = "auto"
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Precision of the network. "auto": bf16 where the device computes in it, else off."""
    graph: bool = True
    """On CUDA, run a step as CUDA graphs."""
    compile: bool = False
    """Compile the network with torch.compile."""
    recompute: bool = False
    """Compute what the Transformer blocks forget again for the gradient: less memory, more time."""
    seed: int = 0
    """Of weights, order, augmentation and rounding; which faces are drawn or held out does not depend on it."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to PyTorch."""

    def to_json(self) -> dict[str, Any]:
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


PAPER = TrainConfig(
    model="iact",
    epochs=120,
    learning_rate=5e-4,
    schedule="step",
    warmup_steps=0,
    weight_decay=0.0,
    clip=0.0,
    ema_faces=0.0,
    map_factor=0.0,
    coordinate_weight=0.0,
    augmentation=Augmentation(
        rotation=10.7, scale=0.1, shift=0.0, aspect=0.0, mask=0.3, colour=0.3, grey=0.0, blur=0.0, noise=0.0
    ),
)
"""The paper's letter (section 3.3), its rotation of at most 30 degrees included; what it leaves open (batch size, other
strengths) is as in the default recipe."""

RECIPES = {"default": TrainConfig(), "paper": PAPER}
