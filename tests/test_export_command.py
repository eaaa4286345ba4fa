"""`iact export`: a file and two lines, or one sentence."""

import sys

import pytest
import torch
from programs import iact

from iact.checkpoint import load_weights
from iact.errors import InputError
from iact.export import Parity, export_model, exporting
from iact.export.deployed import Deployed
from iact.export.parity import compare

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def test_a_file_says_what_it_is_and_that_it_agrees(small_run, tmp_path):
    from iact.export.onnx_graph import open_onnx

    out = tmp_path / "new folder" / "faces.onnx"
    ended = iact("export", "--weights", small_run, "--out", out, "--decode")
    assert ended.code == 0, ended.err
    first, second = ended.out.splitlines()
    assert first.startswith(f"{out}: ") and "pictures [B, 3, 64, 64] to landmarks and scores (300w, 68" in first
    assert "limit 0.0001" in second and "limit 0.01)" in second and second.endswith("of 408 compared")
    graph = onnx.load(out)
    about = {entry.key: entry.value for entry in graph.metadata_props}
    assert about["layout"] == "300w" and about["input_size"] == "64" and about["stride"] == "4"
    assert about["sigma"] == "1.5" and about["margin"].startswith("1.25") and "synthetic train" in about["trained_on"]
    assert graph.opset_import[0].version == 19 and graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    model, _ = load_weights(small_run)
    pictures = torch.rand(3, 3, 64, 64) * 255
    expected, scores = Deployed(model, 1.5, decode=True)(pictures)
    landmarks, found = open_onnx(out)(pictures)
    assert landmarks.shape == (3, 68, 2)
    torch.testing.assert_close(found, scores, rtol=0, atol=1e-4)
    assert (landmarks - expected).norm(dim=-1).median() < 0.01


def test_bad_arguments_are_one_sentence(small_run, tmp_path):
    (tmp_path / "notes.txt").write_text("no weights")
    good = {"--weights": small_run, "--out": tmp_path / "a.onnx"}
    cases = [
        ({"--weights": tmp_path / "notes.txt"}, ("notes.txt", "not a whole safetensors file")),
        ({"--weights": tmp_path / "none"}, ("none", "no weights here")),
        ({"--out": tmp_path / "a.pt2"}, ("a.pt2", "ends in .onnx")),
        ({"--format": "torch-export"}, ("a.onnx", "ends in .pt2")),
        ({"--format": "aoti", "--out": tmp_path / "a.pt2", "--precision": "int8"}, ("expected fp32 for aoti",)),
        ({"--opset": 18}, ("opset: expected 19 or more", "DeformConv", "got 18")),
        ({"--opset": 999}, ("opset", "got 999")),
    ]
    for changes, words in cases:
        arguments = [part for pair in {**good, **changes}.items() for part in pair]
        ended = iact("export", *arguments)
        assert ended.said(*words), (changes, ended)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert iact("export", "--weights", small_run, "--out", tmp_path / "a.onnx", "--format", "tflite").code == 2
    with pytest.raises(InputError, match="format: expected one of onnx, torch-export, aoti, got 'tflite'"):
        export_model(small_run, tmp_path / "a.onnx", "tflite")


def test_a_place_that_cannot_be_written_is_named(small_run, tmp_path, monkeypatch):
    def made_at_once(deployed, about, path, *others):
        path.write_bytes(b"a file")
        return deployed

    monkeypatch.setattr(exporting, "_make", made_at_once)
    (tmp_path / "notes.txt").write_text("in the way")
    for out in (tmp_path / "notes.txt" / "a.onnx", tmp_path / "folder.onnx"):
        (tmp_path / "folder.onnx").mkdir(exist_ok=True)
        assert iact("export", "--weights", small_run, "--out", out).said(str(out), "cannot be written")
    assert (tmp_path / "notes.txt").read_text() == "in the way" and not list((tmp_path / "folder.onnx").iterdir())
    assert iact("export", "--weights", small_run, "--out", tmp_path / "a.onnx").code == 0
    assert (tmp_path / "a.onnx").read_bytes() == b"a file"


def test_missing_packages_are_named(small_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name != "onnx" else name)
    ended = iact("export", "--weights", small_run, "--out", tmp_path / "a.onnx")
    assert ended.said("pip install onnxscript onnxruntime") and not list(tmp_path.iterdir())


def test_a_file_that_computes_something_else_is_not_kept(small_run, tmp_path, monkeypatch):
    out = tmp_path / "a.onnx"
    out.write_text("older")
    wrong = Deployed(load_weights(small_run)[0], 1.5, decode=False)
    with torch.no_grad():
        wrong.network.head[-1].bias.add_(0.01)
    monkeypatch.setattr(exporting, "_make", lambda *arguments: wrong)
    ended = iact("export", "--weights", small_run, "--out", out)
    assert ended.said("a.onnx", "not written", "1.0e-02 (limit 0.0001)") and out.read_text() == "older"


def test_parity_sees_shifts_and_numbers_that_are_none(small_run):
    reference = Deployed(load_weights(small_run)[0], 1.5, decode=True)

    def moved(by: float):
        def run(pictures):
            landmarks, scores = reference(pictures)
            return landmarks + by, scores

        return run

    assert compare(reference, reference, "fp32").holds
    shifted = compare(moved(0.03), reference, "fp32")
    assert not shifted.holds and shifted.heatmap == 0 and shifted.pixels == pytest.approx(0.03 * 2**0.5, rel=0.01)
    assert not compare(moved(float("nan")), reference, "fp32").holds
    assert not Parity("int8", float("nan"), 0.0, 0.0, 1, 1).holds and Parity("int8", 0.1, 9.0, 1.0, 1, 1).holds
