"""From predicted landmarks to a report that says under which protocol its numbers were measured."""

import csv
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from iact import metrics
from iact.data.faces import Faces
from iact.errors import InputError
from iact.layouts import Layout
from iact.plots import plot_ced, plot_landmark_errors

THRESHOLD = 10.0  # percent: the 0.1 of FR@0.1 and AUC@0.1
PERCENTILES = (50, 90, 95, 99)
NUM_WORST = 10


@dataclass(frozen=True)
class Protocol:
    """What a number depends on besides the model. `missing` are sentences on what the split should hold but does not.

    `weights` names the file and how it was chosen, for instance "best epoch 87, chosen on 300w common"."""

    data_set: str
    split: str
    box_rule: str
    flip_test: bool
    weights: str
    faces: int
    missing: tuple[str, ...]
    normalisers: tuple[str, str]

    @classmethod
    def of(cls, faces: Faces, *, data_set: str, box_rule: str, flip_test: bool, weights: str) -> "Protocol":
        """The protocol for these faces: split, number of faces, what is missing and the normalisers are theirs."""
        layout = faces.layout
        normalisers = (
            f"inter-ocular: landmarks {layout.eye_corners[0]} and {layout.eye_corners[1]}",
            f"inter-pupil: {_pupil_text(layout.left_pupil)} and {_pupil_text(layout.right_pupil)}",
        )
        return cls(data_set, faces.split, box_rule, flip_test, weights, len(faces), faces.missing, normalisers)


@dataclass(frozen=True, eq=False)
class Report:
    """The errors of one system on one split.

    `nme_interocular` and `nme_interpupil` are [N] in percent, NaN for faces left out because that normaliser is useless
    on them; `per_landmark` [K] is in percent of the inter-ocular distance; `results` (all faces) and `subsets` (one per
    tag) hold the numbers of `to_json`."""

    protocol: Protocol
    layout: Layout
    names: tuple[str, ...]
    tags: tuple[frozenset[str], ...]
    nme_interocular: np.ndarray
    nme_interpupil: np.ndarray
    per_landmark: np.ndarray
    results: dict
    subsets: dict[str, dict]

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Names of the faces left out of each NME: their normaliser is too near zero (`metrics.usable_normaliser`)."""
        errors = {"interocular": self.nme_interocular, "interpupil": self.nme_interpupil}
        return {key: [self.names[index] for index in np.flatnonzero(np.isnan(nme))] for key, nme in errors.items()}

    @property
    def worst(self) -> list[dict]:
        """Name and inter-ocular NME of the faces with the largest errors, worst first."""
        order = np.argsort(-self.nme_interocular, kind="stable")[:NUM_WORST]  # NaN sorts last
        errors = [(self.names[index], float(self.nme_interocular[index])) for index in order]
        return [{"name": name, "nme_interocular": nme} for name, nme in errors if not np.isnan(nme)]

    def to_json(self) -> dict:
        """Everything but the errors of each face. NME, FR and percentiles in percent, AUC 0 to 1; FR, AUC, percentiles
        and per-landmark errors are inter-ocular; `faces` counts those left out too; None where no face counts."""
        usable = self.nme_interocular[~np.isnan(self.nme_interocular)]
        return {
            **self.results,
            "percentiles": {str(p): float(np.percentile(usable, p)) for p in PERCENTILES},
            "subsets": self.subsets,
            "left_out": self.left_out,
            "worst": self.worst,
            "per_landmark": self.per_landmark.tolist(),
            "protocol": asdict(self.protocol),
        }


def evaluate_predictions(predicted: np.ndarray, faces: Faces, protocol: Protocol) -> Report:
    """The report on predictions [N, K, 2] (image px) for these faces, in their order.

    InputError when shapes or counts differ, a prediction is not finite, or no inter-ocular distance is usable."""
    if protocol.faces != len(faces):
        raise InputError(f"protocol: expected {len(faces)} faces, got {protocol.faces}")
    if not len(faces):
        raise InputError(f"faces: expected at least one face to evaluate in split {faces.split!r}, got none")
    truth = np.stack([face.landmarks for face in faces.records])
    distances = metrics.landmark_distances(predicted, truth)
    ocular = _usable(metrics.interocular(truth, faces.layout), truth)
    pupil = _usable(metrics.interpupil(truth, faces.layout), truth)
    if np.isnan(ocular).all():
        raise InputError(f"faces: none of the {len(faces)} faces has a usable inter-ocular distance")
    relative = 100 * distances / ocular[:, None]
    nme_ocular, nme_pupil = relative.mean(axis=1), 100 * distances.mean(axis=1) / pupil
    tags = tuple(face.tags for face in faces.records)
    chosen = {tag: np.array([tag in own for own in tags]) for tag in sorted(frozenset().union(*tags))}
    return Report(
        protocol=protocol,
        layout=faces.layout,
        names=tuple(face.name for face in faces.records),
        tags=tags,
        nme_interocular=nme_ocular,
        nme_interpupil=nme_pupil,
        per_landmark=np.nanmean(relative, axis=0),
        results=_summarise(nme_ocular, nme_pupil),
        subsets={tag: _summarise(nme_ocular[own], nme_pupil[own]) for tag, own in chosen.items()},
    )


def write_report(report: Report, out_dir: Path | str) -> None:
    """Writes metrics.json, per_face.csv, ced.png and landmark_errors.png into the folder, made where needed.

    All four are finished before the first replaces an older one. InputError when the folder cannot be written."""
    out_dir = Path(out_dir)
    protocol = report.protocol
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out_dir, prefix=".report-") as staging_name:
            staging = Path(staging_name)
            text = json.dumps(report.to_json(), indent=2, allow_nan=False, ensure_ascii=False)
            (staging / "metrics.json").write_text(text + "\n", encoding="utf-8")
            _write_csv(report, staging / "per_face.csv")
            usable = report.nme_interocular[~np.isnan(report.nme_interocular)]
            title = f"{protocol.data_set} {protocol.split}, {len(usable)} faces, inter-ocular"
            plot_ced({protocol.weights: usable}, THRESHOLD, title, staging / "ced.png")
            plot_landmark_errors(report.per_landmark, report.layout, staging / "landmark_errors.png")
            for file in sorted(staging.iterdir()):
                os.replace(file, out_dir / file.name)
    except OSError as error:
        raise InputError(f"{out_dir}: the report cannot be written ({error.strerror})") from error


def format_report(report: Report) -> str:
    """The report as text for a terminal: the protocol first, then the numbers with their 95 % intervals."""
    protocol, left_out = report.protocol, report.left_out
    rows = [
        ("data set", f"{protocol.data_set}, split {protocol.split}, {protocol.faces} faces"),
        *(("missing", sentence) for sentence in protocol.missing),
        ("weights", protocol.weights),
        ("boxes", protocol.box_rule),
        ("flip test", "yes" if protocol.flip_test else "no"),
        *(("normaliser", normaliser) for normaliser in protocol.normalisers),
        ("left out", _left_out_text(left_out)),
    ]
    header = f"  {'set':<14}{'faces':>6}  {'NME ocular %':<24}{'NME pupil %':<24}{'FR@0.1 %':<24}{'AUC@0.1':<24}"
    sets = {"all": report.results, **report.subsets}
    percentiles = ", ".join(f"{key} %: {value:.2f}" for key, value in report.to_json()["percentiles"].items())
    worst = ", ".join(f"{face['name']} ({face['nme_interocular']:.1f})" for face in report.worst[:3])
    return "\n".join(
        [
            *(f"  {key:<12}{value}" for key, value in rows),
            "",
            header.rstrip(),
            *(_format_row(name, results) for name, results in sets.items()),
            "  [low, high]: 95 % bootstrap interval over faces; FR and AUC from the inter-ocular NME",
            "",
            f"  {'percentiles':<12}{percentiles}  (NME ocular %)",
            f"  {'worst':<12}{worst}",
        ]
    )


def _pupil_text(pupil: tuple[int, ...]) -> str:
    return f"landmark {pupil[0]}" if len(pupil) == 1 else f"mean of landmarks {', '.join(map(str, pupil))}"


def _usable(normaliser: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.where(metrics.usable_normaliser(normaliser, truth), normaliser, np.nan)


def _summarise(nme_ocular: np.ndarray, nme_pupil: np.ndarray) -> dict:
    ocular, pupil = nme_ocular[~np.isnan(nme_ocular)], nme_pupil[~np.isnan(nme_pupil)]
    statistics = {
        "nme_interocular": (ocular, np.mean),
        "nme_interpupil": (pupil, np.mean),
        "fr_0.1": (ocular, lambda nme: metrics.failure_rate(nme, THRESHOLD)),
        "auc_0.1": (ocular, lambda nme: metrics.auc(nme, THRESHOLD)),
    }
    values = {key: float(statistic(nme)) if len(nme) else None for key, (nme, statistic) in statistics.items()}
    intervals = {
        key: list(metrics.bootstrap_interval(nme, statistic)) if len(nme) else None
        for key, (nme, statistic) in statistics.items()
    }
    return {"faces": len(nme_ocular), **values, "intervals_95": intervals}


def _write_csv(report: Report, path: Path) -> None:
    """One line per face at full precision, so that every number can be computed again from it; empty where left out."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "nme_interocular", "nme_interpupil", "tags"])
        for name, ocular, pupil, tags in zip(
            report.names, report.nme_interocular.tolist(), report.nme_interpupil.tolist(), report.tags, strict=True
        ):
            errors = ["" if np.isnan(nme) else repr(nme) for nme in (ocular, pupil)]
            writer.writerow([name, *errors, " ".join(sorted(tags))])


def _left_out_text(left_out: dict[str, list[str]]) -> str:
    counts = ", ".join(f"{len(names)} by {key}" for key, names in left_out.items())
    listed = list(dict.fromkeys(name for names in left_out.values() for name in names))
    examples = f": {', '.join(listed[:3])}{', ...' if len(listed) > 3 else ''}" if listed else ""
    return f"{counts} (normaliser below 0.1 % of the landmark box){examples}"


def _format_row(name: str, results: dict) -> str:
    cells = [_format_cell(results, key) for key in ("nme_interocular", "nme_interpupil", "fr_0.1", "auc_0.1")]
    return f"  {name:<14}{results['faces']:>6}  {cells[0]:<24}{cells[1]:<24}{cells[2]:<24}{cells[3]}".rstrip()


def _format_cell(results: dict, key: str) -> str:
    if results[key] is None:
        return "-"
    digits = 4 if key.startswith("auc") else 2
    low, high = results["intervals_95"][key]
    return f"{results[key]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
