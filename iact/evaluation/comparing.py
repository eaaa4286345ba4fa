"""Two systems on the same faces."""

import numpy as np

from iact import metrics
from iact.errors import InputError
from iact.evaluation.report import Report, key_of


def compare(first: Report, second: Report) -> dict[str, dict]:
    """How far each number of the second system is above the first's: {"nme_interocular": {"difference", "interval_95",
    "faces"}, "fr_0.1": ..., ...}, with 95 % paired bootstrap intervals: faces are drawn, and both errors with them.

    NME is compared on the faces that both have found, FR and AUC on all. InputError when the faces are not the same."""
    if first.names != second.names or first.thresholds != second.thresholds:
        raise InputError("reports: expected two on the same faces, with the same thresholds")
    found: dict[str, dict] = {}
    for normaliser, own in first.errors.items():
        other = second.errors[normaliser]
        both, counted = np.isfinite(own) & np.isfinite(other), ~np.isnan(own)
        found[f"nme_{normaliser}"] = _paired(own[both], other[both])
        for threshold in first.thresholds:
            for metric, each in (("fr", metrics.failures), ("auc", metrics.areas)):
                pair = (each(nme[counted], threshold) for nme in (own, other)) if counted.any() else (own[both],) * 2
                found[key_of(metric, threshold, normaliser)] = _paired(*pair)
    return found


def _paired(first: np.ndarray, second: np.ndarray) -> dict:
    if not len(first):
        return {"difference": None, "interval_95": None, "faces": 0}
    differences = second - first
    interval = list(metrics.bootstrap_interval(differences))
    return {"difference": float(differences.mean()), "interval_95": interval, "faces": len(differences)}
