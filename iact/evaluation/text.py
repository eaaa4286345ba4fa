"""Reports as text for a terminal."""

from collections.abc import Mapping

from iact.evaluation.report import Report, key_of

NORMALISERS = {"interocular": "ocular", "interpupil": "pupil", "box": "box"}


def format_report(report: Report) -> str:
    """The report as text for a terminal: the protocol first, then the numbers with their 95 % intervals."""
    numbers = report.to_json()
    percentiles = ", ".join(f"{key} %: {value:.2f}" for key, value in numbers["percentiles"].items())
    worst = ", ".join(f"{face['name']} ({face['nme_interocular']:.1f})" for face in numbers["worst"][:3])
    return "\n".join(
        [
            *(f"  {key:<12}{value}" for key, value in protocol_rows(report)),
            "",
            *_table(report),
            "  [low, high]: 95 % interval over faces (bootstrap; of FR Wilson's); FR and AUC from the inter-ocular NME",
            "",
            f"  {'percentiles':<12}{percentiles}  (NME ocular %)",
            f"  {'worst':<12}{worst}",
        ]
    )


def protocol_rows(report: Report) -> list[tuple[str, str]]:
    """What the numbers depend on, as pairs of a word and a sentence."""
    protocol, cost = report.protocol, report.cost
    flip_test = {True: "yes", False: "no", None: "not known"}[protocol.flip_test]
    rows = [
        ("data set", f"{protocol.data_set}, split {protocol.split}, {protocol.faces} faces"),
        *(("missing", sentence) for sentence in protocol.missing),
        ("weights", protocol.weights),
        ("boxes", protocol.box_rule),
        ("flip test", flip_test),
        *(("normaliser", normaliser) for normaliser in protocol.normalisers),
        ("left out", _left_out_text(report.left_out)),
    ]
    if report.not_found:
        named, count = _some(report.not_found), len(report.not_found)
        rows.append(("not found", f"{count} of the faces, failures in FR and AUC, in no mean: {named}"))
    if cost:
        size = f"{cost.parameters_millions:.2f} M parameters, {cost.gmac:.2f} GMAC"
        rows.append(("cost", f"{size}, {cost.milliseconds:.1f} ms a face ({cost.device})"))
    return rows


def format_comparison(differences: Mapping[str, dict], first: str, second: str) -> str:
    """What `compare` found, as text for a terminal; inter-ocular."""
    lines = [f"  {second} minus {first}, paired over the same faces [95 % bootstrap interval]:"]
    for key, one in differences.items():
        if one["difference"] is not None and not key.endswith(("_interpupil", "_box")):
            digits = _digits(key)
            low, high = one["interval_95"]
            verdict = "a difference" if low > 0 or high < 0 else "no difference that these faces can tell"
            difference = f"{one['difference']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
            lines.append(f"  {key:<18}{difference}  {verdict} ({one['faces']} faces)")
    return "\n".join(lines)


def _table(report: Report) -> list[str]:
    columns = {f"nme_{name}": f"NME {NORMALISERS[name]} %" for name in report.errors}
    for threshold in report.thresholds:
        columns[key_of("fr", threshold)] = f"FR@{threshold / 100:g} %"
        columns[key_of("auc", threshold)] = f"AUC@{threshold / 100:g}"
    sets = {"all": report.results, **report.subsets}
    cells = [["set", "faces", *columns.values()]]
    for name, results in sets.items():
        cells.append([name, str(results["faces"]), *(_cell(results, key) for key in columns)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def _cell(results: dict, key: str) -> str:
    if results[key] is None:
        return "-"
    digits = _digits(key)
    low, high = results["intervals_95"][key]
    return f"{results[key]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _digits(key: str) -> int:
    return 4 if key.startswith("auc") else 2


def _left_out_text(left_out: dict[str, list[str]]) -> str:
    counts = ", ".join(f"{len(names)} by {key}" for key, names in left_out.items())
    listed = list(dict.fromkeys(name for names in left_out.values() for name in names))
    return f"{counts} (normaliser below 0.1 % of the landmark box)" + (f": {_some(listed)}" if listed else "")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
