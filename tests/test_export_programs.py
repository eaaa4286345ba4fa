"""Programs of torch.export and packages of AOTInductor: loaded as their users load them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_export import small_network
from torch._inductor.exc import InvalidCxxCompiler

from iact.errors import InputError
from iact.export import Deployed, programs
from iact.export.parity import compare
from iact.export.programs import open_package, open_program, save_package, save_program

ABOUT = {"layout": "wflw", "input_size": "32"}
ALONE = """
import json, sys, torch
sys.modules["iact"] = None
extra = {"iact.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
print(json.dumps([json.loads(extra["iact.json"]), list(program(torch.zeros(3, 3, 32, 32)).shape)]))
"""


COMPILED = """
import sys, torch
import iact.ops
from torch._inductor import aoti_load_package
print(list(aoti_load_package(sys.argv[1])(torch.zeros(3, 3, 32, 32)).shape))
"""


@pytest.fixture(scope="module")
def deployed() -> Deployed:
    return small_network(decode=False)


@pytest.mark.parametrize("block", ["spatial", "vit", "detr"])
def test_a_program_needs_pytorch_alone(block, tmp_path):
    path, deployed = tmp_path / "model.pt2", small_network(decode=False, block=block)
    save_program(deployed, ABOUT, path)
    parity = compare(open_program(path), deployed, "fp32")
    assert parity.holds and parity.compared > 0, parity
    elsewhere = [sys.executable, "-c", ALONE, str(path)]
    done = subprocess.run(elsewhere, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [ABOUT, [3, 4, 8, 8]]
    assert b"logsumexp" not in path.read_bytes()  # what only training needs
    assert str(Path(__file__).parents[1]).encode() not in path.read_bytes()  # no line of a file of this machine


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler here")
def test_a_package_calls_the_ops(deployed, tmp_path):
    path = tmp_path / "model.pt2"
    save_package(deployed, ABOUT, path)
    package = open_package(path)
    parity = compare(package, deployed, "fp32")
    assert parity.holds and parity.heatmap > 0, parity
    assert ABOUT.items() <= package.get_metadata().items()
    elsewhere = {"args": [sys.executable, "-c", COMPILED, str(path)], "cwd": Path(__file__).parents[1]}
    done = subprocess.run(**elsewhere, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "[3, 4, 8, 8]\n", done.stderr


def test_no_compiler_is_one_sentence(deployed, tmp_path, monkeypatch):
    def none_found():
        raise InvalidCxxCompiler

    monkeypatch.setattr(programs, "get_cpp_compiler", none_found)
    with pytest.raises(InputError, match="aoti needs a C\\+\\+ compiler"):
        save_package(deployed, ABOUT, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())
