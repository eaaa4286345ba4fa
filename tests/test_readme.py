"""The figures in the README are those of the files they cite."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def _result_rows() -> list[tuple[str, str]]:
    """Table rows that cite a result file: the row and the file."""
    rows = (line for line in README.splitlines() if line.startswith("|"))
    return [(row, cited) for row in rows for cited in re.findall(r"\((benchmarks/results/[^)]+\.json)\)", row)]


def test_results_are_cited():
    assert len(_result_rows()) >= 2


@pytest.mark.parametrize(("row", "cited"), _result_rows(), ids=lambda value: Path(value).name[-40:])
def test_figures_agree_with_the_file(row, cited):
    result = json.loads((ROOT / cited).read_text())
    assert f"{result['minutes']:g} min" in row
    for way in ("plain", "flip_test"):
        assert f"{result[way]['nme_interocular']:.2f}" in row
    assert f"{result['plain']['faces']}" in row and f"{result['settings']['epochs']}" in row
    assert {"processor", "cores", "torch", "commit"} <= set(result["machine"])


def test_tables_of_the_ops_are_those_of_their_results():
    command = [sys.executable, "benchmarks/tables.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_that_the_readme_names_exist():
    named = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"python ((?:scripts|benchmarks)/\w+\.py)", README)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert named and not missing


def test_commands_in_the_readme_take_the_flags_they_are_given():
    sources = [*(ROOT / "iact" / "commands").glob("*.py"), ROOT / "iact" / "config.py"]
    known = set(re.findall(r"^    (\w+):", "\n".join(source.read_text() for source in sources), re.MULTILINE))
    for script, flags in re.findall(r"python scripts/(\w+)\.py([^\n#]*)", README):
        for flag in re.findall(r"--([\w-]+)", flags):
            assert flag.replace("-", "_") in known or flag == "help", f"{script}: --{flag}"
