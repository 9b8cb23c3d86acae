"""The program that runs: its version, and the commit of its source tree."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = "crossreel"
COMMIT_DIGITS = 12
GIT_SECONDS = 10


def version() -> str:
    """The version of the installed distribution; "unknown" where none is installed."""
    try:
        return version_of(NAME)
    except PackageNotFoundError:
        return "unknown"


@cache
def commit() -> str:
    """The commit of the source tree that runs, with "+" where tracked files were changed; "" outside of a checkout."""
    if not (ROOT / ".git").exists() or not (ROOT / "pyproject.toml").is_file():
        return ""  # an installed wheel, which may lie below somebody else's repository
    found = _git("rev-parse", f"--short={COMMIT_DIGITS}", "HEAD")
    return f"{found}{'+' if found and _git('status', '--porcelain', '--untracked-files=no') else ''}"


def version_line() -> str:
    """For instance "crossreel 0.1.0 (commit 2a26eb2c11d0)"."""
    return f"{NAME} {release()}"


def release() -> str:
    """Version and commit, for instance "0.1.0 (commit 2a26eb2c11d0)"; of a wheel the version alone."""
    return f"{version()} (commit {commit()})" if commit() else version()


def _git(*arguments: str) -> str:
    """The output of a git command in the source tree; "" where git is missing or refuses."""
    try:
        ended = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout.strip() if ended.returncode == 0 else ""
