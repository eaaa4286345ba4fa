import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # how long an example takes says nothing about its result
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real annotated faces that IACT_DATA names; the test is skipped where it is unset."""
    root = os.environ.get("IACT_DATA")
    if not root:
        pytest.skip("IACT_DATA is not set: it names the folder with real faces (300w/, wflw/, cofw/)")
    return Path(root).resolve()
