"""What the rows of a study say: differences with intervals, a Markdown table, and curves of convergence."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, MaxNLocator

from iact import metrics
from iact.evaluation import THRESHOLD
from iact.files import write_atomically
from iact.plots import COLOURS

HEAD = "| variant | NME, % | against | difference, % [95 %] | verdict | between seeds | FR, % | AUC | minutes |"
CAPTION = """\
{faces} held-out training faces of {data}; {model}, {trained_on} faces to train on, epochs: {epochs}, seeds: {seeds};
weights of the last epoch, chosen on nothing. The difference has its 95 % bootstrap interval, paired over faces, the
seeds averaged: it speaks for the choice of faces, not for the luck of a run. "better" and "worse" need an interval
without 0 and the same sign for every seed; where nothing matters, one variant in twenty passes the first. Between
seeds: standard deviation of the NME. Minutes: of one training, without what is done between epochs."""
MOST_CURVES = 8  # that can be told apart

Errors = dict[int, np.ndarray]
"""NME (%) of each held-out face [N], by seed."""


def errors_of(rows: Sequence[dict], variant: str) -> Errors:
    """Of the seeds whose training ended well."""
    return {row["seed"]: np.array(row["errors"]) for row in rows if row["variant"] == variant and "errors" in row}


def compare(own: Errors, other: Errors) -> dict | None:
    """The difference own - other of the mean NME (%) over the seeds that both have, its 95 % interval, and a verdict;
    None where they share no seed."""
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        return None
    per_face = np.stack([own[seed] - other[seed] for seed in seeds])  # [S, N]
    low, high = metrics.bootstrap_interval(per_face.mean(axis=0))
    signs = set(np.sign(per_face.mean(axis=1)))
    certain = len(signs) == 1 and low * high > 0
    verdict = ("worse" if low > 0 else "better") if certain else "undecided"
    numbers = {"difference": float(per_face.mean()), "interval_95": [low, high], "seeds_compared": len(seeds)}
    return {**numbers, "verdict": verdict}


def summarise(rows: Sequence[dict]) -> list[dict]:
    """One entry for each variant, in the order in which they were first measured."""
    return [_summary(rows, variant) for variant in dict.fromkeys(row["variant"] for row in rows)]


def _summary(rows: Sequence[dict], variant: str) -> dict:
    own, errors = [row for row in rows if row["variant"] == variant], errors_of(rows, variant)
    entry = {
        "variant": variant,
        "against": own[0]["against"],
        "failed": [row["seed"] for row in own if "failed" in row],
    }
    if not errors:
        return entry
    means = [float(nme.mean()) for nme in errors.values()]
    entry |= {
        "seeds": list(errors),
        "nme": float(np.mean(means)),
        "between_seeds": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "fr_0.1": float(np.mean([metrics.failure_rate(nme, THRESHOLD) for nme in errors.values()])),
        "auc_0.1": float(np.mean([metrics.auc(nme, THRESHOLD) for nme in errors.values()])),
        "minutes": float(np.mean([row["minutes"] for row in own if "errors" in row])),
    }
    return entry | (compare(errors, errors_of(rows, entry["against"])) or {})


def table(result: dict) -> str:
    """The Markdown table of a study, with what one has to know to read it."""
    rows, settings = result["rows"], result["settings"]
    entries = summarise(rows)
    known = {name: settings[name] for name in ("data", "model", "epochs")}
    caption = CAPTION.format(
        faces=len(result["held_out"]),
        trained_on=result["trained_on"],
        seeds=len({row["seed"] for row in rows}),
        **known,
    )
    return "\n".join([HEAD, re.sub(r"[^|]+", " --- ", HEAD), *(map(_line, entries)), "", caption])


def _line(entry: dict) -> str:
    failed = f" (no numbers for seed {', '.join(map(str, entry['failed']))})" if entry["failed"] else ""
    if "nme" not in entry:
        return f"| {entry['variant']}{failed} | {' | '.join(['-'] * 8)} |"
    difference, verdict = "-", "-"
    if "difference" in entry:
        low, high = entry["interval_95"]
        difference, verdict = f"{entry['difference']:+.3f} [{low:+.3f}, {high:+.3f}]", entry["verdict"]
    spread = "-" if entry["between_seeds"] is None else f"{entry['between_seeds']:.3f}"
    numbers = [f"{entry['fr_0.1']:.2f}", f"{entry['auc_0.1']:.3f}"]
    minutes = f"{entry['minutes']:.1f}" if entry["minutes"] else "-"
    nme, against = f"{entry['nme']:.3f}", entry["against"] or "-"
    cells = [entry["variant"] + failed, nme, against, difference, verdict, spread, *numbers, minutes]
    return f"| {' | '.join(cells)} |"


def curves_of(rows: Sequence[dict]) -> dict[str, np.ndarray]:
    """The NME (%) of the held-out faces after every epoch [S, E] of each variant that was trained."""
    found: dict[str, list] = {}
    for row in rows:
        if "curve" in row:
            found.setdefault(row["variant"], []).append(row["curve"])
    return {variant: np.array(curves) for variant, curves in found.items()}


def plot_curves(curves: Mapping[str, np.ndarray], title: str, path: Path) -> None:
    """Writes the convergence of each variant's curves [S, E]: their mean, and a band from the lowest to the highest.

    What stands before a slash in the name chooses the colour, what stands behind it the kind of line."""
    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    parts = [name.partition("/")[::2] for name in curves]
    colours, styles = (list(dict.fromkeys(kind)) for kind in zip(*parts, strict=True))
    for (name, values), (first, last) in zip(curves.items(), parts, strict=True):
        epochs, colour = np.arange(1, values.shape[1] + 1), COLOURS[colours.index(first) % len(COLOURS)]
        style = ("-", "--", "-.", ":")[styles.index(last) % 4]
        label = f"{values[:, -1].mean():.2f} %   {name}"
        axes.plot(epochs, values.mean(axis=0), style, color=colour, linewidth=1.6, label=label)
        axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yscale("log", subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
    axes.set(xlabel="epoch", ylabel="NME of the held-out faces (%)", title=title)
    axes.grid(color="#dddddd", linewidth=0.7, which="both")
    axes.legend(fontsize=9, framealpha=0.9, edgecolor="none")
    write_atomically(path, lambda temporary: canvas.print_png(str(temporary)))
