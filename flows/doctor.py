"""What a machine has of what a run needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flows.estimate import estimate
from flows.project import open_project
from pipeline import video
from pipeline.errors import UserError
from pipeline.execute import cores, gpus

PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "decord",
    "av",
    "h5py",
    "prefect",
    "transformers",
    "stanza",
)
TORCH_QUESTION = (
    "import torch; from extractors.backbones import torchvision_ops; torchvision_ops.ensure(); import torchvision; "
    "print(torch.cuda.device_count(), torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'no GPU')"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    name: str
    ok: bool
    detail: str


def examine(experiment: Path | None) -> list[Finding]:
    """Everything looked for; of an experiment also its weights and disk."""
    findings = [
        Finding("python", sys.version_info[:2] >= (3, 11), sys.version.split()[0]),
        _ffmpeg(),
        *_packages(),
    ]
    findings += [_torch(), Finding("cores", True, str(cores()))]
    return findings + (list(_experiment(experiment)) if experiment else [])


def _ffmpeg() -> Finding:
    try:
        found = video.find_ffmpeg()
        listed = subprocess.run(
            [found, "-hide_banner", "-encoders"], capture_output=True, text=True, check=False
        )
    except UserError as error:
        return Finding("ffmpeg", False, str(error))
    has = "libx264" in listed.stdout
    return Finding(
        "ffmpeg", has, f"{video.ffmpeg_version()}{'' if has else ', without the encoder libx264'} ({found})"
    )


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(name, True, version(name))
        except PackageNotFoundError:
            yield Finding(name, False, f"not installed: pip install {name} -c constraints.txt")


def _torch() -> Finding:
    """Whether torch and torchvision import together; in a process of its own, because they take seconds."""
    asked = subprocess.run(
        [sys.executable, "-c", TORCH_QUESTION], capture_output=True, text=True, check=False
    )
    words = (asked.stdout or asked.stderr).strip().splitlines()
    detail = words[-1] if words else "no answer"
    return Finding("torch and torchvision", asked.returncode == 0, f"{detail}; {gpus()} GPUs visible")


def _experiment(path: Path) -> Iterator[Finding]:
    project = open_project(path)
    for name, stage in project.stages.items():
        weights = _weights(stage, project)
        if weights:
            yield Finding(f"weights of {name}", *weights)
    states = project.survey()
    expected = sum(e.bytes or 0 for e in estimate(project.store, states).values())
    free = shutil.disk_usage(project.store.root).free
    yield Finding("disk", free > expected, f"{free / 1e9:.1f} GB free, {expected / 1e9:.2f} GB expected")


def _weights(stage: Any, project: Any) -> tuple[bool, str] | None:
    params = stage.params
    if not hasattr(params, "weights") or not hasattr(params, "model"):
        return None
    try:
        identity = stage.identity(project.known).get("weights")
    except UserError as error:
        return False, str(error)
    if identity is None:
        return False, f"{params.weights!r} of {params.model} is not on this machine; a run would download it"
    return True, f"{params.weights!r} of {params.model}: {identity}"
