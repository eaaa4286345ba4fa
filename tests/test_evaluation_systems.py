"""Several systems on the same faces: what is written, how they are compared, and by which boxes models see faces."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import iact

from iact import metrics
from iact.commands.evaluating import measure, name_systems
from iact.cost import count_gmac, count_parameters, measure_cost
from iact.data import read_faces
from iact.data.faces import Faces
from iact.errors import InputError
from iact.evaluation import Protocol, compare, evaluate_predictions, format_comparison, format_report, format_tables
from iact.evaluation.cutting import cut_by
from iact.geometry import landmark_box
from iact.layouts import COFW, W300, WFLW, Layout
from iact.model import create_model

SYSTEM = {"metrics.json", "per_face.csv", "predictions.csv", "landmark_errors.png", "worst.jpg"}


COUNT = 40  # faces


@pytest.fixture(scope="module", autouse=True)
def few_drawn_faces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iact.commands.evaluating.DRAWN_FACES", COUNT)
        yield


@pytest.fixture(scope="module")
def truth() -> Faces:
    return read_faces("synthetic", None, "test", layout=W300, count=COUNT)  # what `iact evaluate` draws


def report_of(faces: Faces, noise: float, seed: int = 0, data_set: str = "synthetic", **settings):
    points = np.stack([face.landmarks for face in faces.records])
    predicted = points + np.random.default_rng(seed).normal(0, noise, points.shape)
    about = {"data_set": data_set, "box_rule": "none", "flip_test": None, "weights": f"noise of {noise} px"}
    return evaluate_predictions(predicted, faces, Protocol.of(faces, **about), **settings)


@pytest.fixture(scope="module")
def files(truth, tmp_path_factory):
    """Predictions of two systems, better and worse."""
    folder = tmp_path_factory.mktemp("systems")
    points = np.stack([face.landmarks for face in truth.records])
    names = np.array([face.name for face in truth.records])
    for name, noise in (("good", 2), ("bad", 6)):
        predicted = points + np.random.default_rng(0).normal(0, noise, points.shape)
        np.savez(folder / f"{name}.npz", names=names, landmarks=predicted)
    return folder


@pytest.fixture(scope="module")
def evaluated(files, small_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("together") / "out"
    given = ("--weights", small_run, "--predictions", files / "bad.npz", files / "good.npz")
    return out, iact("evaluate", *given, "--thresholds", 8, 10, "--out", out, "--device", "cpu", "--amp", "off")


def test_two_files_and_weights_in_one_plot_and_table(evaluated, small_run):
    out, ended = evaluated
    assert ended.code == 0, ended.err
    systems = [small_run.name, "bad", "good"]
    assert {path.name for path in out.iterdir()} == {*systems, "ced.png", "tables.md", "comparison.json"}
    assert all({path.name for path in (out / name).iterdir()} == SYSTEM for name in systems)
    table = (out / "tables.md").read_text()
    assert all(f"| **{name}** |" in table and f"Protocol of **{name}**" in table for name in systems)
    differences = json.loads((out / "comparison.json").read_text())
    assert differences["reference"] == small_run.name and [*differences["differences"]] == systems[1:]
    assert "NPZ; first pixel at 0" in differences["protocols"]["bad"]["weights"]
    assert f"good minus {small_run.name}, paired over the same faces" in ended.out


def test_every_metric_by_hand_from_the_csv(evaluated):
    """With nothing but the file's numbers."""
    out, _ = evaluated
    numbers = json.loads((out / "bad/metrics.json").read_text())
    rows = [*csv.DictReader((out / "bad/per_face.csv").open())]
    for normaliser, suffix in (("interocular", ""), ("interpupil", "_interpupil"), ("box", "_box")):
        nme = sorted(float(row[f"nme_{normaliser}"]) for row in rows)
        assert numbers[f"nme_{normaliser}"] == pytest.approx(sum(nme) / COUNT, rel=1e-12)
        for name, threshold in (("0.08", 8), ("0.1", 10)):
            assert numbers[f"fr_{name}{suffix}"] == pytest.approx(100 * sum(one > threshold for one in nme) / COUNT)
            xs = np.linspace(0, threshold, threshold * 100 + 1)
            share = np.array([np.mean([one <= x for one in nme]) for x in xs])
            simpson = (share[:-2:2] + 4 * share[1::2] + share[2::2]).sum() / (3 * (len(xs) - 1))
            assert numbers[f"auc_{name}{suffix}"] == pytest.approx(simpson, abs=1e-12)


def test_written_predictions_are_read_again_and_score_the_same(evaluated, tmp_path):
    out, _ = evaluated
    ended = iact("evaluate", "--predictions", out / "good/predictions.csv", "--out", tmp_path / "again")
    assert ended.code == 0, ended.err
    again, before = (json.loads((path / "metrics.json").read_text()) for path in (tmp_path / "again", out / "good"))
    assert again["nme_interocular"] == pytest.approx(before["nme_interocular"], abs=1e-4)
    assert again["fr_0.1"] == before["fr_0.1"]


def test_a_paired_interval_is_narrower_than_two_of_its_own(truth):
    """The same faces are hard for both, so that their errors rise and fall together."""
    first, second = report_of(truth, 4), report_of(truth, 4.1)
    found = compare(first, second)["nme_interocular"]
    low, high = found["interval_95"]
    own = first.results["intervals_95"]["nme_interocular"]
    both = second.results["nme_interocular"] - first.results["nme_interocular"]
    assert found["difference"] == pytest.approx(both) and 0 < low < both < high
    assert high - low < 0.2 * (own[1] - own[0])
    text = format_comparison(compare(first, second), "first", "second")
    assert "second minus first, paired over the same faces" in text and f"  a difference ({COUNT} faces)" in text
    assert "no difference" in format_comparison(compare(first, first), "first", "first")


def test_only_the_same_faces_are_compared(truth):
    fewer = dataclasses.replace(truth, records=truth.records[:-1])
    with pytest.raises(InputError, match="expected two on the same faces"):
        compare(report_of(truth, 1), report_of(fewer, 1))


def test_a_face_that_is_not_found_is_a_failure_and_in_no_mean(truth, tmp_path):
    found = np.arange(COUNT) >= 1
    report = report_of(truth, 1, found=found)
    whole, numbers = report_of(truth, 1), report.to_json()
    assert numbers["not_found"] == [face.name for face in truth.records[:1]] and numbers["faces"] == COUNT
    assert numbers["nme_interocular"] == pytest.approx(whole.errors["interocular"][1:].mean())
    assert (numbers["fr_0.1"], whole.results["fr_0.1"]) == (2.5, 0)
    assert numbers["auc_0.1"] == pytest.approx(metrics.auc(whole.errors["interocular"][1:], 10) * 39 / 40)
    assert "1 of the faces, failures in FR and AUC, in no mean" in format_report(report)
    assert compare(whole, report)["nme_interocular"]["faces"] == 39
    assert compare(whole, report)["fr_0.1"]["difference"] == 2.5


PARTS = {"helen/testset": 3, "lfpw/testset": 2, "ibug": 4}


def test_the_full_set_of_300w_has_the_parts_that_papers_report(truth):
    names = [f"{part}/{index}" for part, count in PARTS.items() for index in range(count)]
    records = [dataclasses.replace(face, name=name) for face, name in zip(truth.records, names, strict=False)]
    report = report_of(Faces(W300, "full", tuple(records)), 2, data_set="300w")
    assert {name: numbers["faces"] for name, numbers in report.subsets.items()} == {"common": 5, "challenging": 4}
    table = format_tables({"ours": report})
    row = [report.results, report.subsets["common"], report.subsets["challenging"]]
    assert f"| **ours** | {' | '.join(format(numbers['nme_interocular'], '.2f') for numbers in row)} |" in table
    assert "| IACT paper | 2.82 | 2.51 | 4.09 |" in table and "| Method | Full | Com. | Chal. |\n" in table


def points_of(layout: Layout, split: str, tags=()) -> Faces:
    drawn = read_faces("synthetic", None, "test", layout=layout, count=4)
    return dataclasses.replace(
        drawn, split=split, records=tuple(dataclasses.replace(face, tags=frozenset(tags)) for face in drawn.records)
    )


def test_a_split_that_papers_do_not_report_has_a_column_of_its_own(truth):
    report = report_of(dataclasses.replace(truth, split="helen/testset", missing=("3 of 9 faces",)), 2, data_set="300w")
    table = format_tables({"ours": report})
    assert "| Full | Com. | Chal. | helen/testset |" in table and "| **ours** | - | - | - | " in table
    assert "not comparable with published numbers" in table and "3 of 9 faces" in table


def test_tables_of_wflw_and_cofw():
    cost = measure_cost(create_model("iact_t"), WFLW, torch.device("cpu"), None)
    report = report_of(points_of(WFLW, "test", ["blur"]), 1, data_set="wflw", cost=cost)
    table = format_tables({"ours": report})
    nme = f"{report.results['nme_interocular']:.2f}"
    assert f"| **ours** | - | 3.79 | 0.28 | {cost.milliseconds:.2f} | {nme} | - | - | - | - | - | {nme} |" in table
    assert "| IACT paper | 2023 | 20.29 | 6.45 | - | 4.04 | 6.54 |" in table
    assert f"| AUC@0.1 | **ours** | {report.results['auc_0.1']:.3f} |" in table
    assert "| FR@0.1 (%) | IACT paper | 2.61 | 8.28 | 0.62 | 2.14 | 2.42 | 5.02 | - |" in table
    cofw = report_of(points_of(COFW, "test"), 1, data_set="cofw")
    numbers = [cofw.results[key] for key in ("nme_interocular", "fr_0.1", "nme_interpupil", "fr_0.1_interpupil")]
    assert f"| **ours** | {' | '.join(f'{number:.2f}' for number in numbers)} |" in format_tables({"ours": cofw})


def test_cost_is_that_of_the_network():
    model = create_model("iact_t", 68)
    cost = measure_cost(model, W300, torch.device("cpu"), None)
    assert cost.parameters_millions == count_parameters(model) == pytest.approx(3.79, abs=0.01)
    assert cost.gmac == count_gmac(model, torch.zeros(1, 3, 128, 128)) == pytest.approx(0.27, abs=0.01)
    assert cost.milliseconds > 0 and "CPU" in cost.device and "float32" in cost.device


def test_boxes_of_the_data_set_and_of_a_detector(truth):
    some = dataclasses.replace(truth, records=truth.records[:3])
    plain = cut_by("landmarks", some, 64, W300, None)
    boxed = tuple(dataclasses.replace(face, box=landmark_box(face.landmarks)) for face in some.records)
    same = cut_by("rectangle", dataclasses.replace(some, records=boxed), 64, W300, None)
    assert torch.equal(plain[0], same[0]) and np.array_equal(plain[1], same[1]) and same[2].all()
    pictures = [face.image.read() for face in some.records]
    squares = [landmark_box(face.landmarks)[None] + 3 for face in some.records]

    def detector(image):
        """Finds a face 3 px off, beside nonsense; in the second picture nonsense alone."""
        index = next(i for i, picture in enumerate(pictures) if np.array_equal(picture, image))
        nonsense = np.array([[0.0, 0.0, 9.0, 9.0]])
        return nonsense if index == 1 else np.concatenate([nonsense, squares[index]])

    detected, matrices, found = cut_by("detector", some, 64, W300, detector)
    assert found.tolist() == [True, False, True] and len(detected) == len(matrices) == 2
    scale = matrices[0, 0, 0]
    assert matrices[0, :, 2] == pytest.approx(plain[1][0, :, 2] - 3 * scale, abs=0.1)
    with pytest.raises(InputError, match="gives no rectangle"):
        cut_by("rectangle", some, 64, W300, None)
    with pytest.raises(InputError, match="the detector finds none of the 3 faces"):
        cut_by("detector", some, 64, W300, lambda image: np.zeros((0, 4)))


def test_the_box_rule_is_in_the_protocol(small_run):
    report = measure(
        *(small_run, "synthetic", None, "test"), flip_test=False, device="cpu", amp="off", boxes="detector"
    )
    assert "Haar cascade" in report.protocol.box_rule and report.cost.gmac > 0
    assert np.isinf(report.errors["interocular"]).sum() == len(report.not_found) < COUNT


def test_systems_get_short_names(tmp_path):
    a, b = tmp_path / "a/best.safetensors", tmp_path / "b/best.safetensors"
    assert name_systems([a, tmp_path / "spiga.json"]) == ["best", "spiga"]
    assert name_systems([a, b]) == ["a-best", "b-best"]


def test_systems_keep_their_names_apart(tmp_path, monkeypatch):
    """What follows a dot is a suffix only where it is one of weights or predictions."""
    assert name_systems([tmp_path / "lr0.1", tmp_path / "lr0.2"]) == ["lr0.1", "lr0.2"]
    assert name_systems([tmp_path / "spiga.json", tmp_path / "spiga.csv"]) == ["spiga.json", "spiga.csv"]
    files = [tmp_path / name for name in ("a/s.json", "a/s.csv", "b/s.json")]
    assert name_systems(files) == ["a-s.json", "a-s.csv", "b-s.json"]
    assert name_systems([Path("/"), tmp_path / "spiga.NPZ"]) == ["root", "spiga"]
    monkeypatch.chdir(tmp_path)
    assert name_systems([Path(".."), Path("x/../best.safetensors")]) == [tmp_path.parent.name, "best"]
    with pytest.raises(InputError, match="expected different files, got one twice"):
        name_systems([tmp_path / "spiga.json", Path("spiga.json")])


def test_what_makes_no_sense_is_refused_and_nothing_written(files, small_run, tmp_path):
    out = ("--out", tmp_path / "out")
    good = files / "good.npz"
    assert iact("evaluate", *out).said("--weights or --predictions, got neither")
    assert iact("evaluate", "--predictions", good, good, *out).said("expected different files")
    assert iact("evaluate", "--predictions", good, "--thresholds", 10, 10, *out).said("each once")
    for threshold in (0, "nan", 1e9):  # before anything is read
        said = iact("evaluate", "--predictions", files / "no.npz", "--thresholds", 8, threshold, *out).said
        assert said("thresholds: expected percent above zero, at most 1000, got")
    assert iact("evaluate", "--predictions", good, "--thresholds", 10, 10.00001, *out).said("each once")  # one fr_0.1
    assert iact("evaluate", "--predictions", tmp_path / "no.json", *out).said("no.json: no such file")
    assert iact("evaluate", "--weights", small_run, "--boxes", "rectangle", *out).said("gives no rectangle")
    assert iact("evaluate", "--weights", small_run, "--detector-model", good, *out).said("--boxes detector beside it")
    np.savez(tmp_path / "other.npz", landmarks=np.zeros((COUNT, 98, 2)))
    both = ("--predictions", good, tmp_path / "other.npz")
    assert iact("evaluate", *both, *out).said("expected systems with the same landmarks and faces")
    assert not (tmp_path / "out").exists()


def test_a_report_never_replaces_what_it_is_about(evaluated, tmp_path):
    given = tmp_path / "predictions.csv"
    given.write_bytes((evaluated[0] / "good/predictions.csv").read_bytes())
    before = given.read_bytes()
    assert iact("evaluate", "--predictions", given, "--out", tmp_path).said("would have its report replace")
    assert iact("evaluate", "--predictions", given, "--out", given).said("out: expected a folder, got the file")
    other = tmp_path / "tables.md.csv"
    other.write_bytes(before)
    both = ("--predictions", given, other, "--out", tmp_path / "out")
    assert iact("evaluate", *both).said("the folder of tables.md cannot be")
    assert given.read_bytes() == before and {path.name for path in tmp_path.iterdir()} == {given.name, other.name}


def test_names_that_are_not_utf8_or_are_markdown_are_written(evaluated, tmp_path):
    """Names of files may be any bytes."""
    rows = (evaluated[0] / "good/predictions.csv").read_bytes()
    for name in ("caf\udce9 |*.csv", "b<i>.csv"):
        (tmp_path / name).write_bytes(rows)
    ended = iact("evaluate", "--predictions", *sorted(tmp_path.glob("*.csv")), "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    table = (tmp_path / "out/tables.md").read_bytes().decode(errors="surrogateescape")
    assert "| **caf\udce9 \\|\\*** | " in table and "| **b\\<i>** | " in table


def test_subsets_of_a_subset_stand_in_no_published_column():
    faces = points_of(WFLW, "occlusion", ["blur", "occlusion"])
    table = format_tables({"ours": report_of(faces, 1, data_set="wflw")})
    (row,) = [line for line in table.splitlines() if line.startswith("| **ours** | -")]
    numbers = row.split(" | ")[5:]
    assert numbers[5] != "-" and [one for one in numbers if one.strip(" |") != "-"] == [numbers[5]]
