"""`iact demo` without installing: python scripts/demo.py --help"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iact.__main__ import run  # noqa: E402
from iact.commands import demo  # noqa: E402

if __name__ == "__main__":
    run(demo)
