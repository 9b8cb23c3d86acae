"""`corpus check`: opens every file before hours are spent, and says what is missing, broken, doubled or leaked."""

from __future__ import annotations

import queue
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.child import Child, ChildDied, ChildError
from pipeline.contents import Contents
from pipeline.corpus import SPLITS, Item
from pipeline.errors import ItemError

PROBE_SECONDS = 60.0
PROBE_BYTES = 4 << 30


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a corpus: `error` where an item cannot be used, `warning` where figures may mislead."""

    level: str
    sentence: str


def check(contents: Contents, workers: int, seen: Callable[[int, int], None]) -> list[Finding]:
    """Everything found, errors first."""
    findings = [Finding("error", f"{item}: {reason}") for item, reason in contents.unreadable.items()]
    findings += _probed(contents, workers, seen)
    findings += [*_doubled(contents), *_leaked(contents), *_splits(contents)]
    return sorted(findings, key=lambda finding: finding.level)


def _probed(contents: Contents, workers: int, seen: Callable[[int, int], None]) -> list[Finding]:
    """Open each video and decode its first frame, in processes that can be killed."""
    media = [
        (item, path) for item in contents.corpus.items
        if item.id in contents.digests and item.kind == "video" and (path := contents.corpus.media_path(item))
    ]  # fmt: skip
    idle = queue.SimpleQueue[Child]()
    children = [Child("pipeline.video:serve_probe", PROBE_BYTES) for _ in range(workers)]
    for child in children:
        idle.put(child)

    def probe(job: tuple[Item, Path]) -> Finding | None:
        item, path = job
        child = idle.get()
        try:
            for _ in child.call({"path": str(path)}, PROBE_SECONDS):
                pass
        except ItemError as error:
            return Finding("error", f"{item.id}: {error.reason}")
        except (ChildDied, ChildError) as error:
            return Finding("error", f"{item.id}: opening it failed: {str(error).strip().splitlines()[-1]}")
        finally:
            idle.put(child)
        return None

    findings = []
    try:
        with ThreadPoolExecutor(workers) as pool:
            for count, finding in enumerate(pool.map(probe, media), start=1):
                findings += [finding] if finding else []
                seen(count, len(media))
    finally:
        for child in children:
            child.kill()
    return findings


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
