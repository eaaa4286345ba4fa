"""`iact info`."""

from rich.console import Console
from rich.table import Table


def info() -> None:
    """Say what was built and which backend each op will use here."""
    from iact.ops.info import report

    table = Table(show_header=False, box=None)
    for name, value in report().items():
        table.add_row(name, value)
    Console().print(table)
