"""Links from the report into `crossreel serve`, in the form that the page of serve reads.

A report is a file that may be opened anywhere: its links name the address at which serve listens unless told
otherwise. Where serve itself delivers the report, it replaces this address by its own.
"""

from __future__ import annotations

from urllib.parse import urlencode

SERVE = "http://127.0.0.1:8600/?"  # the default host and port of `crossreel serve`
REPORT = "http://127.0.0.1:8600/report"  # where serve delivers the report of its experiment
MOST_CHARACTERS = 1000  # of a query that serve answers


def query_address(text: str, method: str, other: str, split: str) -> str:
    """The address that shows a query's results under two methods side by side; "" for a text that serve refuses."""
    if not 0 < len(text) <= MOST_CHARACTERS:
        return ""
    named = {"q": text, "method": method, "split": split} | ({"with": other} if other != method else {})
    return SERVE + urlencode(named)
