"""The `iact` command, run in this process."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

import pytest

from iact.__main__ import main


@dataclass(frozen=True)
class Ended:
    """How a program ended: exit code and what it printed."""

    code: int
    out: str
    err: str

    def said(self, *words: str) -> bool:
        """Whether it refused with exit code 2 and one sentence that holds these words."""
        one_line = self.err.startswith("error: ") and self.err.count("\n") == 1
        return self.code == 2 and one_line and all(word in self.err for word in words)


def iact(*arguments: object) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["iact", *map(str, arguments)]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as stopped,
    ):
        main()
    return Ended(stopped.value.code, out.getvalue(), err.getvalue())
