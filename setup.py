"""The description of a built package: README.md without its links into the source tree, which no index holds.

Everything else about the package stands in pyproject.toml.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

README = Path(__file__).parent / "README.md"
PICTURE = re.compile(r"!\[[^]]*\]\((?!\w+:)[^)]*\)\n*")
LINK = re.compile(r"\[([^]]*)\]\((?!\w+:|#)([^)]*)\)")


def describe(readme: str) -> str:
    """Return the text of a README with each relative link replaced by its path, and without relative pictures.

    `[search](docs/search.md)` becomes `docs/search.md`: a reader of the description sees where the page lies in
    the source tree, and no link leads nowhere. Links with a scheme, or to a heading of the same page, stay.
    """
    return LINK.sub(r"`\2`", PICTURE.sub("", readme))


if __name__ == "__main__":  # also when a build backend runs this file
    setup(
        long_description=describe(README.read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
    )
