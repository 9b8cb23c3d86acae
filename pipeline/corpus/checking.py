"""`corpus check`: opens every file before hours are spent, and says what is missing, broken, doubled or leaked."""

from __future__ import annotations

import queue
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.child import Child, ChildDied, ChildError
from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import SPLITS, Item
from pipeline.errors import ItemError

PROBE_SECONDS = 60.0
PROBE_BYTES = 4 << 30
PROBES = {"video": "pipeline.media.video:serve_probe", "pointcloud": "pipeline.media.clouds.read:serve_probe"}
FEWEST_STEPS = 1000  # of float32, that a cloud should measure at least: with fewer its points fall together


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a corpus: `error` where an item cannot be used, `warning` where figures may mislead."""

    level: str
    sentence: str


@dataclass(frozen=True)
class Opened:
    """A media file that could be opened, and what its kind's probe tells of it."""

    item: Item
    told: Mapping[str, Any]


def check(contents: Contents, workers: int, seen: Callable[[int, int], None]) -> list[Finding]:
    """Everything found, errors first."""
    findings = [Finding("error", f"{item}: {reason}") for item, reason in contents.unreadable.items()]
    opened, unusable = _probed(contents, workers, seen)
    findings += [*unusable, *_clouds([one for one in opened if one.item.kind == "pointcloud"])]
    findings += [*_doubled(contents), *_leaked(contents), *_splits(contents)]
    return sorted(findings, key=lambda finding: finding.level)


def _probed(
    contents: Contents, workers: int, seen: Callable[[int, int], None]
) -> tuple[list[Opened], list[Finding]]:
    """Open each file (of a video decode the first frame) in processes that can be killed."""
    media = [
        (item, path) for item in contents.corpus.items
        if item.id in contents.digests and (path := contents.corpus.media_path(item))
    ]  # fmt: skip
    entry = PROBES[media[0][0].kind if media else "video"]  # contents are of one kind
    idle = queue.SimpleQueue[Child]()
    children = [Child(entry, PROBE_BYTES) for _ in range(workers)]
    for child in children:
        idle.put(child)

    def probe(job: tuple[Item, Path]) -> Opened | Finding:
        item, path = job
        child = idle.get()
        told: dict[str, Any] = {}
        try:
            for header, _ in child.call({"path": str(path)}, PROBE_SECONDS):
                told |= header
        except ItemError as error:
            return Finding("error", f"{item.id}: {error.reason}")
        except (ChildDied, ChildError) as error:
            return Finding("error", f"{item.id}: opening it failed: {str(error).strip().splitlines()[-1]}")
        finally:
            idle.put(child)
        return Opened(item, told)

    opened: list[Opened] = []
    findings: list[Finding] = []
    try:
        with ThreadPoolExecutor(workers) as pool:
            for count, one in enumerate(pool.map(probe, media), start=1):
                if isinstance(one, Opened):
                    opened.append(one)
                else:
                    findings.append(one)
                seen(count, len(media))
    finally:
        for child in children:
            child.kill()
    return opened, findings


def _clouds(clouds: list[Opened]) -> Iterator[Finding]:
    """What may mislead in point clouds that can be read: points left out, colours, scale."""
    for cloud in clouds:
        for words in _odd(cloud.told):
            yield Finding("warning", f"{cloud.item.id}: {words}")
    bare = [cloud.item.id for cloud in clouds if cloud.told["brightest"] is None]
    if bare:
        words = (
            f"{len(bare)} of {len(clouds)} point clouds have no colours, for instance {bare[0]}; 0 is taken"
        )
        yield Finding("warning", words)
    bright = [(cloud.item.id, cloud.told["brightest"]) for cloud in clouds if cloud.told["brightest"]]
    unit = [name for name, most in bright if most <= 1]
    other = [name for name, most in bright if most > 1]
    if unit and other:
        words = (
            f"two scales of colours in one corpus: {len(unit)} point clouds reach no more than 1, for instance "
            f"{unit[0]}, and {len(other)} reach more, for instance {other[0]}"
        )
        yield Finding("warning", words)


def _odd(told: Mapping[str, Any]) -> Iterator[str]:
    """What is odd about one point cloud, in words."""
    if told["dropped"]:
        yield f"{told['dropped']} of {told['points']} points are NaN or infinite and are left out"
    extent, farthest = told["extent"], told["farthest"]
    step = float(np.spacing(np.float32(farthest)))
    if extent == 0:
        yield "all its points are one"
    elif extent < FEWEST_STEPS * step:
        yield (
            f"it measures {extent:.3g} and lies {farthest:.3g} from the origin, where float32 has steps of "
            f"{step:.2g}; move it to the origin"
        )


def _doubled(contents: Contents) -> Iterator[Finding]:
    """Items with the same bytes: leaks where they are in different splits."""
    same: dict[str, list[Item]] = defaultdict(list)
    for item in contents.corpus.items:
        if item.id in contents.digests:
            same[contents.digests[item.id]].append(item)
    for items in same.values():
        if len(items) > 1:
            names = ", ".join(f"{item.id} ({item.split})" for item in items[:5])
            leak = len({item.split for item in items}) > 1
            yield Finding(
                "error" if leak else "warning",
                f"the same bytes{' in several splits' if leak else ''}: {names}",
            )


def _leaked(contents: Contents) -> Iterator[Finding]:
    """Captions of a test split that stand in the training split too, word for word."""
    texts = {split: {c.text for _, c in contents.corpus.captions(split)} for split in contents.corpus.splits}
    for split in ("val", "test"):
        shared = texts.get(split, set()) & texts.get("train", set())
        if shared:
            yield Finding(
                "warning", f"{len(shared)} of {len(texts[split])} captions of {split} stand in train too, "
                f"for instance {min(shared)!r}"
            )  # fmt: skip


def _splits(contents: Contents) -> Iterator[Finding]:
    for split in SPLITS:
        if split not in contents.corpus.splits:
            yield Finding("warning", f"there is no split {split!r}")
        elif next(contents.corpus.captions(split), None) is None:
            yield Finding("error", f"the split {split!r} has no captions")
