"""The benchmark of training: what it trains, replaces, loads and prints; never how fast anything is."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from small_training import MINIATURE

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_training as bench  # noqa: E402
import ours_training as ours  # noqa: E402
import peers_training as peers  # noqa: E402
import tables  # noqa: E402

from iact import ops  # noqa: E402
from iact.config import TrainConfig  # noqa: E402
from iact.model import SIZES, transformer  # noqa: E402
from iact.training import step as training_step  # noqa: E402

CPU = torch.device("cpu")
MIRROR = (1, 0, 2, 4, 3)  # of landmarks on the left, right and in the middle, and of two that make the box large
POINTS = np.array([[50.0, 50.0], [85.0, 56.0], [68.0, 90.0], [14.0, 14.0], [114.0, 114.0]])


class TinyNetwork(torch.nn.Conv2d):
    """In place of HRNet: pictures to heatmaps of a quarter of their size."""

    def __init__(self, landmarks: int):
        super().__init__(3, landmarks, 4, stride=4)


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """Small networks by the usual names, and products of 10^9 FLOP/s."""
    monkeypatch.setitem(SIZES, "iact_t", MINIATURE)
    monkeypatch.setattr(peers, "HRNet", TinyNetwork)
    monkeypatch.setattr(bench, "HRNet", TinyNetwork)
    monkeypatch.setattr(bench, "product_rate", lambda device, dtype, seconds: 1e9)


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    return TrainConfig(synthetic_faces=6, batch_size=4, device="cpu", amp="off", cache=tmp_path)


@pytest.fixture
def files(tmp_path) -> peers.LandmarkFiles:
    """Two pictures with a spot of red, green and blue on the first three landmarks."""
    landmarks = np.stack([POINTS, POINTS + [12, -8]])
    for i, points in enumerate(landmarks):
        picture = np.zeros((128, 160, 3), np.uint8)
        for channel, (x, y) in enumerate(points[:3].astype(int)):
            picture[y - 3 : y + 4, x - 3 : x + 4, channel] = 255
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture[:, :, ::-1])
    return peers.LandmarkFiles([tmp_path / f"{i}.png" for i in range(2)], landmarks, MIRROR, 64)


def spots(picture: torch.Tensor) -> np.ndarray:
    """Where the three spots of a normalised picture are, [3, 2] in px."""
    colours = picture.permute(1, 2, 0).numpy() * peers.SPREAD + peers.MEAN
    found = []
    for channel in range(3):
        others = np.delete(colours, channel, axis=2).max(2)
        weight = (colours[..., channel] - others).clip(0.2, None) - 0.2
        y, x = np.mgrid[: weight.shape[0], : weight.shape[1]]
        found.append([(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()])
    return np.array(found)


def test_targets_of_a_loader_lie_on_the_landmarks_of_its_pictures(files):
    torch.manual_seed(0)
    flips, places = [], []
    for i in range(24):
        picture, target = files[i % 2]
        assert picture.shape == (3, 64, 64) and target.shape == (5, 16, 16)
        assert picture.dtype == target.dtype == torch.float32
        seen = spots(picture)
        flips.append(seen[1, 0] < seen[0, 0])  # then the left landmark is where the right one's green spot has come
        expected = seen[list(MIRROR[:3])] if flips[-1] else seen
        peak = target[:3].flatten(1).argmax(1)
        found = torch.stack([peak % 16, peak // 16], dim=-1).numpy() * 4 + 1.5  # centres of heatmap px, in input px
        assert np.abs(found - expected).max() < 3  # half a heatmap px, and what the spots' edges add
        places.append(seen)
    assert 4 < sum(flips) < 20 and np.std(places, axis=0).min() > 1


def test_targets_are_gaussians_on_the_nearest_pixel():
    maps = peers.targets(np.array([[21.4, 33.6], [-40.0, 10.0]]), 64)  # the first is (4.975, 8.025) in heatmap px
    assert maps.shape == (2, 16, 16) and maps.dtype == np.float32
    assert maps[0, 8, 5] == 1 and maps[0, 8, 7] == pytest.approx(np.exp(-2 / peers.SIGMA**2)) and maps[0, 8, 10] == 0
    assert not maps[1].any()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["without_kernels", "references", "torchvision"])
def test_attention_of_the_peers_is_ours(name, dtype):
    if name == "torchvision":
        pytest.importorskip("torchvision", reason="torchvision, of the extra 'bench', is not installed")
    torch.manual_seed(0)
    shapes = ((2, 8, 5, 5), (2, 54, 5, 5), (24, 4, 3, 3), (24,))
    inputs = [
        (scale * torch.randn(shape)).requires_grad_() for shape, scale in zip(shapes, (1, 1, 0.2, 1), strict=True)
    ]
    results = []
    for function in (ops.deform_attention, ours.VARIANTS[name].attention):
        x, *rest = inputs
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            result = function(x.contiguous(memory_format=torch.channels_last), *rest, heads=2)
        results.append([result, *torch.autograd.grad(result.float().square().sum(), inputs)])
    for expected, found in zip(*results, strict=True):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        error = (found.float() - expected.float()).norm() / expected.float().norm()
        assert error < (1e-4 if dtype is None else 2e-2)


def test_loss_of_the_peers_is_ours():
    torch.manual_seed(0)
    pred = (0.3 * torch.randn(2, 3, 16, 16)).requires_grad_()
    centres = torch.randint(16, (2, 3, 2)).float()
    settings = {"kind": "smooth_wing", "sigma": 1.5, "seed": torch.tensor(0), "map_factor": 10.0}
    functions = (ops.heatmap_loss, peers.heatmap_loss, peers.reference_loss)
    losses = [function(pred, centres, None, **settings) for function in functions]
    expected, *found = ((loss, *torch.autograd.grad(loss, pred)) for loss in losses)
    torch.testing.assert_close(found, [expected] * 2, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="expected smooth_wing on all landmarks, got mse"):
        peers.heatmap_loss(pred, centres, None, **settings | {"kind": "mse"})


def test_every_way_to_train_computes_the_same(config):
    names = {*ours.VARIANTS} - {"torchvision", "compile", "without_graph"}
    losses = [ours.Ours(name, config).train(2) for name in names]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-4) and losses[0] > 0


def test_ops_are_replaced_while_one_trains_and_then_put_back(config, monkeypatch):
    called = []

    def noting(name, function):
        return lambda *tensors, **settings: (called.append(name), function(*tensors, **settings))[1]

    variant = ours.Variant({}, noting("attention", ops.deform_attention), noting("loss", ops.heatmap_loss))
    monkeypatch.setitem(ours.VARIANTS, "ours", variant)
    augment, contender = training_step.augment, ours.Ours("ours", config)
    contender.train(2)
    blocks = sum(isinstance(module, transformer.SpatialAttention) for module in contender.run.model.modules())
    assert called == ([*["attention"] * blocks, "loss"] * 2) and blocks == 6
    assert transformer.deform_attention is ops.deform_attention and training_step.augment is augment
    assert ops.heatmap_loss.__name__ == "heatmap_loss"
    assert contender.augmented > 0 and contender.waited > 0 and not contender.graphed


def test_a_streamed_run_holds_no_crops_on_the_device(config):
    assert ours.Ours("ours", config).run.feed.resident
    assert not ours.Ours("without_device_cache", config).run.feed.resident


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_on_a_cpu_prepares_what_its_own_turn_needs(files, workers):
    contender = peers.HRNetTraining(files, 4, None, CPU, workers)
    losses = [contender.train(3) for _ in range(4)]
    assert contender.draws.count == 0 and contender.waited > 0
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_hrnet_gives_heatmaps_of_a_quarter_of_the_picture(monkeypatch):
    pytest.importorskip("timm", reason="timm, of the extra 'bench', is not installed")
    monkeypatch.undo()
    network = peers.HRNet(5).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, 64, 64)).shape == (1, 5, 16, 16)


def test_rows_are_complete_and_consistent(tmp_path, capsys):
    pytest.importorskip("torchvision", reason="torchvision, of the extra 'bench', is not installed")
    arguments = ["--quick", "--no-compile", "--batches", "2", "4", "--workers", "1", "--out", str(tmp_path)]
    assert bench.main(arguments) == 0
    result = json.loads((tmp_path / "training_cpu.json").read_text())
    assert result["left_out"] == {} and result["faces"] == 32 and result["workers"] == 1 and result["steps"] == 2
    assert result["product_teraflops_per_second"] == {"fp32": 0.001} and result["data"] == "synthetic"
    names = ["ours", "without_kernels", "references", "torchvision", "without_device_cache", "dataloader"]
    assert [(row["batch"], row["implementation"]) for row in result["rows"]] == [(b, n) for b in (2, 4) for n in names]
    for row in result["rows"]:
        assert row["model"] == ("hrnet_w18" if row["implementation"] == "dataloader" else "iact_t")
        assert (row["input"], row["dtype"], row["rounds"], row["graphed"]) == (64, "fp32", 1, False)
        assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / row["milliseconds"], rel=1e-3)
        assert 0 < row["waited_percent"] < 100 and 0 < row["loss_last"] < row["loss_first"]
        assert row["product_percent"] == pytest.approx(1e5 * row["teraflops_per_second"], rel=1e-3)
        assert row["wflw_minutes"] == pytest.approx(7500 * 120 / row["images_per_second"] / 60, rel=1e-3)
        assert row["w300_minutes"] == pytest.approx(3148 * 120 / row["images_per_second"] / 60, rel=1e-3)
        assert "peak_memory_mb" not in row and ("augment_percent" in row) == (row["model"] == "iact_t")
        assert row["waited_percent"] + row.get("augment_percent", 1) < 100
    table = capsys.readouterr().out
    assert "| iact_t | ours | 64 | fp32, 2 | " in table and "| hrnet_w18 | DataLoader | 64 | fp32, 4 | " in table


def test_flops_are_those_of_both_passes():
    landmarks, side = 6, 64
    filters = 3 * 4 * 4 * landmarks
    forward = 2 * filters * (side // 4) ** 2
    assert bench.flops_of_one("hrnet_w18", side, landmarks) == 2 * forward  # pictures need no gradient


def race(build, monkeypatch, implementation="ours") -> bench.Benchmark:
    """One turn of a contender that `build` makes."""
    faces = SimpleNamespace(layout=SimpleNamespace(num_landmarks=6))
    monkeypatch.setattr(bench, "prepare_data", lambda chosen, folder: bench.Data(faces, {"data": "none"}, ()))
    monkeypatch.setattr(bench, "build", lambda case, chosen, data: build())
    model = "iact_t" if implementation != "dataloader" else "hrnet_w18"
    arguments = ["--quick", "--models", model]
    arguments += ["--implementations", implementation] if model == "iact_t" else []
    benchmark = bench.Benchmark(bench.parse_arguments(arguments), Path())
    benchmark.run()
    return benchmark


class Pretended:
    """A contender with known losses, that waits half a second and augments a quarter."""

    graphed = False

    def __init__(self, *losses: float):
        self.losses, self.waited, self.augmented = list(losses), 0.0, 0.0

    def train(self, steps: int) -> float:
        self.waited += 0.5
        self.augmented += 0.25
        return self.losses.pop(0)


def test_a_row_of_known_times(monkeypatch):
    monkeypatch.setattr(bench, "interleaved", lambda racers, *_: {case: turns(racer) for case, racer in racers.items()})

    def turns(racer) -> list[float]:
        for _ in range(4):  # the first warms up
            racer()
        return [900.0, 1000.0, 1100.0]

    benchmark = race(lambda: Pretended(9.0, 8.0, 7.0, 6.0, 5.0, 4.0), monkeypatch)
    (row,) = benchmark.rows
    flops = bench.flops_of_one("iact_t", 64, 6)
    expected = {"model": "iact_t", "implementation": "ours", "dtype": "fp32", "batch": 16, "input": 64}
    expected |= {"images_per_second": 32.0, "milliseconds": 500.0, "spread": 50.0, "rounds": 3, "graphed": False}
    expected |= {"waited_percent": 50.0, "augment_percent": 25.0, "loss_first": 9.0, "loss_last": 4.0}
    expected |= {"teraflops_per_second": 32 * flops / 1e12, "product_percent": 3200 * flops / 1e9}
    expected |= {"wflw_minutes": 468.75, "w300_minutes": 196.75}
    spread = row.pop("images_per_second_spread")
    assert row.keys() == expected.keys()
    for name, value in expected.items():
        assert row[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4)), name
    assert spread == pytest.approx((32e3 / 900 - 32e3 / 1100) / 2, rel=1e-3)


@pytest.mark.parametrize("losses", [(1.0, 0.9, 0.8, 1.1), (1.0, 0.9, float("nan"), 0.5)])
def test_what_does_not_learn_has_no_row_and_is_reported(losses, monkeypatch):
    benchmark = race(lambda: Pretended(*losses), monkeypatch)
    assert benchmark.wrong and not benchmark.rows
    assert "the loss does not fall (1, " in next(iter(benchmark.left_out))


def test_a_peer_that_fails_is_left_out_with_its_reason_and_ours_is_not(monkeypatch, capsys):
    def broken():
        raise RuntimeError("no memory\nand much more")

    benchmark = race(broken, monkeypatch, "dataloader")
    assert benchmark.left_out == {"hrnet_w18, dataloader: RuntimeError: no memory": 1} and not benchmark.wrong
    assert "left out: hrnet_w18, dataloader: RuntimeError: no memory\n" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="no memory"):
        race(broken, monkeypatch)


def test_what_is_timed_by_default():
    chosen = bench.parse_arguments([])
    names = ["ours", "without_kernels", "references", "torchvision", "without_device_cache", "compile"]
    assert bench.contenders(chosen) == [*(("iact_t", name) for name in names), ("hrnet_w18", "dataloader")]
    assert (chosen.precisions, chosen.batches, chosen.steps) == (["fp32"], [16], 4)
    chosen = bench.parse_arguments(["--models", "hrnet_w18", "iact_s", "--no-compile"])
    assert bench.input_size("hrnet_w18", chosen) == SIZES["iact_s"].input_size == 256
    assert bench.contenders(chosen)[0] == ("hrnet_w18", "dataloader")
    assert ("iact_s", "compile") not in bench.contenders(chosen)


def test_table_of_known_rows():
    row = {"model": "iact", "implementation": "ours", "input": 256, "dtype": "bf16", "batch": 64}
    row |= {"images_per_second": 1234.5, "milliseconds": 51.84, "waited_percent": 0.31, "peak_memory_mb": 9876.0}
    row |= {"product_percent": 21.4, "wflw_minutes": 12.15, "w300_minutes": 5.1}
    peer = row | {"model": "hrnet_w18", "implementation": "dataloader", "milliseconds": 103.68, "augment_percent": 2.0}
    del peer["peak_memory_mb"]
    assert tables.render({"benchmark": "training", "rows": [row, peer, {**row, "batch": 16}]}).splitlines()[2:] == [
        "| iact | ours | 256 | bf16, 64 | 1230 | 51.8 | 0.3 | 9.88 | 21 | 12.2 | 5.10 |",
        "| hrnet_w18 | DataLoader | 256 | bf16, 64 | 1230 | 104 (2.0x) | 2.3 | - | 21 | 12.2 | 5.10 |",
        "| iact | ours | 256 | bf16, 16 | 1230 | 51.8 | 0.3 | 9.88 | 21 | 12.2 | 5.10 |",
    ]
