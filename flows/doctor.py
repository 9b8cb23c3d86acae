"""Checks that this machine has everything that a run needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from flows.advice import advice_for, presence
from flows.estimate import estimate
from flows.graph import EVERY_EXTRACTOR
from flows.project import open_project
from pipeline.errors import UserError
from pipeline.media import video
from pipeline.plugins import Catalogue
from pipeline.run.execute import cores, gpus
from pipeline.run.stage import Digests, Stage
from trainers.registry import METHODS

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
DISTRIBUTION = "crossreel"
OUR_PACKAGES = (
    "pipeline",
    "extractors",
    "trainers",
    "flows",
    "crossreel",
)  # generic names: others may have them
OUR_FOLDER = Path(__file__).parents[1]
CODECS = {  # codecs of corpora's videos, and their software decoders (ffmpeg's own av1 does not)
    "h264": {"h264"},
    "hevc": {"hevc"},
    "vp9": {"vp9", "libvpx-vp9"},
    "av1": {"libdav1d", "libaom-av1"},
}
TEST_FRAMES = 10
ANSWER_SECONDS = 120
TORCH_QUESTION = (
    "import torch; from extractors.backbones import torchvision_ops; torchvision_ops.ensure(); import torchvision; "
    "print(torch.cuda.device_count(), torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'no GPU')"
)
DECODE_QUESTION = (
    "import sys; from pathlib import Path; from pipeline.media import video; "
    "print(sum(len(frames) for frames, _ in video.decode(Path(sys.argv[1]), sys.argv[2])))"
)


@dataclass(frozen=True)
class Finding:
    """The result of one check. fault: the word for what is not ok. advice: lines on how to get what is missing."""

    name: str
    ok: bool
    detail: str
    fault: str = "MISSING"
    advice: tuple[str, ...] = ()


def examine(experiment: Path | None) -> list[Finding]:
    """All checks; with an experiment also those of its stages' needs and of the disk."""
    findings = [
        Finding("python", sys.version_info[:2] >= (3, 11), sys.version.split()[0]),
        *_ffmpeg(),
        *_packages(),
    ]
    findings += [_torch(), Finding("cores", True, str(cores()))]
    findings += [*_named("extractor", EVERY_EXTRACTOR), *_named("method", METHODS)]
    findings += [*_colliding(Path.cwd())]
    return findings + list(_experiment(experiment) if experiment else _weights())


def _colliding(folder: Path) -> Iterator[Finding]:
    """Whether a folder or file of the working directory, or another installed package, has the name of one of ours.

    `crossreel` itself does not look into the working directory; a program, a notebook or `python -c` that is started
    there does.
    """
    owners = packages_distributions()
    clashes = []
    for name in OUR_PACKAGES:
        here = [path for path in (folder / name, folder / f"{name}.py") if path.exists()]
        if here and here[0].resolve() != (OUR_FOLDER / name).resolve():
            clashes.append(
                f"{here[0]} hides the package {name} from Python that is started in this folder; rename it, or use "
                "`python -P`"
            )
        others = sorted({owner for owner in owners.get(name, ()) if owner.lower() != DISTRIBUTION})
        if others:
            clashes.append(
                f"{', '.join(others)} installs a package {name} too; uninstall it, or use an environment apart"
            )
    detail = "; ".join(clashes) or f"{', '.join(OUR_PACKAGES)}: of crossreel alone"
    yield Finding("package names", not clashes, detail, fault="WRONG")


def _weights() -> Iterator[Finding]:
    """Which pretrained files are here; none of them is needed until an experiment reads it."""
    for stage, there, what in presence():
        detail = what if there else "not here; an experiment that reads it needs"
        yield Finding(f"weights of {stage}", True, detail, advice=() if there else advice_for(stage))


def _ffmpeg() -> Iterator[Finding]:
    """Checks of ffmpeg: its version, the codecs it reads, and whether the decoders read its output."""
    try:
        found, release = video.find_ffmpeg(), video.ffmpeg_version()
    except UserError as error:
        yield Finding("ffmpeg", False, str(error))
        return
    has = "libx264" in _listed(found, "-encoders")
    yield Finding("ffmpeg", has, f"{release}{'' if has else ', without the encoder libx264'} ({found})")
    words = set(_listed(found, "-decoders").split())
    lacking = [codec for codec, names in CODECS.items() if not names & words]
    yield Finding(
        "ffmpeg decoders", not lacking, f"no videos in {', '.join(lacking)}" if lacking else ", ".join(CODECS)
    )
    if has:
        yield from _decoders(found)


def _listed(ffmpeg: str, what: str) -> str:
    return subprocess.run([ffmpeg, "-hide_banner", what], capture_output=True, text=True, check=False).stdout


def _decoders(ffmpeg: str) -> Iterator[Finding]:
    """Whether decord and PyAV decode a clip made for the purpose, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        source = f"testsrc=size=64x64:rate=10:duration={TEST_FRAMES / 10}"
        command = [ffmpeg, "-nostdin", "-v", "error", "-f", "lavfi", "-i", source, "-c:v", "libx264",
                   "-pix_fmt", "yuv420p", str(clip)]  # fmt: skip
        subprocess.run(command, check=False, capture_output=True)
        for name in ("decord", "pyav"):
            _, answer = _run_python(DECODE_QUESTION, str(clip), name)
            whole = answer == str(TEST_FRAMES)
            detail = (
                f"all {TEST_FRAMES} frames of a test clip" if whole else f"{answer}, not {TEST_FRAMES} frames"
            )
            yield Finding(f"decoder {name}", whole, detail)


def _run_python(question: str, *arguments: str) -> tuple[bool, str]:
    """Whether code succeeded in a separate Python process, and its last line; native code may hang or crash."""
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-c", question, *arguments], capture_output=True, text=True, check=False,
            timeout=ANSWER_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, f"no answer within {ANSWER_SECONDS} s"
    words = (ended.stdout or ended.stderr).strip().splitlines()
    return ended.returncode == 0, words[-1] if words else "no answer"


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(name, True, version(name))
        except PackageNotFoundError:
            yield Finding(name, False, f"not installed: pip install {name} -c constraints.txt")


def _named(noun: str, catalogue: Catalogue[Any]) -> Iterator[Finding]:
    """The origin of extractors or methods: one line for all built-in ones, and one for each of an installed package."""
    origins = list(catalogue.origins())
    yield Finding(f"{noun}s", True, f"{', '.join(o.name for o in origins if not o.package)}: built in")
    for origin in origins:
        if not origin.package:
            continue
        try:
            found = catalogue.find(origin.name)
        except UserError as error:
            yield Finding(f"{noun} {origin.name}", False, str(error))
        else:
            yield Finding(f"{noun} {origin.name}", True, f"version {found.version}, of {origin}")


def _torch() -> Finding:
    """Whether torch and torchvision import together, and torch sees the GPUs; it takes seconds to import."""
    ok, answer = _run_python(TORCH_QUESTION)
    blind = ok and gpus() > 0 and answer.startswith("0 ")
    detail = f"{answer}; {gpus()} GPUs visible"
    return Finding(
        "torch and torchvision",
        ok and not blind,
        detail + (", but this torch does not see them: install its CUDA build" if blind else ""),
    )


def _experiment(path: Path) -> Iterator[Finding]:
    """Checks of each stage's needs, and of the disk space for its outputs."""
    project = open_project(path)
    for name, stage in project.stages.items():
        finding = _needs(name, stage, project.known)
        if finding:
            yield finding
    free = shutil.disk_usage(project.store.root).free
    try:
        states = project.survey()
    except UserError as error:  # reported above already, unless it is another error
        yield Finding("disk", False, f"{free / 1e9:.1f} GB free; what is expected is not known: {error}")
        return
    expected = sum(e.bytes or 0 for e in estimate(project, states).values())
    yield Finding("disk", free > expected, f"{free / 1e9:.1f} GB free, {expected / 1e9:.2f} GB expected")


def _needs(name: str, stage: Stage[Any], known: Digests) -> Finding | None:
    """Whether a stage's needs (weights, a parser) are on this machine; None if it has none."""
    needy = type(stage).require is not Stage.require
    try:
        identity = stage.identity(known)  # first, because it fetches weights if the settings allow that
        stage.require()
    except UserError as error:
        return Finding(f"stage {name}", False, str(error), advice=advice_for(name))
    if not needy:
        return None
    return Finding(
        f"stage {name}", True, f"weights {identity['weights']}" if "weights" in identity else "ready"
    )
