import os

import pytest
import torch


@pytest.fixture(autouse=True)
def gpu() -> None:
    """Skips the tests of this folder where there is no GPU."""
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA GPU here")


@pytest.fixture
def small() -> bool:
    """Whether to use small cases, as under a sanitizer, which slows kernels 10-50 times."""
    return bool(os.environ.get("IACT_SMALL_TESTS"))
