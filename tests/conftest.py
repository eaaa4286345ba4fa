import os
from collections.abc import Iterator
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
