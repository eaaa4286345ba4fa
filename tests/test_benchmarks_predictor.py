"""The predictor's benchmark: what it measures and writes; never how fast anything is."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import bench_predictor  # noqa: E402

PARTS = {"cut", "network", "decode", "whole, boxes given"}
ONCE = {"detect, haar", "whole, haar", *(f"new process, {part}" for part in ("import", "load", "first", "second"))}


def test_each_part_has_a_row(miniature, tmp_path, capsys):
    arguments = ["--quick", "--models", "iact_t", "--dtypes", "fp32", "--batches", "1", "3", "--out", str(tmp_path)]
    assert bench_predictor.main(arguments) == 0
    result = json.loads((tmp_path / "predictor_cpu.json").read_text())
    rows = {(row["batch"], row["part"]): row["milliseconds"] for row in result["rows"]}
    assert set(rows) == {(1, part) for part in PARTS | ONCE} | {(3, part) for part in PARTS}
    assert all(milliseconds > 0 for milliseconds in rows.values())
    assert result["benchmark"] == "predictor" and {"processor", "torch", "commit"} <= set(result["machine"])
    assert "new process, first" in capsys.readouterr().out


def test_the_drawn_face_is_one_that_the_detector_finds():
    image, boxes = bench_predictor.draw(2)
    (found,) = bench_predictor.detect_faces(image)
    centre = (boxes[0, :2] + boxes[0, 2:]) / 2
    assert (found[:2] < centre).all() and (centre < found[2:]).all() and (boxes[1] > boxes[0]).all()
