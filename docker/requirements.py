"""Writes what pyproject.toml asks for as requirements files: torch.txt, which is big and seldom changes, and rest.txt.

Called by the Dockerfile: `python requirements.py PYPROJECT EXTRAS`. A layer made from these files is made again
where a dependency changes, and not where anything else in pyproject.toml does.
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
requirements = list(project["dependencies"])
for extra in filter(None, sys.argv[2].split(",")):
    requirements += project["optional-dependencies"][extra]
big = [line for line in requirements if re.match(r"torch(vision)?\b(?!-)", line)]
Path("torch.txt").write_text("\n".join(big) + "\n", encoding="utf-8")
Path("rest.txt").write_text(
    "\n".join(line for line in requirements if line not in big) + "\n", encoding="utf-8"
)
