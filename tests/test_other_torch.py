"""The extension that was built here, loaded by another version of torch: one binary serves them all.

IACT_OTHER_TORCH names the version, as in IACT_OTHER_TORCH=2.13.0; pip puts it in a folder of its own under build/."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VERSION = os.environ.get("IACT_OTHER_TORCH", "")
LIBRARY = ROOT / "iact" / "_C.abi3.so"
CHECK = """
import sys
import torch
from iact import ops
from iact.ops import info
from iact.ops.reference.wing import wing_loss

assert torch.__file__.startswith(sys.argv[1]), torch.__file__
assert torch.__version__.startswith(sys.argv[2]), torch.__version__
assert info.report()["compiled extension"].startswith("built with torch "), info.report()
assert info.backends("wing_loss").startswith("CPU: kernel"), info.backends("wing_loss")
torch.manual_seed(0)
pred, target = torch.rand(2, 3, 9, 7, dtype=torch.float64, requires_grad=True), torch.rand(2, 3, 9, 7).double()
numbers = (True, 14.0, 0.05, 0.5, 2.1, 1.0)
loss = ops.smooth_wing_loss(pred, target, reduction="none")
loss.sum().backward()
expected, slope = wing_loss(pred.detach(), target, None, *numbers, False)[:2]
torch.testing.assert_close(loss.detach(), expected)
torch.testing.assert_close(pred.grad, slope)
mean = wing_loss(pred.detach(), target, None, *numbers, True)[0]
torch.testing.assert_close(ops.smooth_wing_loss(pred, target).detach(), mean)
"""


@pytest.fixture(scope="module")
def other_torch() -> Path:
    """A folder that holds the other torch and nothing that it depends on."""
    kept = ROOT / "build" / "other_torch" / VERSION
    if kept.is_dir():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        install = ["pip", "install", "--quiet", "--no-deps", "--target", f"{folder}/new", f"torch=={VERSION}"]
        done = subprocess.run([sys.executable, "-m", *install], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"pip cannot install torch {VERSION}: {done.stderr.strip().splitlines()[-1]}")
        if not kept.is_dir():  # another process may have been faster
            Path(folder, "new").rename(kept)
    return kept


@pytest.mark.skipif(not VERSION, reason="IACT_OTHER_TORCH names no version")
@pytest.mark.skipif(not LIBRARY.is_file(), reason="the extension is not built here")
def test_the_extension_runs_under_another_torch(other_torch):
    environment = os.environ | {"PYTHONPATH": f"{other_torch}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(other_torch), VERSION],
        env=environment, cwd=other_torch, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
