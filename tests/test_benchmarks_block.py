"""The benchmarks of projection, attention and whole networks: what they compare, count and print, never how fast."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_attention_block as block  # noqa: E402
import bench_inference as inference  # noqa: E402
import comparison  # noqa: E402
import tables  # noqa: E402
import timing  # noqa: E402

CPU = torch.device("cpu")
SMALL = block.Case("deform_qkv", "96x32", "fp32", batch=2, backward=True)
OPS = [("deform_qkv", "separate"), ("deform_qkv", "shared"), ("attention", "separate"), ("msa", "separate")]


@pytest.fixture(autouse=True)
def small_maps(monkeypatch):
    """Small shapes by the usual names, a floor of a byte a nanosecond and of 2 FLOP a nanosecond."""
    monkeypatch.setattr(block, "SHAPES", {"96x32": (8, 5, 2), "192x16": (12, 4, 4), "128x32": (16, 3, 1)})
    monkeypatch.setattr(block, "MODEL", ["96x32", "192x16"])
    monkeypatch.setattr(comparison, "copy_bandwidth", lambda device, mebibytes, seconds: 1e9)
    monkeypatch.setattr(block, "product_rate", lambda device, dtype, seconds: 2e9)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("op", "offsets"), OPS)
def test_peers_compute_what_ours_computes(op, offsets, backward, dtype):
    case = replace(SMALL, op=op, offsets=offsets, backward=backward, dtype=dtype)
    inputs = block.draw_inputs(case, CPU)
    expected = block.with_pass(block.ours(case), case)(*inputs)
    assert len(expected) == (3 if op == "deform_qkv" else 1) + (case.arguments if backward else 0)
    assert all(result.abs().max() > 0 for result in expected)
    peers = block.peers_of(case, "math", on_gpu=False)
    assert len(peers) >= 2
    for name, peer in peers.items():
        comparison.check(block.with_pass(peer, case)(*inputs), expected, case, name)


def test_torchvision_in_float16_has_a_tolerance_of_its_own():
    case = replace(SMALL, dtype="fp16")
    assert "torchvision_fp16" in block.peers_of(case, "", on_gpu=True)
    assert case.tolerance("torchvision_fp16", torch.float16) > 10 * case.tolerance("eager", torch.float16)


@pytest.mark.parametrize("op", ["deform_qkv", "attention"])
def test_eager_peers_compile_whole(op):
    case = replace(SMALL, op=op, backward=False)
    inputs = block.draw_inputs(case, CPU)
    eager = block.peers_of(case, "", on_gpu=False)["eager"]
    whole = torch.compile(eager, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(whole(*inputs), eager(*inputs))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("op", "offsets"), OPS)
def test_least_bytes_are_those_of_inputs_and_results(op, offsets, backward, dtype):
    case = replace(SMALL, op=op, offsets=offsets, backward=backward, dtype=dtype)
    inputs = block.draw_inputs(case, CPU)
    results = block.with_pass(block.ours(case), case)(*inputs)
    assert case.least_bytes == sum(tensor.nbytes for tensor in (*inputs, *results))


def test_flops_are_those_of_the_products():
    projection, attention = 2 * 3 * 2 * 25 * 8 * 4 * 9, 2 * 2 * 2 * 2 * 25 * 25 * 4  # of B 2, C 8, 5 x 5 px, 2 heads
    for op, forward, both in (
        ("deform_qkv", projection, 3 * projection),
        ("attention", attention, 7 * attention // 2),
        ("msa", projection + attention, 3 * projection + 7 * attention // 2),
    ):
        assert replace(SMALL, op=op, backward=False).flops() == forward
        assert replace(SMALL, op=op, dtype="bf16").flops() == both


def test_offsets_keep_away_from_whole_pixels_and_the_dtype_of_the_map():
    maps, offset, weight, bias, *gradients = block.draw_inputs(replace(SMALL, dtype="bf16"), CPU)
    assert maps.is_contiguous(memory_format=torch.channels_last) and maps.dtype == weight.dtype == torch.bfloat16
    assert offset.dtype == torch.float32 and 0.3 < offset.std() < 0.8 and len(gradients) == 3
    assert (offset - offset.round()).abs().min() > 0.049


def test_the_floor_is_the_later_of_moving_and_computing():
    timed = timing.Timing(1.0, 0.0, 1, False, None)
    for rate, expected in ((1e12, SMALL.least_bytes / 1e9), (1e6, SMALL.flops() / 1e6)):
        row = comparison.row(SMALL, "ours", timed, 1e9, rate)
        assert row["floor_ms"] == pytest.approx(1e3 * expected, abs=1e-5)
        assert row["teraflops_per_second"] == pytest.approx(SMALL.flops() / 1e9, abs=1e-4)
        assert row["gigabytes_per_second"] == pytest.approx(SMALL.least_bytes / 1e6, abs=1e-3)


def test_msa_goes_with_the_fastest_backend_of_its_own_case():
    msa = replace(SMALL, op="msa")
    labels = replace(SMALL, op="attention").labels()
    rows = [
        {**labels, "implementation": f"sdpa_{name}", "milliseconds": ms} for name, ms in (("flash", 2), ("math", 1))
    ]
    rows += [{**labels, "implementation": "ours", "milliseconds": 0.1}]
    rows += [{**labels, "batch": 9, "implementation": "sdpa_flash", "milliseconds": 0.2}]
    assert block.fastest_sdpa(rows, msa) == "math"
    assert block.fastest_sdpa([], msa) == "" and "torchvision+sdpa" not in block.peers_of(msa, "", on_gpu=True)


def test_rows_of_the_block_are_complete(tmp_path, capsys):
    arguments = ["--quick", "--no-compile", "--batches", "2", "1", "--shapes", *block.SHAPES, "--out", str(tmp_path)]
    assert block.main(arguments) == 0
    result = json.loads((tmp_path / "attention_block_cpu.json").read_text())
    assert result["product_teraflops_per_second"] == {"fp32": 0.002, "bf16": 0.002} and not result["left_out"]
    # two passes; the model's two shapes: two batches and bf16, deform_qkv shared too; the other shape: two batches
    cases = {"deform_qkv": 2 * (2 * 4 + 2), "attention": 2 * (2 * 3 + 2), "msa": 2 * (2 * 3 + 2)}
    peers = {"deform_qkv": 3, "attention": 4, "msa": 3}
    for op, count in cases.items():
        assert sum(row["op"] == op for row in result["rows"]) == count * peers[op]
    assert "| `deform_attention` | 96, 32 x 32 | fp32 | 2 |" in capsys.readouterr().out


def test_a_backend_that_is_not_there_is_left_out_with_its_reason(monkeypatch, capsys):
    def missing(backend, *inputs):
        raise RuntimeError("No available kernel")

    monkeypatch.setattr(block.peers, "sdpa", missing)
    arguments = ["--quick", "--no-compile", "--ops", "msa", "--shapes", "96x32", "--batches", "1", "--dtypes", "fp32"]
    assert block.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "left out: sdpa_flash: RuntimeError: No available kernel" in printed and "torchvision+sdpa " not in printed


def test_networks_take_turns(monkeypatch):
    order, clock = [], iter(range(100))
    monkeypatch.setattr(inference, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    found = inference.interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 0.0, least_rounds=2)
    assert order == list("ab" * 3) and found == {"a": [1e3, 1e3], "b": [1e3, 1e3]}  # the first round warms up


def test_rows_of_a_network_without_its_peers(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inference, "find_spec", lambda name: None)
    arguments = [
        "--quick",
        "--models",
        "iact_t",
        "resnet50",
        "--batches",
        "1",
        "--precisions",
        "fp32",
        "--out",
        str(tmp_path),
    ]
    assert inference.main(arguments) == 0
    result = json.loads((tmp_path / "inference_cpu.json").read_text())
    rows = result["rows"]
    assert result["left_out"] == {"timm is not installed": 1}
    assert [row["form"] for row in rows] == list(inference.FORMS)
    assert all((row["input"], row["gmac"], row["rounds"]) == (128, 0.28, 1) for row in rows)
    assert "| iact_t | 128 | 3.79 | 0.28 | " in capsys.readouterr().out


def test_folding_a_peer_keeps_what_it_computes():
    timm = pytest.importorskip("timm", reason="timm, of the extra 'bench', is not installed")
    torch.manual_seed(0)
    model = timm.create_model("resnet18", pretrained=False, num_classes=4).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    picture = torch.rand(1, 3, 64, 64)
    light = inference.folded(model)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in light.modules())
    with torch.no_grad():
        torch.testing.assert_close(light(picture), model(picture), rtol=1e-3, atol=1e-4)


def test_a_form_that_computes_something_else_is_found_out():
    picture = torch.ones(1, 3, 2, 2)
    plain, wrong = torch.nn.Flatten(), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Threshold(2.0, 0.0))
    inference.check("net", dict.fromkeys(inference.FORMS, (plain, picture)))
    with pytest.raises(ValueError, match="net, folded: differs from contiguous"):
        inference.check("net", dict.fromkeys(inference.FORMS[:2], (plain, picture)) | {"folded": (wrong, picture)})


def test_tables_of_known_rows():
    row = {
        "op": "attention",
        "shape": "96x32",
        "offsets": "-",
        "dtype": "bf16",
        "batch": 32,
        "pass": "forward+backward",
    }
    row |= {"floor_ms": 0.024, "floor_percent": 53.4}
    times = {"ours": 0.045, "eager": 0.45, "sdpa_flash": 0.09, "sdpa_math": 0.9}
    rows = [{**row, "implementation": name, "milliseconds": ms} for name, ms in times.items()]
    rows += [{**row, "implementation": "sdpa_flash", "milliseconds": 0.01, "pass": "forward"}]
    assert tables.render({"benchmark": "attention_block", "rows": rows}).splitlines()[2:] == [
        "| `attention` | 96, 32 x 32 | bf16 | 32 | 0.0450 | 0.450 (10x) | - | 0.0900 (2.0x) | 0.0240 (53 %) |"
    ]
    network = {"model": "iact", "dtype": "fp32", "batch": 1, "input": 256, "parameters_millions": 20.35, "gmac": 6.46}
    forms = [
        {**network, "form": "contiguous", "milliseconds": 200.4},
        {**network, "form": "folded", "milliseconds": 150.2},
    ]
    assert tables.render({"benchmark": "inference", "rows": forms}).splitlines()[2:] == [
        "| iact | 256 | 20.35 | 6.46 | 150 | - | - | - |"
    ]
