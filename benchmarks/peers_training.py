"""What one would write or pick in place of our training: plain ops in our network, and HRNet fed by a DataLoader.

The ops take the arguments of `iact.ops` and compute what those compute, under autocast too."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import peers
import peers_block
import torch
import torch.nn.functional as F
from bench_inference import HRNet
from machine import ROOT
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

sys.path.insert(0, str(ROOT))

from iact import heatmaps as codec  # noqa: E402
from iact.geometry import CROP_MARGIN, landmark_box, to_heatmap, transform_points  # noqa: E402
from iact.ops.attention import attention, seen_dtype  # noqa: E402
from iact.ops.heatmap import reference as heatmap_reference  # noqa: E402
from iact.ops.reference import deform as reference  # noqa: E402

SIGMA = 1.5  # heatmap px
STRIDE = 4
MEAN, SPREAD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])  # of ImageNet, for RGB in 0..1
RATE = 1e-3
SEED = 5


def plain_attention(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, *, heads: int) -> Tensor:
    """`deform_attention` by `grid_sample`, batched products and a softmax between two of them."""
    return _attend(peers_block.deform_qkv, peers_block.attention, x, offset, weight, bias, heads)


def torchvision_attention(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, *, heads: int) -> Tensor:
    """`deform_attention` by torchvision's operator, three times, and PyTorch's own attention."""
    return _attend(peers_block.torchvision_qkv, F.scaled_dot_product_attention, x, offset, weight, bias, heads)


def _attend(project: Callable, attend: Callable, x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, heads: int):
    x, weight, bias = (t.to(seen_dtype(t)).contiguous() for t in (x, weight, bias))
    return attend(*project(x, offset.float().contiguous(), weight, bias, heads)).transpose(1, 2).flatten(2)


class ReferenceProjection(torch.autograd.Function):
    """`deform_qkv` as iact computes it where its extension was not built."""

    @staticmethod
    def forward(ctx, x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, offset, weight, bias)
        ctx.heads = heads
        return reference.deform_qkv(x, offset, weight, bias, heads)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *reference.deform_qkv_backward(*grads, *ctx.saved_tensors, ctx.heads), None


class ReferenceLoss(torch.autograd.Function):
    """`heatmap_loss` as iact computes it where its extension was not built: the forward pass gives the gradient."""

    @staticmethod
    def forward(ctx, pred: Tensor, *rest) -> Tensor:
        loss, slope = heatmap_reference(pred, *rest)
        ctx.save_for_backward(slope)
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (ctx.saved_tensors[0] * grad).to(ctx.saved_tensors[0].dtype), *[None] * 6


def reference_attention(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, *, heads: int) -> Tensor:
    """`deform_attention` by the reference of the projection; attention on a CPU is PyTorch's in any case."""
    return _attend(ReferenceProjection.apply, attention, x, offset, weight, bias, heads)


def reference_loss(
    pred: Tensor, landmarks: Tensor, visible: None, *, kind: str, sigma: float, seed: Tensor, map_factor: float
) -> Tensor:
    """`heatmap_loss` by its reference."""
    return ReferenceLoss.apply(pred, landmarks, visible, seed, kind == "smooth_wing", sigma, map_factor)


def heatmap_loss(
    pred: Tensor, landmarks: Tensor, visible: None, *, kind: str, sigma: float, seed: Tensor, map_factor: float
) -> Tensor:
    """Target, weight map and Smooth Wing loss, one after the other: the default recipe's, which sees all landmarks."""
    if kind != "smooth_wing" or visible is not None:
        raise ValueError(f"expected smooth_wing on all landmarks, got {kind} on {visible}")
    target = codec.encode_heatmaps(landmarks, *pred.shape[-2:], sigma, seed)
    weight = codec.dilated_weight(target, map_factor)
    return (weight * peers.smooth_wing(pred, target)).mean()


class LandmarkFiles(Dataset):
    """Faces in picture files, decoded and changed at random each time: RGB float32 [3, S, S], normalised, and target
    heatmaps [K, S/4, S/4].

    The changes are HRNet's (Sun et al. 2019), rotation by at most 30 degrees, scale 0.75 to 1.25 and flips, plus gain
    and contrast of each colour; so are the targets, Gaussians of sigma 1.5 px on the nearest pixel."""

    def __init__(self, paths: Sequence[Path], landmarks: np.ndarray, mirror: Sequence[int], size: int):
        """`landmarks` [N, K, 2] in px of the pictures; `mirror` [K] is the layout's; `size` is S."""
        self.paths, self.landmarks, self.size = [str(path) for path in paths], landmarks, size
        self.mirror = np.array(mirror)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng(int(torch.randint(1 << 62, ())))  # PyTorch seeds each worker's own
        picture = cv2.cvtColor(cv2.imread(self.paths[index]), cv2.COLOR_BGR2RGB)
        matrix = self._random_map(self.landmarks[index], random)
        picture = cv2.warpAffine(picture, matrix, (self.size, self.size), flags=cv2.INTER_LINEAR)
        points = transform_points(self.landmarks[index], matrix)
        if random.random() < 0.5:
            picture, points = picture[:, ::-1], (points * [-1, 1] + [self.size - 1, 0])[self.mirror]
        picture = np.ascontiguousarray(_jitter(picture, random).transpose(2, 0, 1))
        return torch.from_numpy(picture), torch.from_numpy(targets(points, self.size))

    def _random_map(self, landmarks: np.ndarray, random: np.random.Generator) -> np.ndarray:
        x0, y0, x1, y1 = landmark_box(landmarks)
        centre = ((x0 + x1) / 2, (y0 + y1) / 2)
        side = CROP_MARGIN * max(x1 - x0, y1 - y0) * random.uniform(0.75, 1.25)
        angle = random.uniform(-30, 30) * (random.random() < 0.6)
        matrix = cv2.getRotationMatrix2D(centre, angle, self.size / side)
        matrix[:, 2] += (self.size - 1) / 2 - np.array(centre)
        return matrix


def _jitter(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Gain and contrast changed at random, then normalised: float32 [S, S, 3]."""
    picture = picture.astype(np.float32) * (np.float32(1 / 255) * random.uniform(0.8, 1.2, 3).astype(np.float32))
    middle = picture.mean()
    picture = (picture - middle) * np.float32(random.uniform(0.8, 1.2)) + middle
    return (picture.clip(0, 1) - MEAN) / SPREAD


def targets(points: np.ndarray, size: int) -> np.ndarray:
    """Heatmaps float32 [K, S/4, S/4] of points [K, 2] in px of a picture S px wide; zeros for a point outside."""
    pixels = np.arange(size // STRIDE, dtype=np.float32)
    distance = pixels - np.rint(to_heatmap(points, STRIDE)).astype(np.float32)[..., None]  # [K, 2, S/4]
    bells = np.exp(distance**2 * np.float32(-0.5 / SIGMA**2)) * (np.abs(distance) <= 3 * SIGMA)
    return bells[:, 1, :, None] * bells[:, 0, None, :]


class Draws(Sampler):
    """Indices of faces drawn at random, as many as `count` says when they are asked for."""

    def __init__(self, faces: int):
        self.faces, self.count = faces, sys.maxsize

    def __iter__(self) -> Iterator[int]:
        while self.count > 0:
            self.count -= 1
            yield int(torch.randint(self.faces, ()))


class HRNetTraining:
    """timm's HRNet-W18 with a landmark head, a DataLoader with worker processes, MSE on heatmaps, AdamW.

    `waited` is how many seconds the host has waited for batches. Nothing of the loading is done by the GPU."""

    augmented, graphed = 0.0, False

    def __init__(self, files: LandmarkFiles, batch: int, dtype: torch.dtype | None, device: torch.device, workers: int):
        torch.manual_seed(SEED)
        self.dtype, self.device, self.batch, self.waited = dtype, device, batch, 0.0
        network = HRNet(files.landmarks.shape[1]).train()
        self.network = network.to(device, memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, fused=True)
        _one_thread()  # here too: OpenCV waits for ever where it had threads before a process was forked
        self.draws, on_gpu = Draws(len(files)), device.type == "cuda"
        self.loader = DataLoader(
            files,
            batch,
            sampler=self.draws,
            num_workers=workers,
            worker_init_fn=_one_thread,
            pin_memory=on_gpu,
            persistent_workers=workers > 0,
        )
        self.endless = iter(self.loader) if on_gpu else None

    def train(self, steps: int) -> float:
        """Makes that many steps; their mean loss."""
        total = torch.zeros((), device=self.device)
        batches = self._batches(steps)
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            for _ in range(steps):
                start = time.perf_counter()
                pictures, heatmaps = next(batches)
                self.waited += time.perf_counter() - start
                total += self._step(pictures, heatmaps)
        return float(total) / steps

    def _batches(self, steps: int) -> Iterator[list[Tensor]]:
        """On a GPU, where nobody else is being timed, the workers go on all the time; on a CPU they are given only the
        work of these steps, or they would do it in the time of others."""
        if self.endless is not None:
            return self.endless
        self.draws.count = steps * self.batch
        return iter(self.loader)

    def _step(self, pictures: Tensor, heatmaps: Tensor) -> Tensor:
        pictures, heatmaps = (tensor.to(self.device, non_blocking=True) for tensor in (pictures, heatmaps))
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext():
            loss = F.mse_loss(self.network(pictures).float(), heatmaps)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.detach()


def _one_thread(worker: int = 0) -> None:
    """For OpenCV, in each worker process as PyTorch has it there: there is one for each core."""
    cv2.setNumThreads(1)


def count_cores() -> int:
    """The cores that this process may use: so many workers the DataLoader gets."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
