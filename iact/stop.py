"""The wish that a run ends: SIGTERM, which schedulers send before they kill, and Ctrl-C."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether the process was asked to stop. Asked a second time it does so at once, and so
    it does before that function is first called: nobody has listened yet."""
    asked: list[int] = []
    listening = False
    if threading.current_thread() is not threading.main_thread():  # which alone can handle signals
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, _frame: object) -> None:
        asked.append(number)
        for known in SIGNALS:
            signal.signal(known, before[known])
        if not listening:
            signal.raise_signal(number)

    def listen() -> bool:
        nonlocal listening
        listening = True
        return bool(asked)

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield listen
    finally:
        for number in SIGNALS:
            signal.signal(number, before[number])
