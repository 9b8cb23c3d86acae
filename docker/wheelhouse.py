"""Collects in one folder the wheels of crossreel and of all that it needs, for a machine without a network.

    python docker/wheelhouse.py [FOLDER] [--python 3.12] [--platform manylinux_2_28_x86_64] [--extras ray,s3] [--torch]

Run where pip finds packages, with any Python that has pip 23.1 or newer; the machine without a network may have another
version and platform. Every package gets the version of constraints.txt. torch is left out unless `--torch` is given:
machines with GPUs mostly have the build that fits their driver, and its CUDA libraries are gigabytes. The packages that
torch alone needs are then left out too, because a stand-in for it takes part in pip's search for versions.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "extractors", "trainers", "flows", "crossreel")
OLDEST_GLIBC = 5
NAMED = {"manylinux1": 5, "manylinux2010": 12, "manylinux2014": 17}
"""Older names of platforms, by the minor version of the glibc that they need."""

INSTALL = """\
Installing crossreel without a network
======================================
1. A virtual environment of Python {python}{torch_hint}:
       python{python} -m venv {venv_flags}crossreel-env
2. In this folder:
       crossreel-env/bin/python -m pip install --no-index --find-links . -c constraints.txt {requirement}
3. What it finds, and which model files are missing:
       crossreel-env/bin/crossreel doctor
Weights of networks are files of their own: crossreel's docs/stages.md says which, and where they go.
"""


def main() -> None:
    """Collect the wheels and say how they are installed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("wheelhouse"))
    parser.add_argument(
        "--python",
        default=f"{sys.version_info.major}.{sys.version_info.minor}",
        help="version of Python of the machine without a network",
    )
    parser.add_argument(
        "--platform",
        default="manylinux_2_28_x86_64",
        help="tag of its platform; 2_28: glibc 2.28 or newer, of every Linux since 2019",
    )
    parser.add_argument("--extras", default="", help="extras of crossreel, comma-separated")
    parser.add_argument("--torch", action="store_true", help="torch and its libraries too")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        collect(options, Path(work))


def collect(options: argparse.Namespace, work: Path) -> None:
    """Build our wheel, find the versions of the others, download them, write the instructions."""
    folder = options.folder
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    chosen = [extra for extra in options.extras.split(",") if extra]
    unknown = sorted(set(chosen) - set(project["optional-dependencies"]))
    if unknown:
        sys.exit(
            f"there is no extra {unknown[0]!r}; there are {', '.join(sorted(project['optional-dependencies']))}"
        )
    pip("wheel", "--no-deps", "--wheel-dir", folder, source_copy(work / "source"))
    needed = [*project["dependencies"], *(one for e in chosen for one in project["optional-dependencies"][e])]
    found = resolved(needed, options, work)
    left_out = {} if options.torch else {"torch": found.pop("torch", "")}
    pip("download", "--no-deps", "--dest", folder, *target(options), *(f"{n}=={v}" for n, v in found.items()))
    shutil.copy(ROOT / "constraints.txt", folder)
    write_instructions(folder, options, chosen)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    without = f", without torch {left_out['torch'].split('+')[0]}" if left_out else ""
    print(
        f"{folder}: crossreel and {len(found)} packages for Python {options.python} on {options.platform}{without}, "
        f"{size:.0f} MB; {folder / 'INSTALL.txt'} says how they are installed"
    )


def source_copy(target: Path) -> Path:
    """A copy of what a wheel is built from: a folder `build` beside the source may hold modules that are gone."""
    kept = shutil.ignore_patterns("__pycache__", "*.pyc")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, target / package, ignore=kept)
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, target)
    return target


def resolved(needed: list[str], options: argparse.Namespace, work: Path) -> dict[str, str]:
    """The version of each package that pip would install on the other machine, by name."""
    report, links = work / "report.json", []
    if not options.torch:
        links = ["--find-links", stand_in(work)]
    pip(
        "install", "--dry-run", "--ignore-installed", "--report", report, "--target", work / "none",
        "--constraint", ROOT / "constraints.txt", *target(options), *links, *needed,
    )  # fmt: skip
    installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {one["metadata"]["name"].lower(): one["metadata"]["version"] for one in installs}


def stand_in(work: Path) -> Path:
    """A folder with an empty wheel of torch that needs nothing, newer than the pinned one by a local version."""
    pin = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    if pin is None:
        sys.exit("constraints.txt has no line torch==...")
    version = f"{pin[1]}+machine"
    info = f"torch-{version}.dist-info"
    with zipfile.ZipFile(work / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return work


def target(options: argparse.Namespace) -> list[str]:
    """Options of pip for the other machine; a glibc takes the wheels of all older ones too."""
    tags = [options.platform]
    linux = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", options.platform)
    if linux:
        newest, machine = int(linux[1]), linux[2]
        tags = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, OLDEST_GLIBC - 1, -1)]
        tags += [f"{name}_{machine}" for name, minor in NAMED.items() if minor <= newest]
    platforms = [part for tag in tags for part in ("--platform", tag)]
    return ["--only-binary", ":all:", "--python-version", options.python, *platforms]


def write_instructions(folder: Path, options: argparse.Namespace, extras: list[str]) -> None:
    """How the packages are installed on the other machine."""
    requirement = f"'crossreel[{','.join(extras)}]'" if extras else "crossreel"
    without = "" if options.torch else ", beside the machine's own torch of that version of Python"
    flags = "" if options.torch else "--system-site-packages "
    text = INSTALL.format(
        python=options.python, torch_hint=without, venv_flags=flags, requirement=requirement
    )
    (folder / "INSTALL.txt").write_text(text, encoding="utf-8")


def pip(*arguments: object) -> None:
    """Run pip; its last lines are printed if it fails."""
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "WARNING" not in line]
        sys.exit("pip could not do it: " + " ".join(errors[-3:]))


if __name__ == "__main__":
    main()
