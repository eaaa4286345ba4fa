"""Draws a scene: background, hair, head, features, then what covers them. Points are never rounded to whole pixels."""

from functools import lru_cache

import cv2
import numpy as np

from iact.data.synthetic.light import light_plane, photograph, shine, texture
from iact.data.synthetic.scene import Colour, Cover, Scene, random_colour

_NOSE = [51, 52, 53, 54, 57, 98, 99]
_SHIFT = 4  # OpenCV takes coordinates in sixteenths of a pixel; integers are pixel centres


def draw(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """The picture of the scene, RGB uint8 [size, size, 3]; `rng` decides all that moves no landmark."""
    image = _background(rng, scene.size)
    _hair_and_body(rng, image, scene)
    mask = _head(image, scene)
    _beard(rng, image, scene)
    for eye, pupil, brow in (((60, 68), 96, (33, 42)), ((68, 76), 97, (42, 51))):
        _brow(rng, image, scene, scene.points[slice(*brow)])
        _eye(rng, image, scene, scene.points[slice(*eye)], scene.points[pupil])
    _mouth(rng, image, scene)
    _nose(rng, image, scene)
    shine(image, light_plane(rng, scene), mask)
    for cover in scene.covers:
        _cover(rng, image, scene, cover)
    _bridge(image, scene)
    texture(rng, image)
    return photograph(rng, image)


def fixed(points: np.ndarray) -> np.ndarray:
    """Image px as OpenCV's fixed-point numbers, int32: within 1/32 px."""
    return np.rint(points * np.float64(1 << _SHIFT)).astype(np.int32)


def fill(image: np.ndarray, points: np.ndarray, colour) -> None:
    """Fills the closed outline [N, 2] (image px), anti-aliased.

    OpenCV rounds the filled rows, so level edges err by up to 0.5 px, without bias; lines and discs by 0.1 px."""
    cv2.fillPoly(image, [fixed(points)], colour, cv2.LINE_AA, _SHIFT)


def stroke(image: np.ndarray, points: np.ndarray, colour, width: float, closed: bool = False) -> None:
    """A line of about `width` px through points [N, 2] (image px), anti-aliased."""
    cv2.polylines(image, [fixed(points)], closed, colour, max(1, round(width)), cv2.LINE_AA, _SHIFT)


def disc(image: np.ndarray, centre: np.ndarray, radius, colour, degrees: float = 0.0) -> None:
    """A filled ellipse about `centre`, radii (across, down) in image px, anti-aliased."""
    axes = np.maximum(fixed(radius), 4).tolist()
    cv2.ellipse(image, fixed(centre).tolist(), axes, degrees, 0, 360, colour, -1, cv2.LINE_AA, _SHIFT)


def smooth(points: np.ndarray, closed: bool = False) -> np.ndarray:
    """The Catmull-Rom curve through points [N, 2], six places a span."""
    return _curve_matrix(len(points), closed) @ points


@lru_cache(maxsize=64)
def _curve_matrix(count: int, closed: bool, steps: int = 6) -> np.ndarray:
    t = np.arange(steps) / steps
    basis = np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], axis=1) / 2
    spans = count if closed else count - 1
    matrix = np.zeros((spans * steps + (not closed), count))
    for span in range(spans):
        for offset in range(4):
            index = span + offset - 1
            index = index % count if closed else min(max(index, 0), count - 1)
            matrix[span * steps : (span + 1) * steps, index] += basis[:, offset]
    if not closed:
        matrix[-1, -1] = 1
    return matrix


def _tint(colour: Colour, *factors: float) -> Colour:
    """The colour times one factor, or times one a channel."""
    factors = factors * 3 if len(factors) == 1 else factors
    return tuple(min(255.0, value * factor) for value, factor in zip(colour, factors, strict=True))


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    return tuple((1 - share) * a + share * b for a, b in zip(first, second, strict=True))


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A few random colours enlarged, smoothly or in blocks, with up to eight polygons over them."""
    cells = rng.integers(2, 7, 2)
    colours = (rng.uniform(20, 230) + rng.normal(0, 40, (*cells, 1)) + rng.normal(0, 18, (*cells, 3))).clip(0, 255)
    how = cv2.INTER_LINEAR if rng.random() < 0.7 else cv2.INTER_NEAREST
    image = cv2.resize(colours.astype(np.uint8), (size, size), interpolation=how)
    for _ in range(rng.integers(0, 9)):
        corners = rng.uniform(0, size, 2) + rng.normal(0, 0.2 * size, (rng.integers(3, 6), 2))
        fill(image, corners, random_colour(rng))
    return cv2.blur(image, (5, 5)) if rng.random() < 0.4 else image


def _hair_and_body(rng: np.random.Generator, image: np.ndarray, scene: Scene) -> None:
    """Shoulders, neck, the hair behind the head, ears."""
    points, chin = scene.points, scene.points[16]
    head = np.concatenate([points[0:33:4], points[100:113]])
    long_hair, has_hair = rng.random() < 0.4, rng.random() < 0.85
    if has_hair:
        _hair_behind(rng, image, scene, head, long_hair)
    neck = scene.place(points[[9, 23]].mean(0), [[-0.42, 0], [-0.46, 1.3], [0.46, 1.3], [0.42, 0]])
    fill(image, neck, _tint(scene.skin, 0.68))
    fill(image, scene.place(points[10:23:2], [0, 0.1]), _tint(scene.skin, 0.5))  # the chin's shadow
    shoulders = [(-0.4, 0.32), (-0.8, 0.48), (-1.5, 0.75), (-1.9, 3), (1.9, 3), (1.5, 0.75), (0.8, 0.48), (0.4, 0.32)]
    collar = [(0.25, 0.5), (0, rng.uniform(0.45, 0.8)), (-0.25, 0.5)]
    fill(image, smooth(scene.place(chin, [*shoulders, *collar]), closed=True), random_colour(rng))
    for ear, side in ((points[1], -1), (points[31], 1)):
        if not (long_hair and has_hair) and side * scene.pose.yaw < 0.35:
            _ear(image, scene, scene.place(ear, [side * 0.03, 0.1]))


def _ear(image: np.ndarray, scene: Scene, centre: np.ndarray) -> None:
    radius, roll = scene.unit * np.array([0.10, 0.22]), np.degrees(scene.pose.roll)
    disc(image, centre, radius, _tint(scene.skin, 0.86), roll)
    disc(image, centre, radius * 0.6, _tint(scene.skin, 0.7), roll)


def _hair_behind(rng: np.random.Generator, image: np.ndarray, scene: Scene, head: np.ndarray, long_hair: bool) -> None:
    crown = scene.points[np.r_[32, 100:113, 0]]
    centre = head.mean(0)
    outline = centre + (crown - centre) * rng.uniform(1.1, 1.32) + rng.normal(0, 0.02 * scene.unit, crown.shape)
    if long_hair:
        spread, length = rng.uniform(0.75, 1.0), rng.uniform(1.0, 1.9)
        ends = scene.place(scene.points[[0, 32]].mean(0), [[-spread, length], [spread, length]])
        outline = np.concatenate([outline, ends])
    fill(image, smooth(outline, closed=True), _tint(scene.hair, 0.75))
    _strands(rng, image, scene, outline, centre + 0.6 * (outline - centre), 30)


def _strands(rng: np.random.Generator, image: np.ndarray, scene: Scene, roots, tips, count: int) -> None:
    """Lighter and darker lines, each somewhere on the way from a place among `roots` to the same place among `tips`."""
    where = rng.uniform(0, len(roots) - 1.01, count)
    index, share = where.astype(int), (where % 1)[:, None]
    root, tip = (line[index] * (1 - share) + line[index + 1] * share for line in (roots, tips))
    start, length = rng.uniform(0.05, 0.5, (count, 1)), rng.uniform(0.3, 0.5, (count, 1))
    first, last = root + start * (tip - root), root + (start + length) * (tip - root)
    middle = (first + last) / 2 + rng.normal(0, 0.02 * scene.unit, (count, 2))
    lines = list(fixed(np.stack([first, middle, last], axis=1)))
    for part, shade in ((slice(0, count // 2), 0.8), (slice(count // 2, count), 1.18)):
        colour = _tint(scene.hair, shade)
        cv2.polylines(image, lines[part], False, colour, max(1, round(0.02 * scene.unit)), cv2.LINE_AA, _SHIFT)


def _head(image: np.ndarray, scene: Scene) -> np.ndarray:
    """Fills the head with skin; the mask uint8 [size, size] of the skin comes back."""
    points, mask = scene.points, np.zeros(image.shape[:2], np.uint8)
    outline = smooth(points[np.r_[0:33, 100:113]], closed=True)
    nose, mouth = (cv2.convexHull(points[rows].astype(np.float32))[:, 0] for rows in (_NOSE, slice(76, 88)))
    for part in (outline, nose, mouth):  # the profile of a turned head reaches beyond the outline
        fill(image, part, scene.skin)
        fill(mask, part, 255)
    stroke(image, smooth(points[0:33]), _tint(scene.skin, 0.84), 0.012 * scene.unit)
    return mask


def _beard(rng: np.random.Generator, image: np.ndarray, scene: Scene) -> None:
    """A beard, its shadow or a moustache, for one face in five."""
    if rng.random() >= 0.2:
        return
    points, colour = scene.points, _mix(scene.skin, scene.hair, rng.uniform(0.15, 0.8))
    cheeks = scene.place(points[[55, 59]], [[-0.16, 0.1], [0.16, 0.1]])
    lip = scene.place(points[[59, 57, 55]], [0, 0.03])
    outline = np.concatenate([points[5:28], cheeks[1:], lip, cheeks[:1]])
    if rng.random() < 0.25:
        outline = np.concatenate([points[76:83], lip])
    fill(image, smooth(outline, closed=True), colour)


def _brow(rng: np.random.Generator, image: np.ndarray, scene: Scene, brow: np.ndarray) -> None:
    fill(image, smooth(brow, closed=True), _mix(_tint(scene.hair, 0.7), scene.skin, rng.uniform(0.1, 0.4)))


def _eye(rng: np.random.Generator, image: np.ndarray, scene: Scene, lids: np.ndarray, pupil: np.ndarray) -> None:
    """White, iris and pupil inside the lids, then the lids' lines. `lids` [8, 2] runs along the upper lid first."""
    unit, opening = scene.unit, smooth(lids, closed=True)
    low = np.maximum(np.floor(opening.min(0)).astype(int) - 2, 0)
    high = np.ceil(opening.max(0)).astype(int) + 3
    patch = image[low[1] : high[1], low[0] : high[0]]
    if patch.size == 0:
        return
    ball, mask = np.empty_like(patch), np.zeros(patch.shape[:2], np.uint8)
    ball[:] = (226, 221, 216)
    iris, narrow = 0.068 * unit * np.array([max(0.5, np.cos(scene.pose.yaw)), 1]), np.degrees(scene.pose.roll)
    colour = ((70, 45, 28), (98, 66, 38), (88, 98, 62), (84, 112, 138))[rng.integers(4)]
    disc(ball, pupil - low, iris, _tint(colour, 0.8), narrow)
    disc(ball, pupil - low, iris * 0.5, (14, 12, 12), narrow)
    disc(ball, pupil - low + iris * (rng.uniform(-0.4, 0.4), -0.4), iris * 0.22, (250, 250, 250))
    fill(mask, opening - low, 255)
    _blend(patch, ball, mask)
    _lid_lines(rng, image, scene, lids)


def _blend(patch: np.ndarray, over: np.ndarray, mask: np.ndarray) -> None:
    """Lays `over` on the patch where the mask (0 to 255) says so, in place."""
    share = mask[..., None].astype(np.uint16)
    patch[:] = (over * share + patch * (255 - share) + 127) // 255


def _lid_lines(rng: np.random.Generator, image: np.ndarray, scene: Scene, lids: np.ndarray) -> None:
    upper, lower = smooth(lids[:5]), smooth(lids[np.r_[4:8, 0]])
    stroke(image, lower, _tint(scene.skin, 0.72), 0.01 * scene.unit)
    crease = scene.place(upper, [0, -rng.uniform(0.03, 0.05)])[4:-3]
    stroke(image, crease, _tint(scene.skin, rng.uniform(0.7, 0.9)), 0.012 * scene.unit)
    stroke(image, upper, _tint(scene.skin, rng.uniform(0.15, 0.45)), 0.025 * scene.unit)


def _mouth(rng: np.random.Generator, image: np.ndarray, scene: Scene) -> None:
    """Lips, the inside with teeth, and the line between the lips."""
    outer, inner = smooth(scene.points[76:88], closed=True), smooth(scene.points[88:96], closed=True)
    lips = _tint(scene.skin, 0.93, 0.66, 0.64)
    if rng.random() < 0.25:  # lipstick
        lips = _mix(lips, (rng.uniform(120, 210), rng.uniform(20, 60), rng.uniform(40, 80)), rng.uniform(0.3, 0.9))
    fill(image, outer, lips)
    fill(image, smooth(scene.points[82:88]), _tint(lips, 1.08))
    gap = np.linalg.norm(scene.points[90] - scene.points[94])
    if gap > 0.03 * scene.unit:
        fill(image, inner, (62, 24, 24))
        if rng.random() < 0.7:
            edge, lower = smooth(scene.points[88:93]), scene.points[95:92:-1]
            teeth = scene.points[89:92] + (lower - scene.points[89:92]) * min(0.8, 0.06 * scene.unit / gap)
            fill(image, np.concatenate([edge[3:-3], teeth[::-1]]), (224, 218, 206))
    stroke(image, smooth(scene.points[88:93]), _tint(lips, 0.5), 0.014 * scene.unit)
    stroke(image, outer, _tint(lips, 0.82), 0.008 * scene.unit, closed=True)


def _nose(rng: np.random.Generator, image: np.ndarray, scene: Scene) -> None:
    """Its far side over what it hides, the wings and base, nostrils and the light on the tip."""
    points, unit, shade = scene.points, scene.unit, rng.uniform(0.55, 0.8)
    if abs(scene.pose.yaw) > 0.35:
        near = 98 if scene.pose.yaw > 0 else 99
        fill(image, points[[51, 52, 53, 54, 57, near]], scene.skin)
        stroke(image, smooth(points[51:55]), _tint(scene.skin, 0.85), 0.012 * unit)
    for wing, end in ((98, 55), (99, 59)):
        top = scene.place(points[wing], [0.02 if wing == 98 else -0.02, -0.06])
        stroke(image, smooth(np.stack([top, points[wing], points[end]])), _tint(scene.skin, shade + 0.1), 0.014 * unit)
    stroke(image, smooth(points[55:60]), _tint(scene.skin, shade), 0.016 * unit)
    for nostril in (points[[55, 56, 57]].mean(0), points[[57, 58, 59]].mean(0)):
        narrow = max(0.5, np.cos(scene.pose.yaw))
        radius = unit * np.array([0.036 * narrow, 0.02])
        disc(image, scene.place(nostril, [0, -0.01]), radius, _tint(scene.skin, 0.3), np.degrees(scene.pose.roll))
    disc(image, scene.place(points[54], [0, -0.02]), unit * np.array([0.035, 0.03]), _tint(scene.skin, 1.14))


def _cover(rng: np.random.Generator, image: np.ndarray, scene: Scene, cover: Cover) -> None:
    edge, width = _tint(cover.colour, 0.75), 0.015
    if cover.kind in ("hair", "object"):
        fill(image, cover.outline, cover.colour)
    if cover.kind == "hair":
        return _strands(rng, image, scene, cover.outline[2:13], cover.outline[-3:-14:-1], 36)
    if cover.kind == "dark lens":
        fill(image, cover.outline, _tint(cover.colour, 0.5))
    if "lens" in cover.kind:
        edge, width = cover.colour, 0.03
    stroke(image, cover.outline, edge, width * scene.unit, closed=True)


def _bridge(image: np.ndarray, scene: Scene) -> None:
    """The bar between two lenses, and the arms to the ears."""
    lenses = [cover for cover in scene.covers if "lens" in cover.kind]
    if not lenses:
        return
    left, right = (lens.outline for lens in lenses)
    for start, end in ((left[0], right[12]), (left[12], scene.points[1]), (right[0], scene.points[31])):
        stroke(image, np.stack([start, end]), lenses[0].colour, 0.025 * scene.unit)
