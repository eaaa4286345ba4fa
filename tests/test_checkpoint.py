"""Files of a run: whole or refused, and nothing in them is executed."""

import errno
import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from iact.checkpoint import Description, find_weights, load_resume, load_weights, save_resume, save_weights
from iact.errors import InputError
from iact.files import write_atomically
from iact.layout_file import parse_layout
from iact.layouts import COFW
from iact.model import IACT, ModelConfig

BLOCKS = {"depths": (1, 1, 1), "fusion_depths": (1, 1, 1)}
CONFIG = ModelConfig(COFW.num_landmarks, 64, stem=8, channels=8, conv_modules=1, heads=(1, 2, 4), head=16, **BLOCKS)
DESCRIPTION = Description(CONFIG, COFW, 1.25, 7, "cofw train, 1278 faces", "67 held-out training faces")
NAMES = [f"point {index}" for index in range(29)]
OWN = {"name": "own", "landmarks": NAMES, "mirror": [NAMES[3:5]], "normaliser": NAMES[:2], "edges": [NAMES[7:9]]}


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "best.safetensors"
    save_weights(path, IACT(CONFIG), DESCRIPTION)
    return path


def _describe(path: Path, **changes) -> None:
    """Writes the weights again with another description."""
    text = json.dumps({**asdict(DESCRIPTION), "layout": "cofw", **changes})
    save_file(load_file(path), path, metadata={"iact": text})


def _assert_one_sentence(error: InputError, path: Path) -> None:
    text = str(error)
    assert text.startswith(f"{path}: ") and "\n" not in text


def test_weights_come_back_with_their_description(tmp_path):
    model = IACT(CONFIG).to(memory_format=torch.channels_last).train()
    save_weights(tmp_path / "new folder" / "last.safetensors", model, DESCRIPTION)
    found, description = load_weights(tmp_path / "new folder")
    assert description == DESCRIPTION and not found.training
    assert list(found.state_dict()) == list(model.state_dict())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in found.state_dict().items())


def test_a_layout_of_ones_own_is_kept_whole(tmp_path):
    own = replace(DESCRIPTION, layout=parse_layout({**OWN, "box_in_face": [0.1, 0, 0.5]}, "here"))
    save_weights(tmp_path / "last.safetensors", IACT(CONFIG), own)
    assert load_weights(tmp_path)[1] == own


def test_others_may_read_the_weights_as_the_umask_says(weights, tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    assert weights.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_find_weights_prefers_the_best(weights, tmp_path):
    (tmp_path / "last.safetensors").write_bytes(weights.read_bytes())
    assert find_weights(tmp_path) == weights
    assert find_weights(tmp_path / "last.safetensors") == tmp_path / "last.safetensors"
    weights.unlink()
    assert find_weights(tmp_path) == tmp_path / "last.safetensors"


@pytest.mark.parametrize("name", [".", "missing.safetensors", "missing/folder"])
def test_no_weights_are_one_sentence(name, tmp_path):
    with pytest.raises(InputError, match="no weights here") as caught:
        find_weights(tmp_path / name)
    _assert_one_sentence(caught.value, tmp_path / name)


@pytest.mark.parametrize("keep", [0, 7, 300, -1])
def test_weights_cut_short_are_refused(keep, weights):
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(InputError, match="not a whole safetensors file") as caught:
        load_weights(weights)
    _assert_one_sentence(caught.value, weights)


def test_weights_without_description_are_refused(weights):
    save_file(load_file(weights), weights)
    with pytest.raises(InputError, match="carry no description"):
        load_weights(weights)


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": "no such layout"},
        {"layout": ["cofw"]},
        {"layout": "wflw"},
        {"layout": None},
        {"layout": {**OWN, "landmarks": NAMES[:28]}},
        {"layout": {**OWN, "mirror": [["point 3", "point 99"]]}},
        {"layout": {"name": "wflw"}},
        {"model": [1, 2]},
        {"model": {"surprise": 1}},
        {"model": {**asdict(CONFIG), "channels": "eight"}},
        {"model": {**asdict(CONFIG), "channels": -8}},
        {"model": {**asdict(CONFIG), "heads": (0, 0, 0)}},
        {"model": {**asdict(CONFIG), "heads": None}},
        {"sigma": -1},
        {"sigma": "wide"},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_damaged_description_is_refused(changes, weights):
    _describe(weights, **changes)
    with pytest.raises(InputError, match="the description of the model is damaged") as caught:
        load_weights(weights)
    _assert_one_sentence(caught.value, weights)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model": {}}'])
def test_a_description_that_is_none_is_refused(text, weights):
    save_file(load_file(weights), weights, metadata={"iact": text})
    with pytest.raises(InputError, match="the description of the model is damaged"):
        load_weights(weights)


def test_weights_of_another_model_are_refused(weights):
    _describe(weights, model={**asdict(CONFIG), "channels": 16})
    with pytest.raises(InputError, match="do not fit the model they describe") as caught:
        load_weights(weights)
    _assert_one_sentence(caught.value, weights)


def test_what_resuming_needs_comes_back(tmp_path):
    state = {"epoch": 3, "best": 4.5, "model": {"weight": torch.arange(5.0)}, "text": "x"}
    save_resume(tmp_path / "resume.pt", state)
    found = load_resume(tmp_path / "resume.pt")
    assert torch.equal(found["model"].pop("weight"), torch.arange(5.0)) and found == {**state, "model": {}}


@pytest.mark.parametrize("keep", [0, 10, 500, -1])
def test_a_checkpoint_cut_short_is_refused(keep, tmp_path):
    path = tmp_path / "resume.pt"
    save_resume(path, {"epoch": 3, "model": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="a damaged checkpoint, or none at all") as caught:
        load_resume(path)
    _assert_one_sentence(caught.value, path)


class Bomb:
    """A pickle of it creates a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb, protocol=2))])
def test_a_checkpoint_executes_nothing(write, tmp_path):
    path, crater = tmp_path / "resume.pt", tmp_path / "crater"
    write(Bomb(crater), path)
    torch.load(path, weights_only=False) if write is torch.save else pickle.loads(path.read_bytes())
    assert crater.exists(), "the bomb must work where it is allowed to"
    crater.unlink()
    with pytest.raises(InputError) as caught:
        load_resume(path)
    _assert_one_sentence(caught.value, path)
    assert not crater.exists()
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_weights(path)
    assert not crater.exists()


@pytest.mark.parametrize("data", [b"garbage", b"\x80\x02N.", b"PK\x03\x04" + b"\0" * 100, bytes(range(256)) * 20])
def test_a_file_that_is_no_checkpoint_is_refused(data, tmp_path):
    path = tmp_path / "resume.pt"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        load_resume(path)
    _assert_one_sentence(caught.value, path)


def test_no_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        load_resume(tmp_path / "resume.pt")


@pytest.mark.parametrize(
    ("failure", "expected"),
    [(RuntimeError("our bug"), RuntimeError), (OSError(errno.ENOSPC, "No space left on device"), InputError)],
)
def test_a_failure_in_the_middle_leaves_the_old_file(failure, expected, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise failure

    with pytest.raises(expected, match=f"{path}: cannot be written .No space" if expected is InputError else "our bug"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written") as caught:
        write_atomically(tmp_path / "file" / "below", lambda path: path.write_text(""))
    _assert_one_sentence(caught.value, tmp_path / "file" / "below")


@pytest.mark.parametrize("save", ["weights", "resume"])
def test_a_full_disk_is_one_sentence_and_keeps_the_old_file(save, weights, tmp_path):
    """A limit on the size of files stands for the full disk: the operating system refuses in the middle of a write."""
    resource, signal = pytest.importorskip("resource"), pytest.importorskip("signal")
    before = weights.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            if save == "weights":
                save_weights(weights, IACT(CONFIG), DESCRIPTION)
            else:
                save_resume(weights, {"model": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert weights.read_bytes() == before and list(tmp_path.iterdir()) == [weights]
