"""Pictures: landmarks drawn on faces, contact sheets, error curves. Images are RGB uint8 [H, W, 3]."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from iact.errors import InputError
from iact.files import printable, write_atomically
from iact.layouts import Layout
from iact.metrics import auc, ced

TRUTH, PREDICTION = (60, 230, 90), (255, 60, 70)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#666666")  # Okabe and Ito
BACKGROUND = 32  # grey between the pictures of a contact sheet
SHIFT = 4  # OpenCV draws at 1/16 px
FAR = 1e5  # px; OpenCV's integers overflow with points far beyond


def draw_landmarks(
    image: np.ndarray, landmarks: np.ndarray, layout: Layout, predicted: np.ndarray | None = None
) -> np.ndarray:
    """A copy of the image with landmarks [K, 2] and the curves of the layout in green, and predicted [K, 2] in red.

    Dots and lines grow with the face. InputError for another kind of image, or landmarks that are not finite [K, 2]."""
    image = _check_image(image, "image").copy()
    landmarks = _check_points(landmarks, layout, "landmarks")
    side = min(float(np.ptp(landmarks, axis=0).max()), max(image.shape))
    _draw_shape(image, landmarks, layout, TRUTH, side)
    if predicted is not None:
        _draw_shape(image, _check_points(predicted, layout, "predicted"), layout, PREDICTION, side)
    return image


def _draw_shape(image: np.ndarray, points: np.ndarray, layout: Layout, colour: tuple, side: float) -> None:
    """Half transparent lines under solid dots with a dark rim: the dots tell where, the lines only which."""
    fixed = np.round(np.clip(points, -FAR, FAR) * 2**SHIFT).astype(np.int32)
    lines = image.copy()
    runs = [fixed[list(curve)] for curve in layout.curves]
    cv2.polylines(lines, runs, False, colour, max(1, round(side / 300)), cv2.LINE_AA, SHIFT)
    cv2.addWeighted(lines, 0.45, image, 0.55, 0, dst=image)
    radius = max(0.6, side / 130)
    for scale, paint in ((1.4, tuple(value // 4 for value in colour)), (1.0, colour)):
        if scale == 1 or radius > 1.5:  # a rim on the smallest dots would be all one sees
            for x, y in fixed.tolist():
                cv2.circle(image, (x, y), round(scale * radius * 2**SHIFT), paint, cv2.FILLED, cv2.LINE_AA, SHIFT)


def contact_sheet(images: Sequence[np.ndarray], columns: int = 8) -> np.ndarray:
    """The images row by row in one picture [rows * H, columns * W, 3]; smaller ones are centred on dark grey.

    H and W are the largest of the images; a short sheet has only as many columns as images. InputError when empty."""
    if not len(images) or columns < 1:
        raise InputError(f"contact sheet: expected images and columns, got {len(images)} and {columns}")
    images = [_check_image(image, f"images[{index}]") for index, image in enumerate(images)]
    height, width = max(image.shape[0] for image in images), max(image.shape[1] for image in images)
    columns = min(columns, len(images))
    sheet = np.full((-(-len(images) // columns) * height, columns * width, 3), BACKGROUND, np.uint8)
    for index, image in enumerate(images):
        top = index // columns * height + (height - image.shape[0]) // 2
        left = index % columns * width + (width - image.shape[1]) // 2
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def save_image(path: Path | str, image: np.ndarray) -> None:
    """Writes an RGB image in the format its suffix names; the file appears complete or not at all.

    InputError when OpenCV knows no such format, it takes no picture of that size, or the place cannot be written."""
    path, image = Path(path), _check_image(image, "image")
    if not (path.suffix.isascii() and path.suffix and cv2.haveImageWriter(f"picture{path.suffix}")):
        raise InputError(f"{path}: expected the suffix of a picture such as .png or .jpg, got {path.suffix!r}")
    try:
        done, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        done = False
    if not done:
        raise InputError(f"{path}: the format takes no colour picture of {image.shape[1]} x {image.shape[0]} px")
    write_atomically(path, lambda temporary: temporary.write_bytes(data.tobytes()))


def plot_ced(curves: Mapping[str, np.ndarray], threshold: float, title: str, path: Path | str) -> None:
    """Writes the cumulative error distribution of each system's NME [N] up to the threshold (percent).

    The legend gives every system's AUC, and its mean NME over the faces that it found: others have an infinite NME."""
    if not curves:
        raise InputError("curves: expected the errors of at least one system, got none")
    figure, axes = _figure(6.4, 4.4)
    thresholds = np.linspace(0, threshold, 1001)
    for index, (name, nme) in enumerate(curves.items()):
        label = f"NME {np.mean(nme, where=np.isfinite(nme)):.2f} %, AUC {auc(nme, threshold):.3f}   {_short(name)}"
        style = ("-", "--", "-.", ":")[index // len(COLOURS) % 4]
        axes.plot(
            thresholds, 100 * ced(nme, thresholds), style, color=_colour(index), linewidth=1.8, label=_plain(label)
        )
    axes.set(xlim=(0, threshold), ylim=(0, 101))
    axes.set_title(_plain(title), fontsize=9)
    axes.set(xlabel="NME (% of the normaliser)", ylabel="faces with at most this error (%)")
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.legend(loc="lower right", fontsize=9, framealpha=0.9, edgecolor="none")
    _save_figure(figure, Path(path))


def plot_landmark_errors(per_landmark: np.ndarray, layout: Layout, path: Path | str, title: str) -> None:
    """Writes a bar for every landmark's mean error [K] (percent of the normaliser), in one colour per curve."""
    per_landmark = np.asarray(per_landmark, np.float64)
    if per_landmark.shape != (layout.num_landmarks,) or not np.isfinite(per_landmark).all():
        raise InputError(f"per_landmark: expected {layout.num_landmarks} finite numbers, got {per_landmark}")
    figure, axes = _figure(3 + layout.num_landmarks / 10, 3.6)
    curve_of = {point: index for index, curve in reversed(list(enumerate(layout.curves))) for point in curve}
    colours = [_colour(curve_of[point]) if point in curve_of else "#999999" for point in range(layout.num_landmarks)]
    axes.bar(range(layout.num_landmarks), per_landmark, color=colours, width=0.8)
    mean = float(per_landmark.mean())
    axes.axhline(mean, color="#222222", linewidth=1, linestyle="--", label=f"mean {mean:.2f} %")
    axes.set(xlim=(-0.8, layout.num_landmarks - 0.2), xticks=range(0, layout.num_landmarks, 5))
    if layout.landmarks:
        axes.set_xticks(range(layout.num_landmarks), [_plain(name) for name in layout.landmarks], rotation=90)
    axes.set(xlabel="landmark", ylabel="mean error (% of the normaliser)", title=_plain(title))
    axes.set_ylim(0, 1.15 * per_landmark.max() or 1)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.legend(loc="upper right", fontsize=9, framealpha=0.9, edgecolor="none")
    _save_figure(figure, Path(path))


def _figure(width: float, height: float):
    """A figure (inches) and its axes, drawn by Agg without a display and without touching pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and drawing on faces needs none of it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _short(name: str, most: int = 40) -> str:
    """The name, or its end where it is too long for a legend: paths differ at the end."""
    return name if len(name) <= most else "…" + name[1 - most :]


def _plain(text: str) -> str:
    """Text that matplotlib can write, and in which it sees no formulae."""
    return printable(text).replace("$", r"\$")


def _save_figure(figure, path: Path) -> None:
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise InputError(f"{path}: expected the suffix of a plot ({', '.join(formats)}), got {path.suffix!r}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower())
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))


def _check_image(image: np.ndarray, argument: str) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise InputError(f"{argument}: expected RGB uint8 [H, W, 3], got {image.dtype} of shape {image.shape}")
    return image


def _check_points(points: np.ndarray, layout: Layout, argument: str) -> np.ndarray:
    points = np.asarray(points, np.float64)
    if points.shape != (layout.num_landmarks, 2) or not np.isfinite(points).all():
        expected = f"finite numbers of shape ({layout.num_landmarks}, 2)"
        raise InputError(
            f"{argument}: expected {expected}, got shape {points.shape}, finite: {np.isfinite(points).all()}"
        )
    return points
