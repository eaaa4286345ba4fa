import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # how long an example takes says nothing about its result
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory) -> Iterator[None]:
    """Cut faces that tests keep stay out of the home folder, also those of the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IACT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real annotated faces that IACT_DATA names; the test is skipped where it is unset."""
    root = os.environ.get("IACT_DATA")
    if not root:
        pytest.skip("IACT_DATA is not set: it names the folder with real faces (300w/, wflw/, cofw/)")
    return Path(root).resolve()


@pytest.fixture
def miniature(monkeypatch) -> None:
    """A network of a few thousand weights in the place of iact_t."""
    from small_training import MINIATURE

    from iact.model import SIZES

    monkeypatch.setitem(SIZES, "iact_t", MINIATURE)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """The folder of a whole run of a few steps."""
    from small_training import QUICK

    from iact.training import train

    return train(replace(QUICK, out=tmp_path_factory.mktemp("whole") / "run"))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Path:
    """The folder of an epoch of the miniature."""
    from small_training import MINIATURE, QUICK

    from iact.model import SIZES
    from iact.training import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "iact_t", MINIATURE)
        return train(replace(QUICK, epochs=1, out=tmp_path_factory.mktemp("small") / "run"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The folder of a run of a few steps that the command line made."""
    import torch
    from programs import iact

    folder, threads = tmp_path_factory.mktemp("runs") / "a run", torch.get_num_threads()
    settings = ("--synthetic-faces", 16, "--epochs", 1, "--batch-size", 4, "--threads", 1, "--seed", 3)
    ended = iact("train", *settings, "--amp", "off", "--device", "cpu", "--hold-out", 0.25, "--out", folder)
    torch.set_num_threads(threads)
    assert ended.code == 0, ended.err
    return folder
