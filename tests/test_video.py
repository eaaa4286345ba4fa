"""Landmarks for videos: what is written, and when."""

import csv
import json
import signal
import weakref

import cv2
import numpy as np
import pytest
from made_clips import Camera, Scene, read_clip, square, turn_clip, write_clip

from iact.data.synthetic import draw_face
from iact.data.w300 import read_w300
from iact.geometry import landmark_box
from iact.layouts import W300
from iact.predictor import Predictor
from iact.video import Frame, Video, predict_video
from iact.video.outputs import Outputs
from iact.video.tracking import overlap


def grey(frames: int, width: int = 160, height: int = 120) -> list[np.ndarray]:
    return [np.full((height, width, 3), 100 + i, np.uint8) for i in range(frames)]


@pytest.fixture
def clip(tmp_path):
    """Twelve frames of 160 x 120 px at 25 a second."""
    return write_clip(tmp_path / "my clip.mp4", grey(12))


def test_a_video_of_a_face_through_the_network(small_run, tmp_path):
    image, landmarks, _ = draw_face(0, 0, W300)
    box = landmark_box(landmarks)
    source = write_clip(tmp_path / "face.mp4", [np.roll(image, 2 * step, axis=1) for step in range(5)])
    predictor = Predictor.from_pretrained(small_run, device="cpu", detector=lambda image: box[None])
    said = predict_video(predictor, source, tmp_path / "out", formats=("json", "csv"), smooth=False)
    assert said == f"5 frames, 1 face followed, into {tmp_path / 'out'}"
    written = json.loads((tmp_path / "out/landmarks.json").read_text())
    assert written["layout"] == "300w" and written["video"] == str(source) and written["frames_per_second"] == 25
    assert written["times"] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
    expected = predictor(read_clip(source)[0])[0]
    np.testing.assert_allclose(written["frames"][0][0]["landmarks"], expected.landmarks, atol=1e-3)
    np.testing.assert_allclose(written["frames"][0][0]["scores"], expected.scores, atol=1e-4)


def test_a_real_face_is_found_by_the_detector_and_followed(small_run, real_data, tmp_path):
    record = read_w300(real_data / "300w", "common").records[3]
    image = record.image.read()
    source = write_clip(tmp_path / "real.mp4", [np.roll(image, 3 * step, axis=1) for step in range(6)])
    predict_video(Predictor.from_pretrained(small_run, device="cpu"), source, tmp_path / "out", overlays=False)
    frames = json.loads((tmp_path / "out/landmarks.json").read_text())["frames"]
    assert [[face["id"] for face in faces] for faces in frames] == [[0]] * 6
    assert overlap(np.array(frames[0][0]["box"]), landmark_box(record.landmarks)) > 0.5


def test_what_the_files_hold(clip, tmp_path):
    scene = Scene(square(20, 30), square(90, 40))
    said = predict_video(scene, clip, tmp_path / "out", formats=("json", "csv"))
    assert said == f"12 frames, 2 faces followed, into {tmp_path / 'out'}"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"my clip.mp4", "landmarks.json", "landmarks.csv"}
    frames = json.loads((tmp_path / "out/landmarks.json").read_text())["frames"]
    assert [[face["id"] for face in faces] for faces in frames] == [[0, 1]] * 12
    with (tmp_path / "out/landmarks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and [row["frame"] for row in rows[:3]] == ["0", "0", "1"]
    last = frames[-1][1]
    assert (rows[-1]["id"], float(rows[-1]["time"])) == ("1", pytest.approx(11 / 25, abs=1e-3))
    assert [float(rows[-1][name]) for name in ("x_0", "y_0")] == last["landmarks"][0]
    assert float(rows[-1]["score_67"]) == last["scores"][67] and float(rows[-1]["box_x1"]) == last["box"][2]


def test_the_overlay_has_the_rate_and_size_of_the_video_and_landmarks_on_it(clip, tmp_path):
    predict_video(Scene(square(60, 40)), clip, tmp_path / "out")
    drawn, plain = read_clip(tmp_path / "out/my clip.mp4"), read_clip(clip)
    assert cv2.VideoCapture(str(tmp_path / "out/my clip.mp4")).get(cv2.CAP_PROP_FPS) == 25
    assert [frame.shape for frame in drawn] == [(120, 160, 3)] * 12
    changed = np.abs(drawn[5].astype(int) - plain[5]).max(axis=2) > 40
    assert changed[40:81, 60:101].mean() > 0.05  # landmarks
    assert changed[20:39, 58:80].any() and not changed[:, 120:].any()  # the number; nothing elsewhere


def test_frames_without_a_face_are_counted(clip, tmp_path):
    said = predict_video(Scene(), clip, tmp_path / "out", overlays=False)
    assert said.endswith(f"12 frames, 0 faces followed, into {tmp_path / 'out'}; 12 frames without a face")
    assert json.loads((tmp_path / "out/landmarks.json").read_text())["frames"] == [[]] * 12


def test_smoothing_steadies_and_can_be_left_out(clip, tmp_path):
    class Shaky(Scene):
        def __call__(self, image, boxes=None, flip_test=False):
            self.faces = [square(60 + image[0, 0, 0] % 2, 40)]  # the frames' grey levels alternate
            return super().__call__(image, boxes)

    paths = []
    for smooth in (True, False):
        predict_video(Shaky(), clip, tmp_path / str(smooth), smooth=smooth, overlays=False)
        frames = json.loads((tmp_path / str(smooth) / "landmarks.json").read_text())["frames"]
        paths.append([frame[0]["landmarks"][0][0] for frame in frames])
    steady, shaky = (np.abs(np.diff(path)).mean() for path in paths)
    assert shaky > 0.5 and steady < 0.6 * shaky


def test_given_boxes_are_used_in_every_frame(small_run, clip, tmp_path):
    predictor = Predictor.from_pretrained(small_run, device="cpu")
    boxes = [[10, 10, 70, 80], [80, 10, 150, 90]]
    predict_video(predictor, clip, tmp_path / "out", boxes=boxes, overlays=False, flip_test=True)
    frames = json.loads((tmp_path / "out/landmarks.json").read_text())["frames"]
    assert [[face["box"] for face in faces] for faces in frames] == [boxes] * 12
    assert [[face["id"] for face in faces] for faces in frames] == [[0, 1]] * 12


def test_a_video_that_was_recorded_upright_is_turned(tmp_path):
    frames = grey(4)
    frames[0][:20, :20] = (255, 0, 0)
    turn_clip(write_clip(tmp_path / "phone.mp4", frames))
    video = Video(tmp_path / "phone.mp4")
    assert video.size == (120, 160) and next(iter(video)).image[5, 110, 0] > 200  # clockwise: now at the upper right
    predict_video(Scene(square(30, 30)), tmp_path / "phone.mp4", tmp_path / "out")
    assert read_clip(tmp_path / "out/phone.mp4")[0].shape == (160, 120, 3)


def test_the_overlay_of_an_odd_size_loses_the_last_column_and_row(monkeypatch, tmp_path):
    monkeypatch.setattr(cv2, "VideoCapture", Camera(3, width=161, height=121))
    predict_video(Scene(square(30, 30)), 0, tmp_path / "out")
    monkeypatch.undo()
    assert read_clip(tmp_path / "out/camera_0.mp4")[0].shape == (120, 160, 3)


def test_the_overlay_keeps_time_where_the_source_does_not(clip, tmp_path):
    with Outputs(tmp_path / "out", W300, Video(clip), ("json",), overlays=True) as outputs:
        for time in (0, 0.04, 0.4, 0.44):
            outputs.add(Frame(time, np.zeros((120, 160, 3), np.uint8)), [])
    assert len(read_clip(tmp_path / "out/my clip.mp4")) == 12
    assert json.loads((tmp_path / "out/landmarks.json").read_text())["times"] == [0, 0.04, 0.4, 0.44]


@pytest.mark.parametrize(
    "times, shown",
    [
        ((0, 0.1, 2, 2.1), [60] + 19 * [100] + [140, 180]),
        ((0, 60, 60.1, 60.2), 100 * [60] + [100, 140, 180]),  # a still of 10 s, and no more of them
        ((0, 0.01, 0.02, 0.4), [60, 100, 140, 140, 180]),
    ],
)
def test_the_overlay_shows_a_frame_until_the_next_is_due(times, shown, tmp_path):
    video = Video(write_clip(tmp_path / "slow.mp4", grey(4), rate=10))
    with Outputs(tmp_path / "out", W300, video, (), overlays=True) as outputs:
        for time, level in zip(times, (60, 100, 140, 180), strict=True):
            outputs.add(Frame(time, np.full((120, 160, 3), level, np.uint8)), [])
    assert [round(frame.mean() / 20) * 20 for frame in read_clip(tmp_path / "out/slow.mp4")] == shown


def test_a_phone_may_be_turned_on_the_way(small_run, monkeypatch, tmp_path):
    def at_frame(index: int) -> None:
        camera.shape = (480, 640, 3) if index < 3 else (640, 480, 3)

    def detector(image: np.ndarray) -> np.ndarray:
        return (square(520, 200, 100) if image.shape[1] == 640 else square(200, 30, 100))[None]

    camera = Camera(6, at_frame)
    monkeypatch.setattr(cv2, "VideoCapture", camera)
    predictor = Predictor.from_pretrained(small_run, device="cpu", detector=detector)
    assert predict_video(predictor, 0, tmp_path / "out").startswith("6 frames")
    frames = json.loads((tmp_path / "out/landmarks.json").read_text())["frames"]
    centres = [np.mean(faces[0]["landmarks"], axis=0) for faces in frames]
    assert all(x > 500 for x, _ in centres[:3]) and all(x < 310 and y < 140 for x, y in centres[3:])


def test_a_camera_runs_until_it_ends(monkeypatch, tmp_path):
    monkeypatch.setattr(cv2, "VideoCapture", Camera(5))
    said = predict_video(Scene(square(30, 30)), 1, tmp_path / "out")
    assert said.startswith("5 frames, 1 face followed") and "stopped" not in said
    written = json.loads((tmp_path / "out/landmarks.json").read_text())
    assert written["video"] == "camera:1" and written["frames_per_second"] == 30 and len(written["frames"]) == 5
    assert (np.diff(written["times"]) >= 0).all() and (tmp_path / "out/camera_1.mp4").stat().st_size > 500


def test_ctrl_c_keeps_what_was_done(monkeypatch, clip, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    camera = Camera(50, lambda index: signal.raise_signal(signal.SIGINT) if index == 7 else None)
    monkeypatch.setattr(cv2, "VideoCapture", camera)
    assert predict_video(Scene(), 0, tmp_path / "camera").startswith("8 frames")
    monkeypatch.undo()
    calls = iter(range(100))

    class Interrupted(Scene):
        def __call__(self, image, boxes=None, flip_test=False):
            if next(calls) == 3:
                signal.raise_signal(signal.SIGINT)
            return super().__call__(image, boxes)

    said = predict_video(Interrupted(square(30, 30)), clip, tmp_path / "file")
    assert said.startswith("4 frames") and said.endswith("stopped before the end of the video")
    assert len(json.loads((tmp_path / "file/landmarks.json").read_text())["frames"]) == 4
    assert len(read_clip(tmp_path / "file/my clip.mp4")) == 4 and signal.getsignal(signal.SIGINT) is before


def test_frames_do_not_stay_in_memory(monkeypatch, tmp_path):
    frames, most = [], 0

    def at_frame(_) -> None:
        nonlocal most
        most = max(most, sum(frame() is not None for frame in frames))

    class Watching(Scene):
        def __call__(self, image, boxes=None, flip_test=False):
            frames.append(weakref.ref(image))
            return super().__call__(image, boxes)

    monkeypatch.setattr(cv2, "VideoCapture", Camera(20, at_frame))
    predict_video(Watching(square(30, 30)), 0, tmp_path / "out", formats=("json", "csv"))
    assert len(frames) >= 20 and most <= 4  # the detector and the tracker see the same ones
