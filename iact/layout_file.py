"""Landmark sets of one's own as text: what `layout.json` holds, and a weights file trained on such a set.

Landmarks go by name: {"name": "five", "landmarks": ["left_eye", "right_eye", "nose", ...], "mirror": [["left_eye",
"right_eye"], ...], "normaliser": ["left_eye", "right_eye"]}, and where wanted "pupils": [[names], [names]], "edges":
[[names], ...], the lines to draw, and "box_in_face": [right, down, side], by which a detector's boxes of whole faces
become boxes around these landmarks. A landmark in no mirror pair mirrors onto itself; without pupils, the normaliser's
two landmarks are them. A file that says no more than {"name": "300w"} means that built-in layout."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iact.errors import InputError
from iact.layouts import LAYOUTS, Layout

REQUIRED, OPTIONAL = ("name", "landmarks", "mirror", "normaliser"), ("pupils", "edges", "box_in_face")


def read_layout(path: Path) -> Layout:
    """The layout that a file describes. InputError naming the file, and what is wrong with it."""
    if not path.is_file():
        raise InputError(f"{path}: no such file (it names the landmarks, their mirror pairs and the normaliser)")
    try:
        fields = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no JSON, or no text at all
        raise InputError(f"{path}: expected a landmark layout as JSON ({error})") from None
    return parse_layout(fields, str(path))


def parse_layout(fields: Any, origin: str) -> Layout:
    """The layout that these fields describe, checked as a whole; InputError naming `origin` and what is wrong."""
    return _Parser(origin, ()).layout(fields)


def layout_fields(layout: Layout) -> dict[str, Any]:
    """The fields that `parse_layout` makes the same layout of."""
    if layout.name in LAYOUTS:
        return {"name": layout.name}
    names = layout.names

    def called(landmarks: tuple[int, ...]) -> list[str]:
        return [names[landmark] for landmark in landmarks]

    return {
        "name": layout.name,
        "landmarks": list(names),
        "mirror": [called((first, second)) for first, second in enumerate(layout.mirror) if first < second],
        "normaliser": called(layout.eye_corners),
        "pupils": [called(layout.left_pupil), called(layout.right_pupil)],
        "edges": [called(curve) for curve in layout.curves],
        "box_in_face": list(layout.box_in_face),
    }


@dataclass(frozen=True)
class _Parser:
    """Turns fields from `origin`, which messages name, into a layout of the landmarks called `names`."""

    origin: str
    names: tuple[str, ...]

    def layout(self, fields: Any) -> Layout:
        if isinstance(fields, dict) and fields.keys() == {"name"} and fields["name"] in [*LAYOUTS]:
            return LAYOUTS[fields["name"]]
        self._check_keys(fields)
        name = self._name(fields["name"], "name")
        if name in LAYOUTS:
            raise self._wrong(f"name {name!r} belongs to a built-in layout: choose another, or give the name alone")
        names = tuple(self._name(landmark, "landmarks") for landmark in self._list(fields["landmarks"], "landmarks", 2))
        self._check_once(names, "landmarks")
        return _Parser(self.origin, names)._layout(name, fields)

    def _layout(self, name: str, fields: dict[str, Any]) -> Layout:
        normaliser = self._pair(fields["normaliser"], "normaliser")
        pupils = self._list(fields.get("pupils", [[self.names[i]] for i in normaliser]), "pupils", 2, 2)
        left, right = (self._places(pupil, "pupils", 1) for pupil in pupils)
        return Layout(
            name=name,
            num_landmarks=len(self.names),
            mirror=self._mirror(fields["mirror"]),
            eye_corners=normaliser,
            left_pupil=left,
            right_pupil=right,
            curves=tuple(self._places(run, "edges", 2) for run in self._list(fields.get("edges", []), "edges")),
            landmarks=self.names,
            box_in_face=self._box(fields.get("box_in_face", [0.0, 0.0, 1.0])),
        )

    def _mirror(self, pairs: Any) -> tuple[int, ...]:
        pairs = [self._pair(pair, "mirror") for pair in self._list(pairs, "mirror")]
        self._check_once([self.names[landmark] for pair in pairs for landmark in pair], "mirror")
        other = {first: second for pair in pairs for first, second in (pair, pair[::-1])}
        return tuple(other.get(landmark, landmark) for landmark in range(len(self.names)))

    def _box(self, value: Any) -> tuple[float, float, float]:
        numbers = self._list(value, "box_in_face", 3, 3)
        if not all(type(number) in (int, float) and abs(number) < 100 for number in numbers) or not numbers[2] > 0:
            raise self._wrong(
                f"box_in_face should be shifts right and down and a side above 0, got {json.dumps(value)}"
            )
        return (float(numbers[0]), float(numbers[1]), float(numbers[2]))

    def _pair(self, value: Any, key: str) -> tuple[int, int]:
        pair = self._places(value, key, 2, 2)
        self._check_once([self.names[landmark] for landmark in pair], key)
        return pair

    def _places(self, value: Any, key: str, least: int, most: int | None = None) -> tuple[int, ...]:
        """The indices of landmarks that are given by name."""
        names = self._list(value, key, least, most)
        for name in names:
            if name not in self.names:
                raise self._wrong(f"{key} should name landmarks of this layout, got {name!r}")
        return tuple(self.names.index(name) for name in names)

    def _list(self, value: Any, key: str, least: int = 0, most: int | None = None) -> list:
        if not isinstance(value, list) or len(value) < least or most is not None and len(value) > most:
            number = f"{least} " if least == most else f"at least {least} " if least else ""
            raise self._wrong(f"{key} should hold a list of {number}values, got {json.dumps(value)}")
        return value

    def _name(self, value: Any, key: str) -> str:
        if not isinstance(value, str) or value != value.strip() or not value or not value.isprintable():
            raise self._wrong(f"{key} should hold names without spaces around them, got {json.dumps(value)}")
        return value

    def _check_once(self, names: tuple[str, ...] | list[str], key: str) -> None:
        for name in names:
            if names.count(name) > 1:
                raise self._wrong(f"{key} should name a landmark only once, got {name!r} twice")

    def _check_keys(self, fields: Any) -> None:
        if not isinstance(fields, dict):
            raise self._wrong(f"expected an object with {', '.join(REQUIRED)}, got {json.dumps(fields)[:40]}")
        for key in REQUIRED:
            if key not in fields:
                raise self._wrong(f"no {key!r}: expected {', '.join(REQUIRED)}")
        for key in fields:
            if key not in (*REQUIRED, *OPTIONAL):
                raise self._wrong(f"unknown field {key!r}: expected one of {', '.join((*REQUIRED, *OPTIONAL))}")

    def _wrong(self, sentence: str) -> InputError:
        return InputError(f"{self.origin}: {sentence}")
