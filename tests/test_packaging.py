"""The package with its extension, without it, and with a broken one, each in a copy of the tree."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from iact import ops

ROOT = Path(__file__).resolve().parents[1]
MAPS = "torch.full((2, 3, 4, 4), 0.7), torch.full((2, 3, 4, 4), 0.4)"
LOSS = f"import torch; from iact import ops; print(ops.smooth_wing_loss({MAPS}).item())"
STATE = "from iact.ops import info; print(info.report()['compiled extension']); print(info.backends('wing_loss'))"
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler here")


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the sources, with nothing built."""
    skip = shutil.ignore_patterns("*.so", "__pycache__")
    for folder in ("iact", "csrc"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").write_text("iact\n")
    return tmp_path


def python(tree: Path, *arguments: str, **environment: str) -> str:
    """What Python prints when it runs in the tree; it has to succeed."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=inherited | environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_loss_is_right(tree: Path) -> None:
    expected = ops.smooth_wing_loss(torch.full((2, 3, 4, 4), 0.7), torch.full((2, 3, 4, 4), 0.4)).item()
    assert float(python(tree, "-c", LOSS)) == pytest.approx(expected, rel=1e-6)


@needs_compiler
def test_build_ext_builds_in_place_and_again_only_for_changed_sources(tree):
    python(tree, "setup.py", "build_ext", DEBUG="1")
    (library,) = (tree / "iact").glob("_C*.so")
    assert library.name == "_C.abi3.so"
    extension, backends = python(tree, "-c", STATE).splitlines()
    assert extension == f"built with torch {torch.__version__}, CPU kernels"
    assert backends.startswith("CPU: kernel")
    assert_loss_is_right(tree)
    assert_stable_abi_only(library)

    built = {path: path.stat().st_mtime_ns for path in tree.glob("build/**/*.o")}
    assert built
    python(tree, "setup.py", "build_ext", DEBUG="1")
    assert built == {path: path.stat().st_mtime_ns for path in tree.glob("build/**/*.o")}


def assert_stable_abi_only(library: Path) -> None:
    """One binary loads in several torch versions only if it needs no C++ symbol of torch."""
    if shutil.which("nm"):
        listing = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
        needed = [line.split()[-1] for line in listing.stdout.splitlines()]
        assert "aoti_torch_library_init_impl" in needed
        assert not [
            name for name in needed if name.startswith(("_ZN2at", "_ZNK2at", "_ZN5torch", "_ZN3c10", "_ZNK3c10"))
        ]


def test_references_run_where_nothing_was_built(tree):
    extension, backends = python(tree, "-c", STATE).splitlines()
    assert extension == "not built (run: python setup.py build_ext)"
    assert backends.startswith("CPU: PyTorch reference")
    assert_loss_is_right(tree)


def test_a_broken_extension_is_reported_and_replaced_by_the_references(tree):
    (tree / "iact" / "_C.abi3.so").write_bytes(b"\x7fELF and then nothing")
    extension, backends = python(tree, "-c", STATE).splitlines()
    assert extension.startswith("built, but it does not load here") and "python setup.py build_ext" in extension
    assert backends.startswith("CPU: PyTorch reference")
    assert_loss_is_right(tree)


def test_without_a_compiler_one_line_says_so_and_the_build_succeeds(tree):
    said = python(tree, "setup.py", "build_ext", CXX="no-such-compiler")
    assert said.count("not building the compiled extension: there is no C++ compiler here (no-such-compiler") == 1
    assert not list(tree.rglob("*.so"))


def test_without_torch_a_wheel_of_pure_python_is_built(tree):
    hide = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['setup.py', 'bdist_wheel']; exec(open('setup.py').read())"
    )
    said = python(tree, "-c", hide)
    assert said.count("not building the compiled extension: torch is not importable in this build") == 1
    assert [path.name for path in (tree / "dist").iterdir()] == ["iact-0.1.0-py3-none-any.whl"]
