"""A program for tests that need training in processes of their own: python small_training.py SETTINGS, where SETTINGS
is JSON with fields of TrainConfig, and `largest_file`, in bytes, for a disk that is nearly full."""

import json
import resource
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from iact.__main__ import run  # noqa: E402
from iact.config import TrainConfig  # noqa: E402
from iact.model import SIZES, ModelConfig  # noqa: E402
from iact.training import train  # noqa: E402

QUICK = TrainConfig(
    synthetic_faces=24, batch_size=4, epochs=3, hold_out=0.1, warmup_steps=2, threads=1, device="cpu", amp="off"
)
ONE_BLOCK = (1, 1, 1)
MINIATURE = ModelConfig(
    98, 64, stem=8, channels=8, conv_modules=1, heads=(1, 2, 4), depths=ONE_BLOCK, fusion_depths=ONE_BLOCK, head=16
)


def main() -> None:
    SIZES["iact_t"] = MINIATURE
    settings = json.loads(sys.argv.pop())
    largest = settings.pop("largest_file", None)
    config = replace(QUICK, **{**settings, "out": Path(settings["out"])})

    def program() -> None:
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        train(config)

    run(program)


if __name__ == "__main__":
    main()
