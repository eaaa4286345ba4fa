"""The study of the training's choices, shared by several processes."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[1] / "benchmarks" / "bench_study.py"
QUICK = "--study table6 --only channel_attention=False --epochs 1 --synthetic-faces 20 --hold-out 0.2 --batch-size 8"


def test_workers_do_not_change_what_comes_out(tmp_path):
    results = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        where = f"--seeds 1 --device cpu --amp off --threads 1 --workers {workers} --out {out}"
        done = subprocess.run([sys.executable, PROGRAM, *QUICK.split(), *where.split()], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"by {workers} workers" in done.stdout and "| channel_attention=False | " in done.stdout
        results.append(json.loads((out / "study_table6_synthetic_iact_t.json").read_text())["rows"])
    alone, shared = ([(row["variant"], row["errors"], row["curve"]) for row in rows] for rows in results)
    assert alone == shared and len(alone) == 2
