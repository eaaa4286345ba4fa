"""The video benchmark: its truth, its measures, and a whole run in small."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from bench_video import detector_boxes, lag  # noqa: E402
from made_video import MadeVideo  # noqa: E402

FACE = np.array([(60, 50), (140, 60), (100, 150), (70, 120)], np.float64)


def spots(points: np.ndarray) -> np.ndarray:
    """A dark picture with a round bright spot at each point."""
    y, x = np.mgrid[:200, :200]
    distances = ((np.stack([x, y], axis=2) - points[:, None, None]) ** 2).sum(axis=3)
    grey = 20 + 200 * np.exp(-distances / (2 * 4.0**2)).sum(axis=0)
    return np.repeat(grey[:, :, None].astype(np.uint8), 3, axis=2)


def centre_of_light(frame: np.ndarray, point: np.ndarray, reach: int = 20) -> np.ndarray:
    left, top = np.round(point).astype(int) - reach
    light = frame[top : top + 2 * reach + 1, left : left + 2 * reach + 1, 0].astype(float) - 20
    moments = cv2.moments(np.clip(light, 3, None) - 3)
    return np.array([left + moments["m10"] / moments["m00"], top + moments["m01"] / moments["m00"]])


def test_the_truth_is_where_the_frames_have_the_landmarks():
    video = MadeVideo(spots(FACE), FACE, frames=30, face_size=150, noise=0)
    assert np.ptp(video.truth, axis=0).max() > 20  # it moves
    for frame, truth in list(zip(video, video.truth, strict=True))[::4]:
        for point in truth:
            assert np.abs(centre_of_light(frame, point) - point).max() < 0.1


def test_the_face_rests_at_first_then_moves_smoothly():
    video = MadeVideo(spots(FACE), FACE, frames=90)
    assert (video.truth[: video.resting + 1] == video.truth[0]).all()
    accelerations = np.linalg.norm(np.diff(video.truth, n=2, axis=0), axis=2)
    assert 0.5 < accelerations.max() < 10  # px, of a face 200 px wide
    first, second = list(video)[:2]
    assert np.std(first.astype(float) - second) == pytest.approx(4 * np.sqrt(2), rel=0.2)


@pytest.mark.parametrize("frames", [0, 1, 3])
def test_a_delay_is_measured_in_milliseconds(frames):
    time = np.arange(200)[:, None, None] / 30
    truth = FACE + 50 * np.sin(1.3 * time) * np.array([1.0, 0.3])
    late = FACE + 50 * np.sin(1.3 * (time - frames / 30)) * np.array([1.0, 0.3]) + 2  # and wrong, constantly
    assert lag(late, truth) == pytest.approx(1000 * frames / 30, rel=0.03, abs=0.5)


def test_the_pretended_detector_errs_about_the_true_boxes():
    boxes = np.tile([100.0, 100, 180, 200], (4000, 1))
    found = detector_boxes(boxes, seed=0)
    centre, side = (found[:, :2] + found[:, 2:]) / 2, found[:, 2] - found[:, 0]
    np.testing.assert_allclose(centre.mean(axis=0), (140, 150), atol=1)
    np.testing.assert_allclose(np.std(centre, axis=0), 6, rtol=0.1)
    assert np.median(side) == pytest.approx(100, abs=1) and np.allclose(side, found[:, 3] - found[:, 1])


def test_a_whole_run(small_run, tmp_path):
    command = [sys.executable, str(BENCHMARKS / "bench_video.py"), "--weights", str(small_run), "--device", "cpu"]
    settings = ["--videos", "1", "--frames", "12", "--threads", "1", "--out", str(tmp_path)]
    ended = subprocess.run([*command, *settings], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    written = json.loads((tmp_path / "video_drawn_cpu.json").read_text())
    assert (written["videos"], written["frames"], written["faces"]) == (1, 12, "drawn") and "commit" in written[
        "machine"
    ]
    assert [(row["boxes"], row["smoothed"]) for row in written["rows"]] == [
        (boxes, smooth) for boxes in ("true boxes", "detector", "tracker") for smooth in (False, True)
    ]
    plain, smoothed = written["rows"][:2]
    assert plain["frames_per_second"] == smoothed["frames_per_second"] > 0
    assert 0 < smoothed["flicker_resting"] < plain["flicker_resting"] and plain["nme_moving"] > 0
