"""The card of shipped weights, from what was measured of them."""

from collections.abc import Sequence

CARD = """\
# {name}

{landmarks} landmarks (the 300W / iBUG layout) for faces in photographs. `iact_t`: {parameters:.2f} M parameters,
{input_size} px input, {megabytes} MB (parameters in bfloat16).

```python
from iact import Predictor

predictor = Predictor.from_pretrained("{name}")
```

## Terms

Trained from nothing on faces of 300W (its AFW, HELEN and LFPW parts; Sagonas et al. 2013), and on nothing else:
{trained_on}. These pictures and annotations are for **non-commercial research**, and so are these weights: the MIT
licence of the code does not cover them. No picture of the data set is passed on with them.

## What was measured

On {split}: {faces} faces that training did not see. After {epoch} epochs; nothing was chosen on these faces. Boxes are
those of the true landmarks x {margin} unless said. NME and FR (share above 10 %) in percent.

| | NME inter-ocular [95 %] | NME inter-pupil | FR | AUC at 0.1 |
| --- | --- | --- | --- | --- |
{accuracy}

With boxes of the default detector (OpenCV's Haar cascade), which finds {found:.1f} % of these faces, each alone in its
picture: NME {detector_nme:.2f}, FR {detector_fr:.2f} on those. Left out: whoever it does not find.

## Where it fails

The same faces while one condition gets worse: NME (and mean score, which falls with it: below about 0.65 distrust the
landmarks). As they are: {plain_nme:.2f} ({plain_score:.2f}).

| condition | mild to severe: strength: NME (score) |
| --- | --- |
{limits}

![One portrait under each of these conditions](./{name}.jpg)

A row of the picture is a row of the table, four of its strengths from left to right. In green where the landmarks of
the undamaged picture would be, in red what the model finds. Portrait of Eileen Collins: NASA, public domain.

- Heads tilted by more than about 30 degrees: turn the picture first.
- Profiles: 300W has almost none, and places landmarks of the hidden side on the visible edge.
- The annotators of its three sources disagree, most about the ends of the brows and the line of the jaw.
- Faces in pictures from the web around 2010: who is rare there is served worse. This was not measured.
"""


def card(name: str, result: dict, rows: Sequence[dict]) -> str:
    """The Markdown text."""
    plain = result["shipped_auto"]["plain"]
    protocol = plain["protocol"]
    described = {**result["weights"], "parameters": result["weights"]["parameters"] / 1e6}
    return CARD.format(
        name=name,
        **described,
        megabytes=result["megabytes"],
        split=f"{protocol['data_set']} {protocol['split']}",
        faces=protocol["faces"],
        margin=protocol["box_rule"].rpartition(" ")[2],
        accuracy="\n".join(_accuracy(result)),
        found=result["detector"]["found"],
        detector_nme=result["detector"]["nme"],
        detector_fr=result["detector"]["fr"],
        plain_nme=rows[0]["nme"],
        plain_score=rows[0]["score"],
        limits="\n".join(_limits(rows[1:])),
    )


def _accuracy(result: dict) -> list[str]:
    kinds = {
        "as trained, float32": result["trained"],
        "as shipped, computed in float32": result["shipped"],
        "as shipped, by default": result["shipped_auto"],
    }
    tests = {"plain": "", "flip_test": ", flip test"}
    return [_line(kind + text, found[test]) for kind, found in kinds.items() for test, text in tests.items()]


def _line(name: str, report: dict) -> str:
    ocular, pupil = report["nme_interocular"], report["nme_interpupil"]
    low, high = report["intervals_95"]["nme_interocular"]
    rest = f"{pupil:.2f} | {report['fr_0.1']:.2f} | {report['auc_0.1']:.3f}"
    return f"| {name} | {ocular:.2f} [{low:.2f}, {high:.2f}] | {rest} |"


def _limits(rows: Sequence[dict]) -> list[str]:
    conditions = dict.fromkeys(row["condition"] for row in rows)
    return [f"| {name} | {', '.join(_cells(rows, name))} |" for name in conditions]


def _cells(rows: Sequence[dict], condition: str) -> list[str]:
    own = (row for row in rows if row["condition"] == condition)
    return [f"{row['strength']}: {row['nme']:.1f} ({row['score']:.2f})" for row in own]
