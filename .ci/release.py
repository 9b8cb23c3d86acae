"""Raises the version in every file that states it, as one commit: `python .ci/release.py 0.2.0`.

The top section of CHANGELOG.md gets the version and the day, and an empty one takes its place; pyproject.toml and
CITATION.cff get the version; docs/upgrading.md must have a section "From A to B" already, which says what a store of
the version before goes through. `--dry-run` changes nothing and says what is wrong.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSION = re.compile(r"\d+\.\d+\.\d+")
UNRELEASED = "## Unreleased\n"


def main() -> None:
    """Read the command line, change the files, commit and tag."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("version")
    parser.add_argument("--dry-run", action="store_true")
    asked = parser.parse_args()
    try:
        written = raised(ROOT, asked.version, datetime.date.today())
    except ValueError as error:
        sys.exit(str(error))
    if asked.dry_run:
        print(f"{len(written)} files would change: {', '.join(sorted(written))}")
        return
    for name, text in written.items():
        (ROOT / name).write_text(text, encoding="utf-8")
    subprocess.run(["git", "commit", "-q", "-m", f"Release {asked.version}", *written], cwd=ROOT, check=True)
    subprocess.run(["git", "tag", f"v{asked.version}"], cwd=ROOT, check=True)
    print(f"committed and tagged v{asked.version}; nothing was pushed")


def raised(root: Path, version: str, day: datetime.date) -> dict[str, str]:
    """The new text of each file that states the version. Raises ValueError with what is wrong."""
    texts = {
        name: (root / name).read_text(encoding="utf-8")
        for name in ("pyproject.toml", "CHANGELOG.md", "CITATION.cff", "docs/upgrading.md")
    }
    now = re.search(r'^version = "(.*)"$', texts["pyproject.toml"], re.MULTILINE)
    if now is None:
        raise ValueError("pyproject.toml states no version")
    if not VERSION.fullmatch(version) or _numbers(version) <= _numbers(now[1]):
        raise ValueError(f"{version} does not follow {now[1]}; a version is X.Y.Z and goes up")
    if f"## From {now[1]} to {version}\n" not in texts.pop("docs/upgrading.md"):
        raise ValueError(f"docs/upgrading.md has no section 'From {now[1]} to {version}'")
    _, found, below = texts["CHANGELOG.md"].partition(UNRELEASED)
    if not found or not re.match(r"\n+- ", below):
        raise ValueError("CHANGELOG.md has no line under 'Unreleased'")
    texts["pyproject.toml"] = texts["pyproject.toml"].replace(now[0], f'version = "{version}"', 1)
    heading = f"{UNRELEASED}\n## {version} ({day.isoformat()})\n"
    texts["CHANGELOG.md"] = texts["CHANGELOG.md"].replace(UNRELEASED, heading, 1)
    cited = re.sub(r"^version: .*$", f"version: {version}", texts["CITATION.cff"], flags=re.MULTILINE)
    day_line = f'date-released: "{day.isoformat()}"'
    texts["CITATION.cff"] = re.sub(r"^date-released: .*$", day_line, cited, flags=re.MULTILINE)
    return texts


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


if __name__ == "__main__":
    main()
