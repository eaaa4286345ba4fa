import dataclasses

import numpy as np
import pytest
import torch

from iact.data.augment import NUMBERS, Augmentation, Batch, Chance, augment
from iact.data.crops import TRAINING_MARGIN, Crops, cut_faces, training_size
from iact.data.faces import Face, Faces, ImageFile
from iact.data.shapes import ShapeModes, fit_shape_modes
from iact.errors import InputError
from iact.geometry import CROP_MARGIN, landmark_box
from iact.layouts import COFW
from iact.plots import save_image

SIZE = 96
NOTHING = Augmentation(**{field.name: 0.0 for field in dataclasses.fields(Augmentation)})


def _dot_crops(count: int) -> Crops:
    """Crops in which every landmark is the centre of a soft white dot of its own brightness, far from the others."""
    size = training_size(SIZE)
    ring = torch.arange(29) * 2 * torch.pi / 29
    radius = torch.where(torch.arange(29) % 2 == 0, 0.17, 0.26) * size
    points = torch.stack([ring.cos() * radius, ring.sin() * radius], dim=-1) + (size - 1) / 2
    x, y = torch.arange(size) - points[:, 0, None], torch.arange(size) - points[:, 1, None]
    dots = torch.exp(-(y[:, :, None] ** 2 + x[:, None, :] ** 2) / (2 * 1.6**2)).amax(0) * 255
    picture = dots.round().to(torch.uint8).expand(3, -1, -1)
    return Crops(
        pictures=picture.repeat(count, 1, 1, 1),
        landmarks=points.repeat(count, 1, 1),
        visible=torch.ones(count, 29, dtype=torch.bool),
        matrices=np.zeros((count, 2, 3)),
        margin=TRAINING_MARGIN,
    )


def _shapes(crops: Crops) -> ShapeModes:
    """Those of faces whose landmarks lie about a tenth of the face away from these."""
    noise = torch.randn(200, 29, 2, generator=torch.Generator().manual_seed(0))
    return fit_shape_modes(crops.landmarks[:1] + 0.05 * SIZE * noise, COFW)


def _augmented(crops: Crops, count: int, settings: Augmentation, seed: int, first: int = 0) -> Batch:
    """The first `count` crops from `first` on, as the batch of that seed has them."""
    numbers = torch.rand(len(crops), NUMBERS, generator=torch.Generator().manual_seed(seed))
    own = slice(first, first + count)
    return augment(
        crops.pictures[own],
        crops.landmarks[own],
        crops.visible[own],
        margin=crops.margin,
        size=SIZE,
        layout=COFW,
        settings=settings,
        shapes=_shapes(crops) if settings.shape else None,
        numbers=numbers[own],
    )


def _centroid_errors(batch) -> torch.Tensor:
    """How far the centre of brightness around each landmark lies from it, in px."""
    ramp = torch.arange(SIZE)
    errors = []
    for picture, points in zip(batch.pictures[:, 0], batch.landmarks, strict=True):
        for x, y in points:
            if not (6 < x < SIZE - 7 and 6 < y < SIZE - 7):
                continue
            near = picture * ((ramp - x).abs()[None, :] < 3.5) * ((ramp - y).abs()[:, None] < 3.5)
            centre = torch.stack([(near * ramp[None]).sum(), (near * ramp[:, None]).sum()]) / near.sum()
            errors.append((centre - torch.stack([x, y])).norm())
    return torch.stack(errors)


def test_landmarks_follow_the_picture_through_every_change_of_geometry():
    settings = dataclasses.replace(NOTHING, flip=0.5, rotation=14, scale=0.1, shift=0.04, aspect=0.04)
    batch = _augmented(_dot_crops(24), 24, settings, seed=3)
    errors = _centroid_errors(batch)
    assert len(errors) > 500 and errors.mean() < 0.1


def test_landmarks_follow_the_picture_that_is_bent_to_another_shape():
    plain = _augmented(_dot_crops(24), 24, NOTHING, seed=3)
    turned = dataclasses.replace(NOTHING, flip=0.5, rotation=14, scale=0.1, shape=1.0)
    still = _augmented(_dot_crops(24), 24, dataclasses.replace(turned, shape=0.0), seed=3)
    batch = _augmented(_dot_crops(24), 24, turned, seed=3)
    moved = (batch.landmarks - still.landmarks).norm(dim=-1)
    assert moved.mean() > 0.5 and (moved.mean(1) > 0.1).all()
    errors = _centroid_errors(batch)
    assert len(errors) > 500 and errors.mean() < 0.15 and errors.mean() < _centroid_errors(plain).mean() + 0.1
    half = _augmented(_dot_crops(24), 24, dataclasses.replace(turned, shape=0.5), seed=3)
    kept = (half.landmarks - still.landmarks).abs().amax((1, 2)) < 1e-3
    assert 4 < kept.sum() < 20


def test_without_change_the_batch_is_the_evaluation_crop():
    batch = _augmented(_dot_crops(2), 2, NOTHING, seed=0)
    crops = _dot_crops(1)
    inset = (training_size(SIZE) - SIZE) / 2
    torch.testing.assert_close(batch.landmarks[0], crops.landmarks[0] - inset, atol=0.3, rtol=0)
    assert (batch.pictures[0] == batch.pictures[1]).all()


def test_flip_renames_landmarks():
    crops, mirror = _dot_crops(1), torch.tensor(COFW.mirror)
    plain = _augmented(crops, 1, NOTHING, seed=0)
    flipped = _augmented(crops, 1, dataclasses.replace(NOTHING, flip=1.0), seed=0)
    expected = plain.landmarks[:, mirror] * torch.tensor([-1.0, 1.0]) + torch.tensor([SIZE - 1.0, 0.0])
    torch.testing.assert_close(flipped.landmarks, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(flipped.pictures, plain.pictures.flip(3), atol=0.05, rtol=0)


def test_flip_moves_visibility_with_its_landmark():
    crops = _dot_crops(1)
    crops.visible[0, 0] = False
    flipped = _augmented(crops, 1, dataclasses.replace(NOTHING, flip=1.0), seed=0)
    assert flipped.visible[0].logical_not().nonzero().tolist() == [[COFW.mirror[0]]]


def test_half_of_the_pictures_are_flipped():
    settings = dataclasses.replace(NOTHING, flip=0.5)
    batch = _augmented(_dot_crops(400), 400, settings, seed=1)
    same = (batch.landmarks - batch.landmarks[0]).abs().amax((1, 2)) < 1e-3
    assert 150 < same.sum() < 250


def _noise_crops(count: int) -> Crops:
    crops, generator = _dot_crops(count), torch.Generator().manual_seed(0)
    crops.pictures.copy_(torch.randint(0, 256, crops.pictures.shape, generator=generator, dtype=torch.uint8))
    return crops


def test_same_seed_same_batch_and_other_seed_another():
    first, again, other = (_augmented(_noise_crops(6), 6, Augmentation(), seed) for seed in (1, 1, 2))
    assert torch.equal(first.pictures, again.pictures) and torch.equal(first.landmarks, again.landmarks)
    assert not torch.equal(first.pictures, other.pictures)


def test_a_part_of_a_batch_is_that_part_of_the_whole():
    crops = _noise_crops(12)
    whole = _augmented(crops, 12, Augmentation(), seed=4)
    part = _augmented(crops, 5, Augmentation(), seed=4, first=6)
    assert torch.equal(part.pictures, whole.pictures[6:11]) and torch.equal(part.landmarks, whole.landmarks[6:11])


def test_every_number_is_used_once():
    seen = []
    chance = Chance.uniform
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chance, "uniform", lambda self, *a, **k: (chance(self, *a, **k), seen.append(self.used))[0])
        _augmented(_dot_crops(1), 1, Augmentation(), seed=0)
    assert seen[-1] == NUMBERS and seen == sorted(seen)


def test_chance_is_as_wide_as_it_says():
    numbers = torch.rand(20000, 3, generator=torch.Generator().manual_seed(0))
    chance = Chance(numbers)
    normal = chance.normal(2.0)
    assert normal.std() == pytest.approx(2.0 * 0.98, rel=0.02) and normal.abs().max() <= 2.8 * 2.0 + 1e-4
    assert chance.happens(0.3).float().mean() == pytest.approx(0.3, abs=0.01)
    assert (chance.uniform(5, 6) >= 5).all()


@pytest.mark.parametrize("name", ["mask", "colour", "grey", "blur", "noise"])
def test_each_change_of_appearance_changes_pictures_but_not_landmarks(name):
    crops = _noise_crops(8)
    plain = _augmented(crops, 8, NOTHING, seed=5)
    changed = _augmented(crops, 8, dataclasses.replace(NOTHING, **{name: 1.0}), seed=5)
    torch.testing.assert_close(changed.landmarks, plain.landmarks)
    assert ((changed.pictures != plain.pictures).flatten(1).any(1)).all()
    assert changed.pictures.min() >= 0 and changed.pictures.max() <= 255


def test_mask_covers_at_most_a_sixth():
    crops = _dot_crops(64)
    crops.pictures.fill_(128)
    batch = _augmented(crops, 64, dataclasses.replace(NOTHING, mask=1.0), seed=2)
    covered = (batch.pictures != 128).any(1).float().mean((1, 2))
    assert covered.max() <= 0.4**2 + 0.02 and covered.max() > 0.08


def _write_face(folder, name: str, landmarks: np.ndarray) -> Face:
    save_image(folder / f"{name}.png", np.full((200, 300, 3), 90, np.uint8))
    return Face(name, ImageFile(folder / f"{name}.png"), landmarks, origin=f"{name}.pts")


def test_cut_faces_puts_the_landmark_box_where_the_crop_rule_says(tmp_path):
    landmarks = np.random.default_rng(0).uniform(60, 140, (29, 2))
    faces = Faces(COFW, "train", (_write_face(tmp_path, "a", landmarks),))
    crops = cut_faces(faces, 128, CROP_MARGIN)
    box = landmark_box(crops.landmarks[0].numpy())
    assert max(box[2] - box[0], box[3] - box[1]) == pytest.approx(128 / CROP_MARGIN, abs=1e-3)
    np.testing.assert_allclose((box[:2] + box[2:]) / 2, 63.5, atol=1e-3)
    assert crops.pictures.shape == (1, 3, 128, 128)


def test_a_face_on_one_point_is_refused_and_named(tmp_path):
    faces = Faces(COFW, "train", (_write_face(tmp_path, "flat", np.full((29, 2), 50.0)),))
    with pytest.raises(InputError, match="flat.pts: the landmarks of flat all lie on one point"):
        cut_faces(faces, 128, CROP_MARGIN)


def test_no_faces_are_refused():
    with pytest.raises(InputError, match="cofw test: no faces"):
        cut_faces(Faces(COFW, "test", ()), 128, CROP_MARGIN)


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    face = _write_face(tmp_path, "gone", np.random.default_rng(0).uniform(60, 140, (29, 2)))
    (tmp_path / "gone.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match="gone.png: not a picture"):
        cut_faces(Faces(COFW, "train", (face,)), 128, CROP_MARGIN)
