"""With what a report was made: versions and size of the machine, never whose it is."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from flows.program import release
from pipeline.errors import UserError
from pipeline.media.video import ffmpeg_version
from pipeline.run.execute import cores, gpus

PACKAGES = ("torch", "open_clip_torch", "numpy", "decord", "av", "prefect")


def environment() -> list[tuple[str, str]]:
    """Names and versions, the program first; what is not installed says so."""
    return [
        ("crossreel", release()),
        ("Python", platform.python_version()),
        *((name, _version(name)) for name in PACKAGES),
        ("ffmpeg", _ffmpeg()),
        ("System", f"{platform.system()} {platform.machine()}"),
        ("CPU cores", str(cores())),
        ("GPUs", str(gpus())),
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _ffmpeg() -> str:
    try:
        return ffmpeg_version()
    except UserError:
        return "not found"
