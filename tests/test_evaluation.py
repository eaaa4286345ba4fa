import csv
import dataclasses
import json

import numpy as np
import pytest

from iact import metrics
from iact.data.faces import Face, Faces
from iact.errors import InputError
from iact.evaluation import Protocol, evaluate_predictions, format_report, write_reports
from iact.layouts import COFW, W300, WFLW

FILES = ["ced.png", "landmark_errors.png", "metrics.json", "per_face.csv", "predictions.csv", "tables.md", "worst.jpg"]


class Grey:
    """A picture of nothing."""

    def read(self):
        return np.full((100, 100, 3), 90, np.uint8)


def write_report(report, folder):
    write_reports({"ours": report}, folder)


def make_faces(count=40, layout=WFLW, missing=()):
    truth = np.random.default_rng(0).uniform(0, 100, (count, layout.num_landmarks, 2))
    truth[:, list(layout.eye_corners)] = (20, 30), (80, 30)  # 60 px apart
    truth[:, list(layout.left_pupil)], truth[:, list(layout.right_pupil)] = (35, 30), (75, 30)  # 40 px apart
    tags = [frozenset({"pose"} if index < 10 else {"blur", "pose"} if index < 15 else ()) for index in range(count)]
    records = [
        Face(f"face {index}, left", Grey(), truth[index], f"list.txt:{index}", tags=tags[index])
        for index in range(count)
    ]
    return Faces(layout, "test", tuple(records), missing)


def with_landmarks(faces, index, landmarks):
    records = list(faces.records)
    records[index] = dataclasses.replace(records[index], landmarks=landmarks)
    return dataclasses.replace(faces, records=tuple(records))


def profile(face):
    """The face seen from the side: one eye corner hides the other; the pupils stay apart."""
    landmarks = face.landmarks.copy()
    landmarks[72] = landmarks[60]
    return landmarks


def protocol_of(faces):
    return Protocol.of(faces, data_set="wflw", box_rule="landmark box x 1.25", flip_test=False, weights="final epoch 3")


def truth_of(faces):
    return np.stack([face.landmarks for face in faces.records])


def evaluate(faces, shift):
    """Every landmark of face i predicted `shift[i]` px to the right."""
    predicted = truth_of(faces)
    predicted[..., 0] += np.asarray(shift, float)[:, None]
    return evaluate_predictions(predicted, faces, protocol_of(faces))


@pytest.fixture(scope="module")
def report():
    return evaluate(make_faces(missing=("2460 faces are not in the folder",)), 0.1 + 0.3 * np.arange(40))


def test_numbers_by_hand(report):
    numbers = report.to_json()
    shift = 0.1 + 0.3 * np.arange(40)  # 0.1 to 11.8 px; 10 percent of 60 px is 6 px: 20 faces are within
    assert report.errors["interocular"] == pytest.approx(100 * shift / 60)
    assert numbers["nme_box"] == pytest.approx((100 * shift / metrics.box_size(truth_of(report.faces))).mean())
    assert numbers["nme_interocular"] == pytest.approx(100 * shift.mean() / 60)
    assert numbers["nme_interpupil"] == pytest.approx(100 * shift.mean() / 40)
    assert numbers["fr_0.1"] == 50
    assert numbers["auc_0.1"] == pytest.approx(np.maximum(0, 1 - shift / 6).mean(), abs=1e-3)
    assert numbers["percentiles"]["50"] == pytest.approx(100 * np.median(shift) / 60)
    assert numbers["percentiles"]["99"] == pytest.approx(np.percentile(100 * shift / 60, 99))
    assert numbers["faces"] == 40


def test_intervals_hold_their_numbers(report):
    numbers = report.to_json()
    metric_names = [f"{metric}{suffix}" for metric in ("fr_0.1", "auc_0.1") for suffix in ("", "_interpupil", "_box")]
    assert set(numbers["intervals_95"]) == {"nme_interocular", "nme_interpupil", "nme_box", *metric_names}
    for key, (low, high) in numbers["intervals_95"].items():
        assert low < numbers[key] < high or low == numbers[key] == high  # nobody fails by the box


def test_subsets_are_the_tags(report):
    subsets = report.to_json()["subsets"]
    assert {tag: results["faces"] for tag, results in subsets.items()} == {"blur": 5, "pose": 15}
    assert subsets["blur"]["nme_interocular"] == pytest.approx(report.errors["interocular"][10:15].mean())
    assert subsets["pose"]["nme_interpupil"] == pytest.approx(report.errors["interpupil"][:15].mean())
    assert subsets["pose"]["fr_0.1"] == 0


def test_worst_faces_come_first(report):
    worst = report.to_json()["worst"]
    assert [face["name"] for face in worst[:2]] == ["face 39, left", "face 38, left"]
    assert worst[0]["nme_interocular"] == pytest.approx(100 * 11.8 / 60) and len(worst) == 24


def test_errors_per_landmark():
    faces = make_faces(4)
    predicted = truth_of(faces)
    predicted[:, 7, 1] += (3, 3, 6, 12)
    report = evaluate_predictions(predicted, faces, protocol_of(faces))
    assert report.per_landmark[7] == pytest.approx(100 * 6 / 60)
    assert not np.delete(report.per_landmark, 7).any()


def test_the_protocol_goes_with_the_numbers(report):
    protocol = report.to_json()["protocol"]
    assert protocol["normalisers"][:2] == (
        "inter-ocular: landmarks 60 and 72",
        "inter-pupil: landmark 96 and landmark 97",
    )
    assert protocol["faces"] == 40 and protocol["flip_test"] is False and protocol["split"] == "test"
    text = format_report(report)
    for part in ("2460 faces are not", "final epoch 3", "landmark box x 1.25", "landmarks 60 and 72", "40 faces"):
        assert part in text
    for line in ("blur", "pose", "all"):
        assert f"\n  {line} " in text


def test_text_shows_the_numbers_of_the_json(report):
    numbers = report.to_json()
    low, high = numbers["intervals_95"]["nme_interocular"]
    text = format_report(report)
    assert f"{numbers['nme_interocular']:.2f} [{low:.2f}, {high:.2f}]" in text
    assert f"{numbers['auc_0.1']:.4f} [" in text


def test_a_profile_face_is_left_out_counted_and_named():
    whole = make_faces(6)
    faces = with_landmarks(whole, 2, profile(whole.records[2]))
    shift = np.array([1, 2, 50, 3, 4, 5])
    report = evaluate(faces, shift)
    numbers = report.to_json()
    assert numbers["left_out"] == {"interocular": ["face 2, left"], "interpupil": [], "box": []}
    assert numbers["nme_interocular"] == pytest.approx(100 * np.delete(shift, 2).mean() / 60)
    assert numbers["nme_interpupil"] == pytest.approx(100 * shift.mean() / 40)
    assert report.per_landmark == pytest.approx(np.full(98, 100 * np.delete(shift, 2).mean() / 60))
    assert "face 2, left" not in [face["name"] for face in numbers["worst"]]
    assert numbers["faces"] == 6 and "1 by interocular, 0 by interpupil" in format_report(report)


def test_a_subset_in_which_no_face_counts_has_no_numbers(tmp_path):
    whole = make_faces(11)
    record = dataclasses.replace(whole.records[0], landmarks=profile(whole.records[0]), tags=frozenset({"alone"}))
    faces = dataclasses.replace(whole, records=(record, *whole.records[1:]))
    report = evaluate(faces, np.ones(11))
    alone = report.to_json()["subsets"]["alone"]
    assert alone["faces"] == 1 and alone["nme_interocular"] is None and alone["intervals_95"]["auc_0.1"] is None
    assert alone["nme_interpupil"] == pytest.approx(2.5)
    write_report(report, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["subsets"]["alone"]["fr_0.1"] is None
    assert "alone" in format_report(report)


def test_every_number_can_be_computed_again_from_the_csv(tmp_path):
    whole = make_faces(30)
    faces = with_landmarks(whole, 3, profile(whole.records[3]))
    write_report(evaluate(faces, np.random.default_rng(0).lognormal(1, 0.7, 30)), tmp_path)
    numbers = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    with (tmp_path / "per_face.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"face {index}, left" for index in range(30)]
    assert rows[3]["nme_interocular"] == "" and rows[3]["nme_interpupil"] != ""
    ocular = np.array([float(row["nme_interocular"]) for row in rows if row["nme_interocular"]])
    assert numbers["nme_interocular"] == ocular.mean()
    assert numbers["nme_interpupil"] == np.mean([float(row["nme_interpupil"]) for row in rows])
    assert numbers["fr_0.1"] == metrics.failure_rate(ocular, 10)
    assert numbers["auc_0.1"] == metrics.auc(ocular, 10)
    blur = [float(row["nme_interocular"]) for row in rows if "blur" in row["tags"].split()]
    assert numbers["subsets"]["blur"]["nme_interocular"] == np.mean(blur)


def test_neither_truth_nor_prediction_is_clamped_or_truncated():
    """Landmarks beyond the picture count where they are, and halves of pixels are not lost."""
    faces = make_faces(1)
    landmarks = faces.records[0].landmarks.copy()
    landmarks[0] = (-40.5, 140.25)  # the picture is 100 px wide and high
    faces = with_landmarks(faces, 0, landmarks)
    truth = truth_of(faces)
    about = (faces, protocol_of(faces))
    assert evaluate_predictions(truth, *about).results["nme_interocular"] == 0
    clamped = evaluate_predictions(truth.clip(0, 99), *about)
    assert clamped.per_landmark[0] == pytest.approx(100 * np.hypot(40.5, 41.25) / 60)
    assert evaluate_predictions(truth.astype(int), *about).results["nme_interocular"] > 0.5


def test_landmarks_of_ones_own_are_named_and_no_number_said_twice():
    names = ("left_eye", "right_eye", *(f"dot {index}" for index in range(27)))
    own = dataclasses.replace(COFW, landmarks=names, eye_corners=(0, 1), left_pupil=(0,), right_pupil=(1,))
    report = evaluate(make_faces(2, own), [1, 2])
    assert "nme_interpupil" not in report.results and "NME pupil" not in format_report(report)
    assert report.protocol.normalisers[0] == "inter-ocular: landmarks left_eye and right_eye"
    pupils = protocol_of(make_faces(1, dataclasses.replace(own, left_pupil=(2, 3)))).normalisers[1]
    assert pupils == "inter-pupil: mean of landmarks dot 0, dot 1 and landmark right_eye"


def test_written_files(tmp_path, report):
    write_report(report, tmp_path / "new" / "folder")
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == FILES
    written = json.loads((tmp_path / "new" / "folder" / "metrics.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report.to_json()))


def test_a_failed_report_leaves_the_old_one_whole(tmp_path, report, monkeypatch):
    write_report(report, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("iact.evaluation.writing.plot_landmark_errors", full)
    with pytest.raises(InputError, match="cannot be written .No space left"):
        write_report(dataclasses.replace(report, tags=report.tags[::-1]), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_folder_that_is_a_file_is_named(tmp_path, report):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="out: the report cannot be written"):
        write_report(report, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_pupils_of_several_landmarks_are_spelled_out():
    faces = make_faces(1, dataclasses.replace(COFW, left_pupil=(10, 12)))
    assert protocol_of(faces).normalisers[1] == "inter-pupil: mean of landmarks 10, 12 and landmark 17"


def test_bad_input_is_named():
    faces = make_faces(3)
    truth, protocol = truth_of(faces), protocol_of(faces)
    with pytest.raises(InputError, match=r"predicted: .*\(3, 98, 2\), got \(2, 98, 2\)"):
        evaluate_predictions(truth[:2], faces, protocol)
    with pytest.raises(InputError, match="predicted: .*nan for landmark 0 of face 0"):
        evaluate_predictions(truth * np.nan, faces, protocol)
    with pytest.raises(InputError, match="none of the 3 faces was found"):
        evaluate_predictions(truth, faces, protocol, found=np.zeros(3, bool))
    with pytest.raises(InputError, match="thresholds: expected percent above zero, at most 1000, got -1"):
        evaluate_predictions(truth, faces, protocol, thresholds=(-1,))
    with pytest.raises(InputError, match="protocol: expected 3 faces, got 4"):
        evaluate_predictions(truth, faces, dataclasses.replace(protocol, faces=4))
    nobody = dataclasses.replace(faces, records=())
    with pytest.raises(InputError, match="at least one face"):
        evaluate_predictions(truth[:0], nobody, protocol_of(nobody))
    alone = dataclasses.replace(faces, records=faces.records[:1])
    alone = with_landmarks(alone, 0, profile(alone.records[0]))
    with pytest.raises(InputError, match="none of the 1 faces found has a usable inter-ocular distance"):
        evaluate_predictions(truth_of(alone), alone, protocol_of(alone))


def test_real_faces_have_usable_normalisers(real_data):
    """The bound for profile faces must not touch ordinary test faces."""
    files = sorted((real_data / "300w/helen/testset").glob("*.pts"))
    truth = np.stack([np.loadtxt(file.read_text().splitlines()[3:-1]) - 1 for file in files])
    assert len(files) == 330
    assert metrics.usable_normaliser(metrics.interocular(truth, W300), truth).all()
    assert metrics.usable_normaliser(metrics.interpupil(truth, W300), truth).all()
