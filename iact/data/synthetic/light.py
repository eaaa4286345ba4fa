"""Light on the face, texture, and what a camera does to a picture. Everything works on uint8 planes through OpenCV."""

from functools import lru_cache

import cv2
import numpy as np

from iact.data.synthetic.scene import Scene

_GRID = 64  # side of the plane on which light and soft shadows are worked out
_NEUTRAL = 128  # the value of a plane that changes nothing


def light_plane(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """Light on the head, uint8 [size, size], 128 for "as the colour says": an ellipsoid under a lamp, soft shadows."""
    ratio = _GRID / scene.size
    centre, unit = (scene.points[51] + 0.5) * ratio - 0.5, scene.unit * ratio
    lamp = np.array([rng.normal(0, 0.9), rng.normal(-0.4, 0.5), rng.uniform(0.35, 1.0)])
    lamp /= np.linalg.norm(lamp)
    ambient = rng.uniform(0.35, 0.75)
    plane = 1.12 * (ambient + (1 - ambient) * _lambert(scene, centre, unit, lamp)) * rng.uniform(0.85, 1.12)
    plane *= _soft_shadows(rng, scene, ratio, lamp)
    plane = (_NEUTRAL * plane).clip(0, 255).astype(np.uint8)
    return cv2.resize(plane, (scene.size, scene.size), interpolation=cv2.INTER_LINEAR)


def _lambert(scene: Scene, centre: np.ndarray, unit: float, lamp: np.ndarray) -> np.ndarray:
    ramp = np.arange(_GRID, dtype=np.float32)
    right = scene.axes[0] / scene.unit
    x, y = (ramp - centre[0]) / unit, (ramp - centre[1])[:, None] / unit
    across, down = (x * right[0] + y * right[1]) / 0.85, (y * right[0] - x * right[1] - 0.3) / 1.15
    across -= 0.45 * np.sin(scene.pose.yaw)  # the ellipsoid's nearest place moves with the nose
    outward = np.sqrt((1 - across**2 - down**2).clip(0.03, 1))
    return (across * lamp[0] + down * lamp[1] + outward * lamp[2]).clip(0, 1)


def _soft_shadows(rng: np.random.Generator, scene: Scene, ratio: float, lamp: np.ndarray) -> np.ndarray:
    """A factor [_GRID, _GRID]: eye sockets, the dark side of the nose, under nose and lip, bright cheeks."""
    p = (scene.points + 0.5) * ratio - 0.5
    plane = np.full((_GRID, _GRID), 1.0, np.float32)
    deep = rng.uniform(0.78, 0.95)
    for corners, brow in (((60, 64, 66), (33, 41, 40, 39, 38)), ((72, 68, 74), (46, 47, 48, 49, 50))):
        _fill(plane, p[[*brow, corners[1], corners[2], corners[0]]], deep)
    nose_side = 99 if lamp[0] < 0 else 98
    _fill(plane, p[[51, 53, 54, 57, nose_side]], 1 - 0.35 * abs(lamp[0]))
    _fill(plane, p[[55, 57, 59, 80, 78]], rng.uniform(0.82, 0.95))
    _fill(plane, p[[84, 86]].repeat(2, 0) + scene.axes[1] * ratio * np.array([[0.03], [0.11], [0.11], [0.03]]), 0.85)
    for fold in ((76, 98), (82, 99)):  # from nose to mouth
        cv2.polylines(plane, [_fixed(p[list(fold)])], False, rng.uniform(0.82, 0.97), 1, cv2.LINE_8, 4)
    for cheek in ((55, 2, 60), (59, 30, 72)):
        radius = max(1, int(16 * 0.13 * scene.unit * ratio))
        cv2.circle(plane, _fixed(p[list(cheek)].mean(0)).tolist(), radius, 1.08, -1, cv2.LINE_8, 4)
    return cv2.GaussianBlur(plane, (0, 0), max(0.6, 0.035 * scene.unit * ratio))


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.rint(points * 16).astype(np.int32)


def _fill(plane: np.ndarray, points: np.ndarray, value: float) -> None:
    cv2.fillPoly(plane, [_fixed(points)], value, cv2.LINE_8, 4)


def shine(image: np.ndarray, light: np.ndarray, mask: np.ndarray) -> None:
    """Multiplies the image by the light where the mask (0 to 255) says so, in place."""
    change = cv2.multiply(cv2.subtract(light, _NEUTRAL, dtype=cv2.CV_16S), mask, scale=1 / 255, dtype=cv2.CV_16S)
    factor = cv2.add(change, _NEUTRAL, dtype=cv2.CV_8U)
    cv2.multiply(image, cv2.merge([factor, factor, factor]), image, 1 / _NEUTRAL)


@lru_cache(maxsize=4)
def _textures(size: int) -> tuple[np.ndarray, ...]:
    """24 planes uint8 [size, size] of five-octave noise around 128, standard deviation 26."""
    rng = np.random.default_rng(24)
    planes = []
    for _ in range(24):
        octaves = [rng.standard_normal((max(2, size >> level),) * 2).astype(np.float32) for level in (0, 1, 2, 4, 6)]
        plane = sum(cv2.resize(octave, (size, size), interpolation=cv2.INTER_CUBIC) for octave in octaves)
        planes.append((_NEUTRAL + 26 * (plane - plane.mean()) / plane.std()).clip(0, 255).astype(np.uint8))
    return tuple(planes)


@lru_cache(maxsize=4)
def _grain(size: int) -> tuple[np.ndarray, ...]:
    """8 planes uint8 [size, size, 3] of sensor noise around 128, standard deviation 32."""
    rng = np.random.default_rng(8)
    return tuple(rng.normal(_NEUTRAL, 32, (size, size, 3)).clip(0, 255).astype(np.uint8) for _ in range(8))


def texture(rng: np.random.Generator, image: np.ndarray) -> None:
    """Mottles the image by a few percent, in place: skin, cloth and walls are never one colour."""
    planes, strength = _textures(len(image)), rng.uniform(0.1, 0.45)
    plane = planes[rng.integers(len(planes))]
    plane = cv2.convertScaleAbs(plane, alpha=strength, beta=_NEUTRAL * (1 - strength))
    cv2.multiply(image, cv2.merge([plane, plane, plane]), image, 1 / _NEUTRAL)


def photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The picture after a camera: blur, tone curve and tint, sometimes grey, noise and JPEG. Nothing moves."""
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.6) * len(image) / 256)
    image = cv2.LUT(image, _tone_curves(rng))
    if rng.random() < 0.2:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < 0.5:
        planes, strength = _grain(len(image)), rng.uniform(0.03, 0.3)
        image = cv2.addWeighted(image, 1, planes[rng.integers(len(planes))], strength, -_NEUTRAL * strength)
    if rng.random() < 0.3:
        _, stream = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 91))])
        image = cv2.imdecode(stream, cv2.IMREAD_COLOR)
    return image


def _tone_curves(rng: np.random.Generator) -> np.ndarray:
    """One table [1, 256, 3]: gamma and gain of the exposure, with a slight tint."""
    level = np.linspace(0, 1, 256)[:, None] ** np.exp(rng.normal(0, 0.22))
    gain, offset = rng.uniform(0.8, 1.2) + rng.normal(0, 0.04, 3), rng.normal(0, 8) + rng.normal(0, 4, 3)
    return (255 * level * gain + offset).clip(0, 255).astype(np.uint8)[None]
