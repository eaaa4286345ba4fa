"""The harness of the ops' benchmarks: what it compares, counts and prints; never how fast anything is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from iact.heatmaps import window_radius

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_ops  # noqa: E402
import comparison  # noqa: E402
import peers  # noqa: E402
import tables  # noqa: E402
import timing  # noqa: E402

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.fixture(autouse=True)
def few_landmarks(monkeypatch):
    """Small maps in small batches, and a floor of a byte a nanosecond."""
    monkeypatch.setattr(bench_ops, "LANDMARKS", 6)
    monkeypatch.setattr(comparison, "copy_bandwidth", lambda device, mebibytes, seconds: 1e9)


def row(implementation: str, milliseconds: float, **other) -> dict:
    found = {"op": "heatmap_loss", "variant": "trained", "layout": "contiguous", "dtype": "bf16", "batch": 64}
    found |= {"pass": "forward+backward", "implementation": implementation, "milliseconds": milliseconds}
    return found | {"floor_ms": 0.024, "floor_percent": 53.4} | other


@pytest.mark.parametrize("dtype", comparison.DTYPES)
@pytest.mark.parametrize("op", bench_ops.OPS)
def test_peers_compute_what_ours_computes(op, dtype):
    for variant in ("trained", "untrained") if op.endswith("loss") else ("trained",):
        case = bench_ops.Case(op, dtype, backward=op.endswith("loss"), batch=2, variant=variant)
        inputs = bench_ops.draw_inputs(case, CPU)
        ours, eager = (bench_ops.with_pass(function, case)(*inputs) for function in bench_ops.OPS[op])
        assert len(ours) == 2 and all(result.abs().max() > 0 for result in ours)
        comparison.check(eager, ours, case)


def test_peers_have_the_defaults_of_the_ops():
    assert window_radius() == peers.RADIUS


@pytest.mark.parametrize("op", bench_ops.OPS)
def test_peers_compile_whole(op):
    case = bench_ops.Case(op, "fp32", backward=False, batch=1)
    inputs = bench_ops.draw_inputs(case, CPU)
    peer = bench_ops.OPS[op][1]
    whole = torch.compile(peer, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(*inputs), peer(*inputs))


def test_what_differs_is_found_out():
    ours = (torch.tensor([3.0, 4.0]),)
    loss, decode = (bench_ops.Case(op, "fp32", False, 1) for op in ("heatmap_loss", "decode_topk"))
    comparison.check((torch.tensor([3.0, 4.0001]),), ours, loss)
    for wrong in (torch.tensor([3.0, 4.01]), torch.tensor([3.0, torch.nan]), torch.tensor([3.0, 4.0]).double()):
        with pytest.raises(comparison.Disagreement):
            comparison.check((wrong,), ours, loss)
    with pytest.raises(comparison.Disagreement):
        comparison.check((torch.tensor([3.0, 4.0001]),), ours, decode)


def test_rows_are_complete_and_consistent(tmp_path, capsys):
    assert bench_ops.main(["--quick", "--no-compile", "--batches", "2", "1", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "ops_cpu.json").read_text())
    assert {"processor", "cores", "torch", "triton", "torch_threads", "commit"} <= set(result["machine"])
    assert result["load_average_at_start"] >= 0 and result["copy_gigabytes_per_second"] == 1 and not result["left_out"]
    rows = result["rows"]
    # two losses with two passes, three decoders: each at two batches and as channels_last; one untrained loss
    assert len(rows) == (7 * 2 + 5 + 1) * len(("fp32", "bf16")) * len(("ours", "eager"))
    for found in rows:
        assert found["floor_ms"] == pytest.approx(found["bytes"] / 1e6, abs=1e-5)
        assert found["floor_percent"] == pytest.approx(100 * found["floor_ms"] / found["milliseconds"], rel=0.01)
        assert found["rounds"] == 1 and found["graphed"] is False and "peak_memory_mb" not in found
    assert '| `decode_heatmaps`, "window" | bf16 | 2 |' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("op", "dtype", "backward", "bytes_a_pixel"),
    [
        ("heatmap_loss", "fp32", False, 4),
        ("heatmap_loss", "bf16", True, 4),
        ("smooth_wing_loss", "fp16", True, 8),
        ("decode_topk", "bf16", False, 2),
    ],
)
def test_least_bytes(op, dtype, backward, bytes_a_pixel):
    case = bench_ops.Case(op, dtype, backward, batch=37)
    assert case.least_bytes == 37 * 6 * 64 * 64 * bytes_a_pixel


def test_inputs_are_as_the_case_says():
    case = bench_ops.Case("smooth_wing_loss", "bf16", True, batch=2, layout="channels_last")
    pred, target = bench_ops.draw_inputs(case, CPU)
    assert pred.dtype == torch.bfloat16 and pred.requires_grad and pred.shape == (2, 6, 64, 64)
    assert pred.is_contiguous(memory_format=torch.channels_last) and not pred.is_contiguous()
    assert 0 < (pred - target).abs().mean() < 0.01


def test_a_wrong_peer_is_not_timed(monkeypatch, capsys):
    ours = bench_ops.OPS["decode_argmax"][0]
    monkeypatch.setitem(bench_ops.OPS, "decode_argmax", (ours, peers.decode_topk))
    arguments = ["--quick", "--no-compile", "--batches", "1", "--dtypes", "fp32", "--ops", "decode_argmax"]
    assert bench_ops.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "left out: eager of" in printed and " eager  " not in printed


def test_a_failing_compiler_leaves_rows_out_and_says_so_once(monkeypatch, capsys):
    def broken(*inputs):
        raise RuntimeError("no compiler here\nand much more")

    monkeypatch.setattr(torch, "compile", lambda function, fullgraph: broken)
    assert bench_ops.main(["--quick", "--batches", "2", "1", "--ops", "decode_argmax"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("left out: compile: RuntimeError: no compiler here\n") == 1 and "much more" not in printed
    assert " compile " not in printed


def test_no_gpu_is_one_sentence_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        bench_ops.main(["--device", "cuda"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("got cuda (torch sees no GPU)")


def test_cpu_time_is_the_median_over_rotated_inputs(monkeypatch):
    ticks = iter([0, 0.010, 1, 1.030, 2, 2.020, 3, 3.050])  # rounds of 10, 30, 20 and 50 ms
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    seen = []
    sets = [(torch.tensor(number),) for number in range(3)]
    found = timing.measure(lambda tensor: seen.append(int(tensor)), sets, seconds=0.1, least_rounds=2)
    assert seen == [0, 1, 2, 0]
    assert found == timing.Timing(pytest.approx(25), pytest.approx(17.5), rounds=4, graphed=False, peak_memory_mb=None)


def test_rotated_inputs_exceed_the_cache_and_share_no_memory(monkeypatch):
    monkeypatch.setattr(timing, "CPU_CACHE", 1000)
    pred = torch.rand(1, 2, 10, 20).to(memory_format=torch.channels_last).requires_grad_()
    sets = timing.rotated((pred,))
    assert len(sets) == 3  # of 1600 bytes each
    assert len({inputs[0].data_ptr() for inputs in sets}) == 3
    for (copy,) in sets:
        assert copy.requires_grad and copy.is_leaf and copy.stride() == pred.stride() and copy.equal(pred)


def test_a_copy_counts_what_it_reads_and_what_it_writes(monkeypatch):
    monkeypatch.setattr(timing, "measure", lambda call, sets, seconds: timing.Timing(2.0, 0.0, 1, False, None))
    assert timing.copy_bandwidth(CPU, 3, 0.0) == pytest.approx(2 * 3 * 2**20 / 2e-3)


@needs_gpu
def test_gpu_calls_are_captured_where_they_can_be():
    sets = [(torch.rand(1 << 20, device="cuda"),) for _ in range(2)]
    captured = timing.measure(lambda tensor: tensor * 2, sets, 0.01)
    assert captured.graphed and captured.milliseconds > 0 and captured.peak_memory_mb == pytest.approx(4.2, abs=0.1)
    waiting = timing.measure(lambda tensor: tensor.sum().item(), sets, 0.01)
    assert not waiting.graphed and waiting.milliseconds > 0


def test_table_of_known_rows():
    rows = [row("ours", 0.04491), row("eager", 5.996), row("compile", 0.61), row("eager", 9.0, variant="untrained")]
    decode = {"op": "decode_topk", "pass": "forward", "dtype": "fp32", "floor_ms": 23.96, "floor_percent": 20.2}
    rows += [row("ours", 118.6, **decode), row("eager", 1234.5, **decode), row("ours", 7.0, batch=32)]
    assert tables.render({"benchmark": "ops", "rows": rows}).splitlines() == [
        "| op | dtype | batch | ours, ms | eager, ms | torch.compile, ms | floor, ms (reached) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| `heatmap_loss`, forward and backward | bf16 | 64 | 0.0449 | 6.00 (130x) | 0.610 (14x) | 0.0240 (53 %) |",
        '| `decode_heatmaps`, "topk" of 9 | fp32 | 64 | 119 | 1230 (10x) | - | 24.0 (20 %) |',
    ]


def test_section_names_each_machine_and_guesses_nothing(tmp_path):
    missing = [
        f"{table.title} on a {where}: not measured yet." for table in tables.TABLES.values() for where in ("CPU", "GPU")
    ]
    assert tables.section(tmp_path).split("\n\n") == missing
    machine = {"torch": "2.11.0", "cuda": "13.0", "driver": "580.1"}
    result = {"benchmark": "ops", "device": "NVIDIA H200", "machine": machine, "rows": []}
    result["copy_gigabytes_per_second"] = 4312.3
    assert tables.file_name(result["device"], "ops") == "ops_nvidia_h200.json"
    (tmp_path / "ops_nvidia_h200.json").write_text(json.dumps(result))
    cpu, gpu, _, caption, *others = tables.section(tmp_path).split("\n\n")
    assert cpu == missing[0] and caption == tables.CAPTION and others == missing[2:]
    place = "NVIDIA H200, CUDA 13.0, driver 580.1, torch 2.11.0; a copy moves 4312 GB/s"
    assert gpu == f"Losses and decoding on a GPU: {place}; [json](benchmarks/results/ops_nvidia_h200.json)."


def test_tables_change_only_what_stands_between_the_markers():
    readme = f"above\n{tables.BEGIN}\nold\n{tables.END}\nbelow\n"
    assert tables.replaced(readme, "new") == f"above\n{tables.BEGIN}\nnew\n{tables.END}\nbelow\n"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_gpu_without_a_gpu_is_one_sentence_and_exit_code_2(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    environment["PATH"] = str(tmp_path)  # no nvidia-smi there
    command = [shutil.which("make"), "gpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "make gpu needs an NVIDIA GPU, and nvidia-smi lists none here" in line


@pytest.mark.parametrize(
    "command",
    [
        "bench_training.py --root",
        "bench_export.py --weights",
        "bench_video.py --weights",
        "fit_detector.py --root",
        "bench_predictor.py --quick --models iact_t --dtypes fp32 --detector-model",
    ],
)
def test_files_that_are_not_there_end_a_benchmark_in_one_sentence(command, tmp_path):
    program, *arguments = command.split()
    missing = tmp_path / "missing"
    found = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / program, *arguments, missing], capture_output=True, text=True
    )
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert found.stderr.splitlines()[-1].startswith(f"error: {missing}: ")
