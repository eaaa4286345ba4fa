"""`iact check-dataset`."""

from pathlib import Path
from typing import Literal

from rich.console import Console

from iact.data.check import check_dataset


def check(data: Literal["300w", "wflw", "cofw", "points"], root: Path, sheet: Path = Path("contact_sheet.png")) -> int:
    """Check the files of a data set; exit code 1 when there are problems.

    Args:
        data: The data set; points is one of your own.
        root: The folder that holds its files.
        sheet: The contact sheet (PNG) to write: faces with their landmarks."""
    return 1 if check_dataset(data, root, sheet, Console()).problems else 0
