"""Tables in Markdown, in the layout of the paper's Tables 1 to 4, with the published rows beside ours."""

import re
from collections.abc import Iterable, Mapping, Sequence

from iact.evaluation import published
from iact.evaluation.report import THRESHOLD, Report, key_of
from iact.evaluation.text import protocol_rows

FR, AUC = key_of("fr", THRESHOLD), key_of("auc", THRESHOLD)
FR_PUPIL = key_of("fr", THRESHOLD, "interpupil")
KEY = "In bold: measured here; the others: as published, the protocol of which is not always known."
MARKS = re.compile(r"[\\`*<|\[]")  # that mean something in Markdown, in the middle of a line
Reports = Mapping[str, Report]


def format_tables(reports: Reports) -> str:
    """The tables of one system or several on the same split, by their names in bold, and the protocol of each."""
    data_set = next(iter(reports.values())).protocol.data_set
    tables = _PUBLISHED.get(data_set, _plain_table)(reports)
    parts = [*tables, *_cost_table(reports), *(_protocol(name, report) for name, report in reports.items())]
    return "\n\n".join(parts) + "\n"


def _wflw_tables(reports: Reports) -> list[str]:
    keys, headings = _columns("wflw", reports)
    rows = [[method, year, *_texts(cost, 2), "-", *_texts(nme, 2)] for method, year, cost, nme in published.WFLW_NME]
    for name, report in reports.items():
        rows.append([_bold(name), "-", *_cost_cells(report), *_own(report, keys, "nme_interocular", 2)])
    head = ("Method", "Year", "Params (M)", "Flops (G)", "Latency (ms)")
    first = _table(f"Table 1: WFLW, inter-ocular NME (%). {KEY}", (*head, *headings), rows)
    rows = [["FR@0.1 (%)", method, *_texts(row, 2)] for method, row in published.WFLW_FR]
    rows += [["FR@0.1 (%)", _bold(name), *_own(report, keys, FR, 2)] for name, report in reports.items()]
    rows += [["AUC@0.1", method, *_texts(row, 3)] for method, row in published.WFLW_AUC]
    rows += [["AUC@0.1", _bold(name), *_own(report, keys, AUC, 3)] for name, report in reports.items()]
    return [first, _table(f"Table 2: WFLW, FR and AUC, inter-ocular. {KEY}", ("Metric", "Method", *headings), rows)]


def _cofw_tables(reports: Reports) -> list[str]:
    rows = [[method, *_texts(row, 2)] for method, row in published.COFW]
    keys = ("nme_interocular", FR, "nme_interpupil", FR_PUPIL)
    rows += [[_bold(name), *_texts([report.results.get(key) for key in keys], 2)] for name, report in reports.items()]
    head = ("Method", "NME ocular (%)", "FR@0.1 ocular (%)", "NME pupil (%)", "FR@0.1 pupil (%)")
    return [_table(f"Table 3: COFW. {KEY}", head, rows)]


def _w300_tables(reports: Reports) -> list[str]:
    keys, headings = _columns("300w", reports)
    rows = [[method, *_texts(row, 2)] for method, row in published.W300_NME]
    rows += [[_bold(name), *_own(report, keys, "nme_interocular", 2)] for name, report in reports.items()]
    return [_table(f"Table 4: 300W, inter-ocular NME (%). {KEY}", ("Method", *headings), rows)]


def _plain_table(reports: Reports) -> list[str]:
    """For a data set on which nobody has published."""
    first = next(iter(reports.values()))
    keys = [key for key in first.results if key not in ("faces", "intervals_95")]
    rows = [[_bold(name), *_texts([report.results[key] for key in keys], 3)] for name, report in reports.items()]
    caption = f"{first.protocol.data_set} {first.protocol.split}: NME and FR in percent, AUC 0 to 1."
    return [_table(caption, ("Method", *keys), rows)]


_PUBLISHED = {"wflw": _wflw_tables, "cofw": _cofw_tables, "300w": _w300_tables}


def _columns(data_set: str, reports: Reports) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sets and headings of a table; a split that papers do not report has a column of its own."""
    split = next(iter(reports.values())).protocol.split
    own = () if split in published.SETS[data_set] else (split,)
    return (*published.SETS[data_set], *own), (*published.HEADINGS[data_set], *own)


def _own(report: Report, keys: Iterable[str], metric: str, digits: int) -> list[str]:
    """The metric of each set: the split itself, or a subset of the whole test set. The subsets of a part of it are
    parts of those that papers report."""
    whole = report.protocol.split == published.SETS[report.protocol.data_set][0]
    sets = {**(report.subsets if whole else {}), report.protocol.split: report.results}
    return _texts([sets.get(key, {}).get(metric) for key in keys], digits)


def _cost_table(reports: Reports) -> list[str]:
    known = {name: report for name, report in reports.items() if report.cost}
    rows = [[_bold(name), *_cost_cells(report), report.cost.device] for name, report in known.items()]
    head = ("Method", "Params (M)", "Flops (G)", "Latency (ms)", "on")
    caption = "Parameters, multiply-accumulates of one face, and time from one cut face to its landmarks."
    return [_table(caption, head, rows)] if rows else []


def _cost_cells(report: Report) -> list[str]:
    cost = report.cost
    return _texts([cost.parameters_millions, cost.gmac, cost.milliseconds], 2) if cost else ["-"] * 3


def _protocol(name: str, report: Report) -> str:
    lines = [f"- {key}: {_plain(value)}" for key, value in protocol_rows(report)]
    incomplete = ["- Faces are missing: not comparable with published numbers."] if report.protocol.missing else []
    return "\n".join([f"Protocol of {_bold(name)}:", "", *lines, *incomplete])


def _bold(name: str) -> str:
    return f"**{_plain(name)}**"


def _plain(text: str) -> str:
    """What Markdown shows as it stands here."""
    return MARKS.sub(r"\\\g<0>", " ".join(text.split()))


def _texts(numbers: Sequence[float | None], digits: int) -> list[str]:
    return ["-" if number is None else f"{number:.{digits}f}" for number in numbers]


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Short rows are filled up with dashes."""
    filled = [[*row, *["-"] * (len(head) - len(row))] for row in rows]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *filled)]
    return "\n".join([caption, "", *lines])
