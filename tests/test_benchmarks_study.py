"""The study of the training's choices: which faces it measures, that it goes on where it was, and what it concludes."""

import json
import sys
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from official_files import write_w300
from small_training import MINIATURE

from iact import metrics
from iact.checkpoint import load_resume
from iact.config import PAPER, TrainConfig
from iact.data import read_faces
from iact.errors import InputError, TrainingPaused, TrainingStopped
from iact.inference import predict_arrays
from iact.layouts import W300
from iact.model import SIZES
from iact.training import loop
from iact.training.run import Build, Run, hold_out

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_study  # noqa: E402
import studies  # noqa: E402
import study_report  # noqa: E402
import study_training  # noqa: E402

OFF = "feature_attention=False"
QUICK = bench_study.Settings(
    "table6", only=(OFF,), epochs=2, hold_out=0.2, batch_size=8, synthetic_faces=20, device="cpu", amp="off", threads=1
)


@pytest.fixture(autouse=True)
def miniature(monkeypatch):
    """A network of a few thousand weights in the place of iact_t."""
    monkeypatch.setitem(SIZES, "iact_t", MINIATURE)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> bench_study.Settings:
    """A study of two variants and two seeds on drawn faces, finished."""
    settings = replace(QUICK, out=tmp_path_factory.mktemp("study"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "iact_t", MINIATURE)
        bench_study.main(settings)
    return settings


@pytest.fixture
def trained(monkeypatch) -> list[TrainConfig]:
    """The trainings that are begun from here on."""
    calls: list[TrainConfig] = []

    def train(config: TrainConfig, build: Build) -> Path:
        calls.append(config)
        return loop.train(config, build)

    monkeypatch.setattr(study_training, "train", train)
    return calls


def result_of(settings: bench_study.Settings) -> dict:
    return json.loads(settings.path.read_text())


def copied(study: bench_study.Settings, folder: Path, rows: int) -> bench_study.Settings:
    """The study as it was after that many rows, in another folder."""
    result = result_of(study)
    other = replace(study, out=folder)
    other.path.write_text(json.dumps(result | {"rows": result["rows"][:rows]}))
    return other


def test_all_seeds_are_measured_on_the_faces_that_were_held_out(study):
    result = result_of(study)
    drawn = read_faces("synthetic", None, "train", layout=W300, count=20, seed=0)
    train, aside = hold_out(drawn, 0.2, 0)
    assert result["held_out"] == [face.name for face in aside.records] and len(aside) == 4
    assert result["trained_on"] == len(train) == 16
    rows = result["rows"]
    assert [(row["variant"], row["seed"]) for row in rows] == [("default", 0), (OFF, 0), ("default", 1), (OFF, 1)]
    for row in rows:  # the trainer measured the same network on the same faces
        assert len(row["errors"]) == 4 and len(row["curve"]) == 2
        assert np.mean(row["errors"]) == pytest.approx(row["curve"][-1], abs=2e-3)
        assert row["errors"] == [round(error, 3) for error in row["errors"]] and row["minutes"] >= 0
    assert len({tuple(row["curve"]) for row in rows}) == 4
    assert list((study.out / "runs" / study.name).iterdir()) == []


def test_what_is_there_is_not_trained_again(study, tmp_path, trained):
    finished = copied(study, tmp_path, 4)
    bench_study.main(finished)
    assert trained == []
    bench_study.main(copied(study, tmp_path, 2))
    assert [(config.seed, config.feature_attention) for config in trained] == [(1, True), (1, False)]
    assert [row["errors"] for row in result_of(finished)["rows"]] == [row["errors"] for row in result_of(study)["rows"]]


def test_what_another_study_has_trained_is_taken_from_it(study, tmp_path, trained):
    copied(study, tmp_path, 2)
    settings = replace(study, study="table5", only=("block=vit",), out=tmp_path)
    bench_study.main(settings)
    assert [(config.seed, config.block) for config in trained] == [(0, "vit"), (1, "spatial"), (1, "vit")]
    rows = {(row["variant"], row["seed"]): row for row in result_of(settings)["rows"]}
    assert rows["default", 0] == result_of(study)["rows"][0]
    assert rows["default", 1]["errors"] == result_of(study)["rows"][2]["errors"]
    begun = {name: result_of(study)[name] for name in ("settings", "held_out", "trained_on")}
    wanted = [(studies.STUDIES["table5"][0], seed) for seed in range(3)]
    assert [row["seed"] for row in bench_study.rows_of_others(settings, begun, wanted)] == [0]
    assert bench_study.rows_of_others(settings, begun | {"trained_on": 15}, wanted) == []


def test_a_training_that_was_stopped_goes_on(study, tmp_path, trained, monkeypatch):
    settings, steps = copied(study, tmp_path, 3), []

    @contextmanager
    def stop_in_second_epoch():
        yield lambda: steps.append(1) or len(steps) == 2

    with monkeypatch.context() as patch:
        patch.setattr(loop, "asked_to_stop", stop_in_second_epoch)
        with pytest.raises(TrainingPaused):
            bench_study.main(settings)
    assert len(steps) == 2 and len(result_of(settings)["rows"]) == 3
    bench_study.main(settings)
    assert [config.resume for config in trained] == [False, True]
    assert result_of(settings)["rows"][3]["errors"] == result_of(study)["rows"][3]["errors"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epochs": 3}, "begun with epochs 2, got 3"),
        ({"learning_rate": 1e-3}, "begun with learning_rate 0.002, got 0.001"),
        ({"synthetic_faces": 21}, "begun with synthetic_faces 20, got 21"),
        ({"only": ("nonsense",)}, "expected some of default, feature_attention=False, .*got 'nonsense'"),
        ({"workers": 0}, "workers: expected at least 1, got 0"),
        ({"hold_out": 0.0}, "none to measure with"),
    ],
)
def test_settings_that_do_not_fit_are_refused(study, trained, change, sentence):
    before = study.path.read_bytes()
    with pytest.raises(InputError, match=sentence):
        bench_study.main(replace(study, **change))
    assert trained == [] and study.path.read_bytes() == before


def test_a_study_of_settings_that_nothing_is_trained_with_leaves_no_file(tmp_path, trained):
    for workers in (1, 2):
        with pytest.raises(InputError, match="learning_rate: expected a number above 0"):
            bench_study.main(replace(QUICK, learning_rate=0.0, workers=workers, out=tmp_path))
        assert not list(tmp_path.rglob("*.json"))


def test_a_training_killed_before_its_last_weights_goes_on(tmp_path, monkeypatch):
    config, saved = replace(QUICK.config(), out=tmp_path), []

    def killed(run, better):
        saved.append(run.epoch)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "save_weights", lambda run, better: killed(run, better) if run.epoch == 2 else None)
        study_training.train_whole(config, studies.builder("iact"))
    assert saved == [2] and len(study_training.read_log(tmp_path)) == 2
    assert len(study_training.train_whole(config, studies.builder("iact"))) == 2
    assert load_resume(tmp_path / "resume.pt")["epoch"] == 2 and (tmp_path / "last.safetensors").exists()


def test_other_faces_are_refused(study, tmp_path):
    settings = copied(study, tmp_path, 4)
    settings.path.write_text(settings.path.read_text().replace(result_of(study)["held_out"][0], "another"))
    with pytest.raises(InputError, match="other faces"):
        bench_study.main(settings)


def test_table_and_plot_come_out_without_training(study, tmp_path, trained, capsys):
    settings = replace(copied(study, tmp_path, 4), table=True)
    bench_study.main(settings)
    lines = capsys.readouterr().out.splitlines()
    assert trained == [] and lines[0] == study_report.HEAD and lines[2].startswith("| default | ")
    assert (
        f"4 held-out training faces of synthetic; {settings.model}, 16 faces to train on, epochs: 2, seeds: 2;"
        in lines[5]
    )
    summary = result_of(study)["summary"][1]
    low, high = summary["interval_95"]
    assert f"| default | {summary['difference']:+.3f} [{low:+.3f}, {high:+.3f}] | {summary['verdict']} |" in lines[3]
    assert {line.count("|") for line in lines[:4]} == {10}
    assert cv2.imread(str(settings.path.with_suffix(".png"))).std() > 10
    with pytest.raises(InputError, match="no such study yet"):
        bench_study.main(replace(settings, out=tmp_path / "empty"))
    settings.path.write_text("{}")
    with pytest.raises(InputError, match="not the JSON of a study"):
        bench_study.main(settings)


def test_the_same_weights_are_measured_in_other_ways(tmp_path, trained, capsys):
    settings = replace(QUICK, study="recipe", only=("default",), seeds=1, out=tmp_path)
    bench_study.main(settings)
    rows = {row["variant"]: row for row in result_of(settings)["rows"]}
    assert list(rows) == ["default", "decoding=argmax", "decoding=topk", "flip_test"]
    assert len({tuple(row["errors"]) for row in rows.values()}) == 4
    assert all(row["against"] == "default" for name, row in rows.items() if name != "default")
    assert [config.epochs for config in trained] == [1, 2]  # the first to see how long it takes
    assert "trainings: 1, faces to see: 32, minutes of training: about 0, by 1 workers\n" in capsys.readouterr().out


def test_errors_are_those_of_the_predictor():
    config = replace(QUICK.config(), sigma=1.0)
    held_out = study_training.read_held_out(config)
    cuts, network = held_out.crops, studies.builder("iact")(config, 68).eval()
    truth = np.stack([face.landmarks for face in held_out.faces.records])
    for flip_test in (False, True):
        predicted, _ = predict_arrays(network, cuts.pictures, cuts.matrices, W300, sigma=1.0, flip_test=flip_test)
        expected = metrics.nme(predicted, truth, metrics.interocular(truth, W300))
        errors = study_training.errors_of(network, held_out, config, studies.Measuring(flip_test=flip_test))
        np.testing.assert_allclose(errors, expected, atol=6e-4)


def test_weights_from_drawn_faces_are_trained_once(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(study_training, "default_epochs", lambda data: 1)
    for index in range(10):
        write_w300(tmp_path, "helen/trainset", f"{index}a")
    settings = replace(QUICK, study="recipe", data="300w", root=tmp_path, out=tmp_path, epochs=1)
    config = settings.config()
    drawn = studies.choose("recipe", ("start_from=drawn",), "300w")[-1]
    held_out = study_training.read_held_out(config)
    for seed in range(2):
        study_training.train_variant(drawn, replace(config, seed=seed, out=tmp_path / "runs" / str(seed)), held_out)
    assert [(c.data, c.synthetic_layout, c.seed) for c in trained][0] == ("synthetic", "300w", 0)
    assert [c.data for c in trained[1:]] == ["300w", "300w"]
    assert all(c.start_from == tmp_path / "runs" / "drawn" / "last.safetensors" for c in trained[1:])
    assert [variant.name for variant in studies.choose("recipe", (), "synthetic") if variant.from_drawn] == []


def test_a_variant_that_diverges_does_not_end_the_study(study, tmp_path, monkeypatch, capsys):
    def diverge(config: TrainConfig, build: Build) -> Path:
        config.out.mkdir(parents=True)
        raise TrainingStopped("the loss is not finite in epoch 1")

    monkeypatch.setattr(study_training, "train", diverge)
    settings = copied(study, tmp_path, 1)
    bench_study.main(settings)
    rows = result_of(settings)["rows"]
    assert len(rows) == 4 and all("not finite" in row["failed"] for row in rows[1:])
    table = capsys.readouterr().out
    assert f"| {OFF} (no numbers for seed 0, 1) | - |" in table and "| default (no numbers for seed 1) | " in table


def test_variants_change_what_they_say():
    for name, variants in studies.STUDIES.items():
        names = [variant.name for variant in variants]
        assert len({*names}) == len(names), name
        for other in chain.from_iterable(studies.STUDIES.values()):  # one study takes another's by name
            assert all(replace(v, also={}) == replace(other, also={}) for v in variants if v.name == other.name)
        assert all(variant.against in ("", *names) for variant in variants)
        assert len({repr((variant.changes, variant.network, variant.from_drawn)) for variant in variants}) == len(names)
    recipe = {variant.name: replace(TrainConfig(), **variant.changes) for variant in studies.STUDIES["recipe"]}
    assert recipe["recipe=paper"] == replace(PAPER, model=TrainConfig.model, epochs=None)
    assert recipe["ema_faces=10000"].ema_faces == 10000 and recipe["sigma=1"].sigma == 1.0
    strengths = {key: recipe[f"augmentation={key}"].augmentation for key in ("none", "half", "stronger")}
    assert not any(getattr(strengths["none"], entry.name) for entry in fields(strengths["none"]))
    assert (strengths["half"].flip, strengths["half"].rotation, strengths["stronger"].mask) == (0.5, 4.0, 0.225)
    for first, second in zip(*[iter(studies.STUDIES["figure4"])] * 2, strict=True):
        plain = {"map_factor": 0.0, "coordinate_weight": 0.0}
        assert first.changes == plain and second.changes == plain | {"loss": "adaptive_wing"}
        assert second.against == first.name and first.network == second.network


def test_without_timm_one_sentence_says_what_is_left(monkeypatch):
    monkeypatch.setattr(studies, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="timm, which is not installed; .*--only iact/smooth_wing iact/adaptive_wing"):
        bench_study.main(replace(QUICK, study="figure4", only=()))
    assert len(studies.choose("figure4", ("iact/adaptive_wing",), "300w")) == 2


@pytest.mark.parametrize("name", ["hrnet_w18", "resnet50"])
def test_other_networks_have_our_head(name):
    pytest.importorskip("timm")
    config = TrainConfig(seed=3)
    network, again = (studies.builder(name)(config, 29) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    heatmaps = network(torch.randn(2, 3, 64, 64))
    assert heatmaps.shape == (2, 29, 16, 16) and network.config.num_landmarks == 29
    heatmaps.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in network.head.parameters())
    assert [m.shape[-1] for m in network.features(torch.randn(1, 3, 64, 64))] == [16, 8, 4, 2]
    assert sum(weight.grad is None for weight in network.features.parameters()) == 0
