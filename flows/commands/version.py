"""What `crossreel --version` prints, and with --verbose what a bug report should say."""

from __future__ import annotations

from collections.abc import Iterator

from flows.program import NAME, version_line
from flows.results.report.environment import environment


def described() -> Iterator[str]:
    """Versions and sizes, and nothing of whose machine it is."""
    yield version_line()
    for name, value in environment():
        if name != NAME:
            yield f"{name}: {value}"
