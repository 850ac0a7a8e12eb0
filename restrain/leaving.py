"""The end of a process beside threads that cannot be ended."""

from __future__ import annotations

import os
import sys
import threading
from typing import NoReturn

given_up: list[threading.Thread] = []
"""Threads somewhere in a library's C++, which nobody waits for any longer."""


def leave(code: int) -> NoReturn:
    """End the process with ``code``, also where a thread was given up.

    An interpreter that ends under such a thread unwinds it wherever it is, and C++ that does not let that happen aborts
    the process: the run would leave with 134 instead of its own code.
    """
    if any(thread.is_alive() for thread in given_up):
        for stream in (sys.stdout, sys.stderr):
            getattr(stream, "flush", lambda: None)()
        os._exit(code)
    sys.exit(code)
