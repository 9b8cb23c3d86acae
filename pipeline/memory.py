"""Settings of Python's garbage collector that keep millions of small objects cheap."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Leave out the search for cycles while a great many lasting objects are made.

    None of them is garbage, and looking through all of them again and again takes longer than making them.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
