"""Faces followed from frame to frame."""

import numpy as np
import pytest
from made_clips import Scene, square

from iact.errors import InputError
from iact.geometry import landmark_box
from iact.predictor import Predictor
from iact.video import Tracker
from iact.video.tracking import DETECT_EVERY, PATIENCE

IMAGE = np.zeros((240, 320, 3), np.uint8)


def ids(tracker: Tracker) -> list[int]:
    return [face.id for face in tracker(IMAGE)]


def test_a_face_keeps_its_number_and_needs_the_detector_once():
    scene = Scene(square(20, 20))
    tracker = Tracker(scene)
    for step in range(DETECT_EVERY):
        scene.faces = [square(20 + 10 * step, 20 + 3 * step)]
        (face,) = tracker(IMAGE)
        assert face.id == 0
        np.testing.assert_allclose(landmark_box(face.landmarks), scene.faces[0])
    assert scene.detections == 1


def test_the_box_of_a_frame_is_that_around_the_landmarks_before():
    scene = Scene(square(20, 20))
    tracker = Tracker(scene)
    tracker(IMAGE)
    scene.faces = [square(30, 20)]
    np.testing.assert_allclose(tracker(IMAGE)[0].box, square(20, 20))
    np.testing.assert_allclose(tracker(IMAGE)[0].box, square(30, 20))


def test_new_faces_are_found_every_few_frames():
    scene = Scene(square(20, 20))
    tracker = Tracker(scene, detect_every=5)
    assert ids(tracker) == [0]
    scene.faces.append(square(200, 100))
    assert [ids(tracker) for _ in range(5)] == [[0]] * 4 + [[0, 1]]


def test_without_a_face_every_frame_is_searched():
    scene = Scene()
    tracker = Tracker(scene)
    assert [ids(tracker) for _ in range(4)] == [[]] * 4 and scene.detections == 4


def test_faces_cross_without_swapping_numbers():
    scene, tracker = Scene(square(20, 20), square(260, 120)), None
    tracker = Tracker(scene)
    for step in range(25):
        scene.faces = [square(20 + 10 * step, 20), square(260 - 10 * step, 120)]
        found = tracker(IMAGE)
        assert [face.id for face in found] == [0, 1]
        np.testing.assert_allclose(landmark_box(found[0].landmarks), scene.faces[0])


def test_a_face_that_jumps_is_detected_again_at_once_as_a_new_one():
    scene = Scene(square(20, 20))
    tracker = Tracker(scene)
    tracker(IMAGE)
    scene.faces = [square(200, 100)]
    (face,) = tracker(IMAGE)
    np.testing.assert_allclose(landmark_box(face.landmarks), scene.faces[0])
    assert face.id == 1 and scene.detections == 2


@pytest.mark.parametrize(("gap", "number"), [(1, 0), (PATIENCE, 0), (PATIENCE + 1, 1)])
def test_a_face_that_comes_back_soon_enough_keeps_its_number(gap, number):
    scene = Scene(square(20, 20))
    tracker = Tracker(scene)
    tracker(IMAGE)
    scene.faces = []
    assert [ids(tracker) for _ in range(gap)] == [[]] * gap
    scene.faces = [square(26, 22)]
    assert ids(tracker) == [number]


def test_unsure_landmarks_count_only_where_the_detector_sees_a_face():
    scene = Scene(square(20, 20), square(200, 100), score=0.3)
    tracker = Tracker(scene)
    assert [ids(tracker) for _ in range(3)] == [[0, 1]] * 3 and scene.detections == 3
    scene.seen = [1]
    assert ids(tracker) == [1]


def test_a_sure_face_is_followed_though_the_detector_misses_it():
    scene = Scene(square(20, 20))
    tracker = Tracker(scene, detect_every=2)
    tracker(IMAGE)
    scene.seen = []
    assert [ids(tracker) for _ in range(10)] == [[0]] * 10


def test_two_tracks_on_one_face_become_the_older_one():
    scene = Scene(square(20, 20), square(120, 20))
    tracker = Tracker(scene, detect_every=100)
    tracker(IMAGE)
    for x in range(110, 20, -10):  # the second comes to lie on the first, which it covers
        scene.faces = [square(20, 20), square(x, 20)]
        tracker(IMAGE)
    scene.faces = [square(22, 20)]
    assert ids(tracker) == [0] and ids(tracker) == [0]


def test_a_face_that_leaves_the_picture_is_let_go():
    scene = Scene(square(240, 20))
    tracker = Tracker(scene)
    for x in range(240, 345, 15):
        scene.faces = [square(x, 20)]
        tracker(IMAGE)
    scene.faces = []
    assert ids(tracker) == []


def test_faces_whose_landmarks_lie_on_a_line_are_followed_too():
    scene = Scene()
    tracker = Tracker(scene)
    for step in range(DETECT_EVERY):
        scene.faces = [np.array([20.0 + 5 * step, 50, 80 + 5 * step, 50]), np.array([40.0, 100, 40, 150 + step])]
        assert ids(tracker) == [0, 1]
    assert scene.detections == 1


def test_landmarks_in_one_point_are_searched_in_every_frame():
    scene = Scene(np.array([30.0, 50, 30, 50]))
    tracker = Tracker(scene)
    assert [ids(tracker) for _ in range(3)] == [[0], [1], [2]] and scene.detections == 3


def test_in_a_frame_of_another_size_faces_are_followed_where_it_has_something():
    scene = Scene(square(20, 20), square(260, 60))
    tracker = Tracker(scene)
    assert ids(tracker) == [0, 1]
    turned = np.zeros((320, 240, 3), np.uint8)
    scene.faces = [square(20, 20)]
    assert [face.id for face in tracker(turned)] == [0] and scene.detections == 1
    scene.faces = [square(20, 260)]  # where the first size had nothing
    assert [face.id for face in tracker(turned)] == [2] and scene.detections == 2
    assert ids(tracker) == [3]


@pytest.mark.parametrize("image", [None, np.zeros(5, np.uint8), np.zeros((40, 40), np.uint8)])
def test_what_is_no_image_is_refused_and_the_faces_keep_their_numbers(small_run, image):
    predictor = Predictor.from_pretrained(small_run, device="cpu", detector=lambda image: square(60, 60)[None])
    tracker = Tracker(predictor, least_score=0)
    assert ids(tracker) == [0]
    with pytest.raises(InputError, match="image: expected"):
        tracker(image)
    assert ids(tracker) == [0]


def test_a_predictor_is_driven_as_it_is(small_run):
    boxes = np.array([square(20, 20, 80), square(150, 90, 90)])
    predictor = Predictor.from_pretrained(small_run, device="cpu", detector=lambda image: boxes)
    tracker, noise = Tracker(predictor, least_score=0), np.random.default_rng(0)
    image = noise.integers(0, 255, (240, 320, 3), dtype=np.uint8)
    first, second = tracker(image), tracker(image)
    assert [face.id for face in first] == [face.id for face in second] == [0, 1]
    again = predictor(image, [landmark_box(face.landmarks) for face in first])
    for face, expected in zip(second, again, strict=True):
        np.testing.assert_allclose(face.landmarks, expected.landmarks)
    with pytest.raises(InputError, match="RGB uint8"):
        tracker(image.astype(np.float32))
