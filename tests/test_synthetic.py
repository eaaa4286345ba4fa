import pickle

import cv2
import numpy as np
import pytest

from iact.data.synthetic import MARGIN, DrawnImage, draw_face, drawing, synthetic_faces
from iact.data.synthetic.shape import Pose, Traits, face_points, layout_weights, project, random_pose, random_traits
from iact.errors import InputError
from iact.geometry import landmark_box
from iact.layouts import COFW, LAYOUTS, W300, WFLW, flip_landmarks

ALL = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


NEUTRAL, FRONT = Traits(), Pose()


def shape_of(layout, traits=NEUTRAL, pose=FRONT):
    return layout_weights(layout) @ project(face_points(traits), pose)[0][:100]


def scenes(count, layout=WFLW, **fields):
    return [DrawnImage(11, index, layout.name, **fields).scene() for index in range(count)]


@ALL
def test_same_numbers_give_the_same_picture_whatever_was_drawn_before(layout):
    first = draw_face(5, 3, layout, 128)
    draw_face(5, 4, layout, 128)
    for one, other in zip(first, draw_face(5, 3, layout, 128), strict=True):
        np.testing.assert_array_equal(one, other)
    image, landmarks, visible = first
    assert image.shape == (128, 128, 3) and image.dtype == np.uint8
    assert landmarks.shape == (layout.num_landmarks, 2) and landmarks.dtype == np.float64
    assert visible.shape == (layout.num_landmarks,) and visible.dtype == bool


def test_seed_split_and_index_each_give_another_face():
    choices = [(0, 0, "train"), (1, 0, "train"), (0, 1, "train"), (0, 0, "val"), (0, 0, "test"), (2, 0, "train")]
    shapes = [DrawnImage(seed, index, "wflw", split=split).scene().landmarks for seed, index, split in choices]
    gaps = [np.abs(a - b).max() for i, a in enumerate(shapes) for b in shapes[:i]]
    assert min(gaps) > 1


@ALL
def test_neutral_face_is_its_own_mirror_image(layout):
    shape = shape_of(layout)
    np.testing.assert_allclose(flip_landmarks(shape, layout, 1), shape, atol=1e-12)


@ALL
def test_mirrored_traits_and_pose_give_the_mirrored_landmarks(layout):
    rng = np.random.default_rng(2)
    for _ in range(20):
        traits, pose = random_traits(rng), random_pose(rng)
        mirrored = traits._replace(lids_left=traits.lids_right, lids_right=traits.lids_left, gaze_x=-traits.gaze_x)
        flipped = shape_of(layout, mirrored, pose._replace(yaw=-pose.yaw, roll=-pose.roll))
        np.testing.assert_allclose(flipped, flip_landmarks(shape_of(layout, traits, pose), layout, 1), atol=1e-9)


def test_layouts_agree_where_they_name_the_same_place():
    rng = np.random.default_rng(3)
    wflw_of_300w = dict(zip(range(17), range(0, 33, 2), strict=True)) | {17: 33, 26: 46, 36: 60, 39: 64, 42: 68, 45: 72}
    wflw_of_300w |= dict(zip(range(27, 36), range(51, 60), strict=True))
    wflw_of_300w |= dict(zip(range(48, 60), range(76, 88), strict=True)) | {62: 90, 66: 94}
    wflw_of_cofw = {0: 33, 1: 46, 8: 60, 10: 64, 11: 68, 9: 72, 16: 96, 17: 97, 20: 54, 21: 57, 22: 76, 23: 82}
    wflw_of_cofw |= {24: 79, 25: 90, 26: 94, 27: 85, 28: 16, 12: 62, 13: 66, 14: 70, 15: 74}
    for _ in range(10):
        traits, pose = random_traits(rng), random_pose(rng)
        wflw = shape_of(WFLW, traits, pose)
        for layout, table in ((W300, wflw_of_300w), (COFW, wflw_of_cofw)):
            shape = shape_of(layout, traits, pose)
            np.testing.assert_allclose(shape[list(table)], wflw[list(table.values())], atol=0.02)


def test_a_300w_face_is_in_the_same_place_as_the_98_point_face():
    """Both layouts have the same outer points, so the same number gives the same picture."""
    for index in range(5):
        image, landmarks, _ = draw_face(0, index, WFLW, 128)
        other, sparse, _ = draw_face(0, index, W300, 128)
        np.testing.assert_allclose(sparse[:17], landmarks[0:33:2], atol=2)
        assert sparse.shape == (68, 2) and other.shape == image.shape


def test_anatomy():
    rng = np.random.default_rng(4)
    for _ in range(200):
        face = shape_of(WFLW, random_traits(rng), Pose(yaw=rng.normal(0, 0.1)))
        down = face[:, 1]
        assert down[[33, 46]].max() < down[96] < down[54] < down[57] < down[79] < down[85] < down[16]
        assert (down[[62, 70]] < down[[66, 74]]).all() and down[90] <= down[94] + 1e-9
        right = face[:, 0]
        assert right[0] < right[60] < right[96] < right[64] < right[54] < right[68] < right[97] < right[72] < right[32]
        assert right[76] < right[88] < right[79] < right[92] < right[82]
        assert np.diff(right[:33]).min() > 0


def test_a_positive_yaw_moves_the_nose_right_and_a_positive_pitch_down():
    front, turned, nodding = (shape_of(WFLW, pose=pose) for pose in (Pose(), Pose(yaw=0.4), Pose(pitch=0.2)))
    assert (turned - turned[[60, 72]].mean(0))[54, 0] > 0.1
    assert nodding[54, 1] - nodding[[60, 72], 1].mean() > front[54, 1] - front[[60, 72], 1].mean() + 0.02


def test_a_turned_head_shows_its_jaw_outside_the_features():
    """The hidden half of the jaw follows the visible edge: no eye corner or mouth corner lies far beyond it."""
    face = shape_of(WFLW, pose=Pose(yaw=np.radians(55)))
    assert face[72, 0] <= face[28:33, 0].max() + 0.02
    assert face[82, 0] <= face[17:33, 0].max() + 0.08
    assert (np.diff(face[:17, 0]) > 0).all()


@ALL
@pytest.mark.parametrize("size", [64, 256])
def test_landmarks_are_finite_and_inside_the_picture(layout, size):
    landmarks = np.array([scene.landmarks for scene in scenes(200, layout, size=size)])
    assert np.isfinite(landmarks).all()
    assert landmarks.min() > -0.3 * size and landmarks.max() < 1.3 * size
    assert ((landmarks > 0) & (landmarks < size - 1)).mean() > 0.999
    box = landmark_box(landmarks)
    share = size / (box[:, 2:] - box[:, :2]).max(1)
    assert abs(np.median(share) - MARGIN) < 0.1


@ALL
def test_a_dot_drawn_at_a_landmark_lies_at_the_landmark(layout):
    landmarks, ramp, errors = DrawnImage(0, 1, layout.name).scene().landmarks, np.arange(256), []
    for landmark in landmarks:
        image = np.zeros((256, 256), np.uint8)
        drawing.disc(image, landmark, np.array([3.0, 3.0]), 255)
        weight = image / image.sum(dtype=np.float64)
        centroid = np.array([(weight.sum(0) * ramp).sum(), (weight.sum(1) * ramp).sum()])
        errors.append(centroid - landmark)
    assert np.abs(np.mean(errors, axis=0)).max() < 0.02
    assert np.abs(errors).mean() < 0.04 and np.abs(errors).max() < 0.1


def test_brows_and_irises_are_drawn_at_their_landmarks():
    """The mean dark band over many faces is centred on the landmarks: brows down the picture, irises across it."""
    brows, irises = [], []
    for index in range(200):
        image, landmarks, visible = draw_face(1, index, WFLW)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        for brow, pupil, lids in (((35, 40), 96, slice(60, 68)), ((44, 48), 97, slice(68, 76))):
            if visible[list(brow)].all():
                brows.append(cv2.getRectSubPix(grey, (5, 21), landmarks[list(brow)].mean(0).tolist()).mean(1))
            if visible[pupil] and np.ptp(landmarks[lids, 1]) > 6:
                irises.append(cv2.getRectSubPix(grey, (21, 5), landmarks[pupil].tolist()).mean(0))
    assert len(brows) > 100 and len(irises) > 100
    assert _middle_of_dark_band(np.mean(irises, axis=0)) == pytest.approx(10, abs=0.3)
    assert _middle_of_dark_band(np.mean(brows, axis=0)) == pytest.approx(10, abs=0.7)  # the sockets below are darker


def _middle_of_dark_band(profile):
    """The middle between the two places around sample 10 of [21] where the brightness passes half of its rise."""
    level = (profile[8:13].min() + min(profile[:10].max(), profile[11:].max())) / 2
    right = _first_above(profile[10:], level)
    left = _first_above(profile[10::-1], level)
    return 10 + (right - left) / 2


def _first_above(profile, level):
    index = int(np.argmax(profile > level))
    return index - (profile[index] - level) / (profile[index] - profile[index - 1])


@ALL
def test_visibility_follows_the_covers(layout):
    drawn = scenes(150, layout)
    visible = np.array([scene.visible for scene in drawn])
    assert 0.8 < visible.mean() < 0.99
    assert 0.2 < (~visible).any(1).mean() < 0.95
    for scene in drawn:
        column, row = np.rint(scene.landmarks).astype(int).clip(0, scene.size - 1).T
        outside = np.ones(layout.num_landmarks, bool)
        for cover in scene.covers:
            mask = np.zeros((scene.size, scene.size), np.uint8)
            drawing.fill(mask, cover.outline, 255)
            if cover.kind != "lens":
                inside = cv2.erode(mask // 200, np.ones((5, 5), np.uint8), borderValue=0)[row, column] > 0
                assert not scene.visible[inside].any()
                outside &= cv2.dilate(mask, np.ones((5, 5), np.uint8))[row, column] == 0
        if abs(scene.pose.yaw) < 0.2:
            assert scene.visible[outside].all()


def test_pictures_vary_and_are_neither_black_nor_white():
    pictures = np.array([draw_face(0, index, WFLW, 64)[0] for index in range(60)])
    means = pictures.mean((1, 2, 3))
    assert means.std() > 15 and means.min() > 5 and means.max() < 250
    assert (pictures.std((1, 2, 3)) > 8).all()
    grey = (pictures.max(-1) == pictures.min(-1)).all((1, 2))
    assert 0.05 < grey.mean() < 0.45


def test_faces_carry_what_draw_face_gives():
    faces = synthetic_faces(W300, 12, seed=7, size=96, split="test")
    assert len(faces) == 12 and faces.layout is W300 and faces.split == "test" and faces.missing == ()
    assert len({face.name for face in faces.records}) == 12
    for index, face in enumerate(faces.records[:4]):
        image, landmarks, visible = draw_face(7, index, W300, 96, "test")
        np.testing.assert_array_equal(face.image.read(), image)
        np.testing.assert_array_equal(face.landmarks, landmarks)
        np.testing.assert_array_equal(face.visible, visible)
    copy = pickle.loads(pickle.dumps(faces.records[0].image))
    assert copy == faces.records[0].image != faces.records[1].image
    np.testing.assert_array_equal(copy.read(), faces.records[0].image.read())


def test_margin_leaves_more_or_less_around_the_face():
    near, far = (DrawnImage(0, 0, "wflw", margin=margin).scene().landmarks for margin in (1.5, 3.0))
    assert np.ptp(near[:, 1]) == pytest.approx(2 * np.ptp(far[:, 1]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"count": 0}, "count"),
        ({"seed": -1}, "seed"),
        ({"size": 8}, "size"),
        ({"margin": 0.5}, "margin"),
    ],
)
def test_bad_arguments_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        synthetic_faces(**{"layout": WFLW, "count": 1, **fields})


def test_mean_shape_is_that_of_annotated_faces(real_data):
    """Drawn labels mean what annotators mean: aligned mean shapes of drawn and HELEN faces differ by a few percent."""
    files = sorted((real_data / "300w/helen/trainset").glob("*.pts"))[:400]
    texts = [path.read_text() for path in files]
    real = [np.array(text[text.index("{") + 1 : text.index("}")].split(), float).reshape(68, 2) for text in texts]
    drawn = [scene.landmarks for scene in scenes(400, W300)]
    gap = np.linalg.norm(_mean_aligned(np.array(real)) - _mean_aligned(np.array(drawn)), axis=1)
    assert gap.mean() < 0.04 and gap.max() < 0.1


def _mean_aligned(shapes):
    """Mean [K, 2] of shapes [N, K, 2] with the outer eye corners brought to (-0.5, 0) and (0.5, 0)."""
    points = shapes[..., 0] + 1j * shapes[..., 1]
    left, right = points[:, 36, None], points[:, 45, None]
    mean = ((points - (left + right) / 2) / (right - left)).mean(0)
    return np.stack([mean.real, mean.imag], axis=1)
