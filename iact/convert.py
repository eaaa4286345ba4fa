"""Landmarks of one layout as those of another: WFLW's 98 as the 68 of 300W, or some of one's own by their names."""

from collections.abc import Sequence

import numpy as np

from iact.errors import InputError
from iact.layouts import W300, WFLW, Layout

Place = tuple[int, int, float]
"""A landmark between two others: first, second, and the share of the way from the first."""


def _at(*landmarks: int) -> tuple[Place, ...]:
    return tuple((landmark, landmark, 0.0) for landmark in landmarks)


# What the field uses: every second landmark of the jaw, the upper edges of the brows, nose and lips as they are, and
# for the lids PIPNet's blends, because WFLW has three landmarks on a lid and 300W two. Against the mean frontal face of
# 300W, converted eyes of WFLW are off by 1.0 % of the inter-ocular distance; by 2.5 % if the nearest landmark is taken.
# The middle lines of the brows, which PIPNet takes, are farther from those of 300W than the upper edges are.
WFLW_TO_300W: tuple[Place, ...] = (
    *_at(*range(0, 33, 2), *range(33, 38), *range(42, 47), *range(51, 60)),
    *(_at(60) + ((61, 62, 1 / 3), (63, 62, 1 / 3)) + _at(64) + ((65, 66, 1 / 3), (67, 66, 1 / 3))),
    *(_at(68) + ((69, 70, 1 / 3), (71, 70, 1 / 3)) + _at(72) + ((73, 74, 1 / 3), (75, 74, 1 / 3))),
    *_at(*range(76, 96)),
)
"""Where each of the 68 lies among the 98."""


def convert_landmarks(landmarks: np.ndarray, source: Layout, target: Layout) -> np.ndarray:
    """Landmarks [..., K, 2] of one layout as those of another, [..., L, 2], in the same px.

    WFLW becomes 300W; a layout with names becomes any whose names are among them. InputError for other layouts, and
    for landmarks of another shape."""
    places = find_places(source, target)
    landmarks = np.asarray(landmarks)
    if landmarks.ndim < 2 or landmarks.shape[-2:] != (source.num_landmarks, 2):
        raise InputError(f"landmarks: expected [..., {source.num_landmarks}, 2], got shape {landmarks.shape}")
    first, second = ([place[i] for place in places] for i in (0, 1))
    share = np.array([place[2] for place in places])[:, None]
    return (1 - share) * landmarks[..., first, :] + share * landmarks[..., second, :]


def find_places(source: Layout, target: Layout) -> Sequence[Place]:
    """Where each landmark of the target lies among those of the source. InputError where that is not known."""
    if source.name == target.name and source.names == target.names:
        return _at(*range(source.num_landmarks))
    if (source, target) == (WFLW, W300):
        return WFLW_TO_300W
    if source.landmarks and target.landmarks and {*target.landmarks} <= {*source.landmarks}:
        return _at(*(source.landmarks.index(name) for name in target.landmarks))
    raise InputError(f"landmarks of layout {source.name!r} cannot be taken for those of {target.name!r}")
