"""`corpus check`: open every media file before a run, and report missing, broken, duplicate and leaked data."""

from __future__ import annotations

import math
import queue
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.child import Child, ChildDied, ChildError
from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import Item
from pipeline.corpus.splits import SPLITS, nearest_split
from pipeline.errors import ItemError

NO_SETTINGS: Mapping[str, Any] = {}
PROBE_SECONDS = 60.0  # without a sign of life
PROBE_BYTES = 4 << 30
PROBES = {"video": "pipeline.media.video:serve_probe", "pointcloud": "pipeline.media.clouds.read:serve_probe"}
FEWEST_ITEMS = (
    10  # smallest split without a warning; with fewer items, one item is more than ten points of R@1
)
EQUAL_SHARE = 0.05  # largest share of a split's captions whose text other items also have, without a warning
ROUNDED_SECONDS = (
    0.5  # a moment may end this much after its video; annotations are also rounded up to whole seconds
)
NAMED = 3  # examples in a sentence
UNCHECKED = "unchecked"  # level of a finding about a file that could not be looked at
FEWEST_STEPS = 1000  # least extent of a cloud in float32 steps: below it, distinct points coincide


@dataclass(frozen=True)
class Finding:
    """One problem of a corpus.

    Its level is `error` if an item cannot be used, `warning` if metrics may mislead, `unchecked` if an item could not
    be looked at, for no fault of its file.
    """

    level: str
    sentence: str


@dataclass(frozen=True)
class Opened:
    """A media file that could be opened, with the report of its kind's probe."""

    item: Item
    report: Mapping[str, Any]


@dataclass(frozen=True)
class Minimum:
    """The fewest points of a cloud that a stage can use; `level` is that of the finding about a smaller one."""

    stage: str
    points: int
    level: str = "warning"


def check(
    contents: Contents, workers: int, seen: Callable[[int, int], None],
    reading: Mapping[str, Any] = NO_SETTINGS, minima: Sequence[Minimum] = (),
) -> list[Finding]:  # fmt: skip
    """All findings, errors first.

    `reading` are the settings with which the stage `points` reads clouds (columns, colour_scale ...), `minima`
    the fewest points that the stages need.
    """
    findings = [Finding("error", f"{item}: {reason}") for item, reason in contents.unreadable.items()]
    opened, unusable = _probed(contents, workers, seen, reading)
    clouds = [one for one in opened if one.item.kind == "pointcloud"]
    findings += [*unusable, *_lengths(opened), *_moments(opened), *_clouds(clouds, minima)]
    findings += [*_doubled(contents), *_own_splits(contents), *_ids(contents)]
    for kind in contents.corpus.kinds:
        findings += _of_kind(contents.of_kind(kind))
    return sorted(findings, key=lambda finding: finding.level)


def _of_kind(contents: Contents) -> Iterator[Finding]:
    """Findings about the captions and splits of one kind of items, which methods train on and rank by themselves."""
    about = f"items of the kind {contents.corpus.part}: " if contents.corpus.part else ""
    for find in (_shared, _leaked, _equal, _splits):
        yield from (replace(found, sentence=about + found.sentence) for found in find(contents))


def _probed(
    contents: Contents, workers: int, seen: Callable[[int, int], None], reading: Mapping[str, Any]
) -> tuple[list[Opened], list[Finding]]:
    """The files that could be opened, and findings about the others, probed in processes that can be killed.

    A video's probe decodes its first frame. A file whose probe was killed is probed once more after all others, while
    no other probe runs; it is at fault only if its probe crashed or hung.
    """
    media = [
        (item, path) for item in contents.corpus.items
        if item.id in contents.digests and (path := contents.corpus.media_path(item))
    ]  # fmt: skip
    idle = queue.SimpleQueue[Mapping[str, Child]]()  # by kind; a child starts at its first call
    children = [{kind: Child(entry, PROBE_BYTES) for kind, entry in PROBES.items()} for _ in range(workers)]
    for each in children:
        idle.put(each)

    def probe(job: tuple[Item, Path]) -> Opened | Finding:
        each = idle.get()
        try:
            return _probe(each[job[0].kind], *job, reading)
        finally:
            idle.put(each)

    found: list[Opened | Finding] = []
    try:
        with ThreadPoolExecutor(workers) as pool:
            for count, one in enumerate(pool.map(probe, media), start=1):
                found.append(one)
                seen(count, len(media))
        for each in children[1:]:
            _kill(each)  # the probes below have the memory to themselves
        for place, one in enumerate(found):
            if isinstance(one, Finding) and one.level == UNCHECKED:
                found[place] = _probe(children[0][media[place][0].kind], *media[place], reading)
    finally:
        for each in children:
            _kill(each)
    return [one for one in found if isinstance(one, Opened)], [
        one for one in found if isinstance(one, Finding)
    ]


def _kill(children: Mapping[str, Child]) -> None:
    for child in children.values():
        child.kill()


def _probe(child: Child, item: Item, path: Path, reading: Mapping[str, Any]) -> Opened | Finding:
    """The report of a file's probe, or the finding about a file that cannot be opened."""
    report: dict[str, Any] = {}
    try:
        for header, _ in child.call({"path": str(path), **reading}, PROBE_SECONDS):
            report |= header
    except ItemError as error:
        return Finding("error", f"{item.id}: {error.reason}")
    except (ChildDied, ChildError) as error:
        reason = str(error).strip().splitlines()[-1]
        if isinstance(error, ChildDied) and not error.own_doing:
            return Finding(
                UNCHECKED, f"{item.id}: not looked at, its probe was killed twice: {reason}; check again"
            )
        return Finding("error", f"{item.id}: opening it failed: {reason}")
    return Opened(item, report)


def _lengths(opened: list[Opened]) -> Iterator[Finding]:
    """Findings about videos whose header gives another length than they have."""
    for one in opened:
        if trouble := one.report.get("trouble"):
            yield Finding("error", f"{one.item.id}: {trouble}")


def _moments(opened: list[Opened]) -> Iterator[Finding]:
    """Findings about moments that end after their video does."""
    for one in opened:
        seconds = one.report.get("picture_seconds")
        if not seconds or one.report.get("trouble"):
            continue
        latest = max(math.ceil(seconds), seconds + ROUNDED_SECONDS)
        times = [(max(c.start or 0.0, c.end or 0.0), c.id) for c in one.item.captions]
        late = sorted((time, name) for time, name in times if time > latest)
        if late:
            time, name = late[-1]
            yield Finding(
                "warning",
                f"{one.item.id}: {len(late)} of {len(times)} captions end after its {seconds:.1f} s, "
                f"{name} at {time:.1f} s for instance",
            )


def _clouds(clouds: list[Opened], minima: Sequence[Minimum]) -> Iterator[Finding]:
    """Findings about readable point clouds: points left out, too few points, colours, scale."""
    for cloud in clouds:
        for words in cloud.report["doubts"]:
            yield Finding("warning", f"{cloud.item.id}: {words}")
        points = cloud.report["points"] - cloud.report["dropped"]
        for minimum in minima:
            if points < minimum.points:
                words = f"{points} points are too few for {minimum.stage}, which needs {minimum.points}"
                yield Finding(minimum.level, f"{cloud.item.id}: {words}")
        for words in _odd(cloud.report):
            yield Finding("warning", f"{cloud.item.id}: {words}")
    bare = [cloud.item.id for cloud in clouds if cloud.report["brightest"] is None]
    if bare:
        words = (
            f"{len(bare)} of {len(clouds)} point clouds have no colours, for instance {bare[0]}; 0 is taken"
        )
        yield Finding("warning", words)
    bright = [(cloud.item.id, cloud.report["brightest"]) for cloud in clouds if cloud.report["brightest"]]
    unit = [name for name, most in bright if most <= 1]
    other = [name for name, most in bright if most > 1]
    if unit and other:
        words = (
            f"two scales of colours in one corpus: {len(unit)} point clouds reach no more than 1, for instance "
            f"{unit[0]}, and {len(other)} reach more, for instance {other[0]}"
        )
        yield Finding("warning", words)


def _odd(report: Mapping[str, Any]) -> Iterator[str]:
    """Phrases about suspicious values of one point cloud."""
    if infinite := report["dropped"] - report["odd"]:
        yield f"{infinite} of {report['points']} points are NaN or infinite and are left out"
    extent, farthest = report["extent"], report["farthest"]
    step = float(np.spacing(np.float32(farthest)))
    if extent == 0:
        yield "all its points are one"
    elif extent < FEWEST_STEPS * step:
        yield (
            f"it measures {extent:.3g} and lies {farthest:.3g} from the origin, where float32 has steps of "
            f"{step:.2g}; move it to the origin"
        )


def _doubled(contents: Contents) -> Iterator[Finding]:
    """Findings about items with the same bytes: an error if they are in different splits."""
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
    """Findings about captions of val or test whose text is also in the training split."""
    texts = {split: {c.text for _, c in contents.corpus.captions(split)} for split in contents.corpus.splits}
    for split in ("val", "test"):
        shared = texts.get(split, set()) & texts.get("train", set())
        if shared:
            yield Finding(
                "warning", f"{len(shared)} of {len(texts[split])} captions of {split} stand in train too, "
                f"for instance {min(shared)!r}"
            )  # fmt: skip


def _splits(contents: Contents) -> Iterator[Finding]:
    """Findings about train, val and test: missing, without captions, or too small for meaningful metrics."""
    for split in SPLITS:
        items = len(contents.corpus.gallery(split))
        if not items:
            yield Finding("warning", f"there is no split {split!r}")
        elif next(contents.corpus.captions(split), None) is None:
            yield Finding("error", f"the split {split!r} has no captions")
        elif items < FEWEST_ITEMS:
            yield Finding(
                "warning",
                f"the split {split!r} has {items} items; with fewer than {FEWEST_ITEMS}, figures say little",
            )


def _own_splits(contents: Contents) -> Iterator[Finding]:
    """Findings about other splits, whose names may be mistyped: no method trains on them or is selected by them."""
    for split in contents.corpus.splits:
        if split not in SPLITS:
            count = len(contents.corpus.gallery(split))
            words = (
                f"{count} items are in the split {split!r}, which is used only where evaluate.split names it"
            )
            yield Finding("warning", f"{words}; {nearest_split(split)}")


def _ids(contents: Contents) -> Iterator[Finding]:
    """Findings about ids that cannot be told apart or typed: Unicode forms of one name, signs that nobody sees."""
    ids = [item.id for item in contents.corpus.items]
    alike: dict[str, list[str]] = defaultdict(list)
    for one in ids:
        alike[unicodedata.normalize("NFC", one)].append(one)
    for same in alike.values():
        if len(same) > 1:
            yield Finding(
                "warning",
                f"{len(same)} ids look the same and differ in their Unicode form: "
                f"{', '.join(map(ascii, same[:NAMED]))}",
            )
    hidden = [one for one in ids if not one.isprintable()]
    if hidden:
        yield Finding(
            "warning",
            f"{len(hidden)} ids hold control characters or marks that are not shown: "
            f"{', '.join(map(ascii, hidden[:NAMED]))}",
        )


def _shared(contents: Contents) -> Iterator[Finding]:
    """Findings about items with captions of both the training split and another."""
    for split in contents.corpus.splits:
        both = [
            item.id for item in contents.corpus.items
            if split != "train" and {split, "train"} <= {c.split or item.split for c in item.captions} | {item.split}
        ]  # fmt: skip
        if both:
            yield Finding(
                "warning", f"{len(both)} items are in train and in {split}: {', '.join(both[:NAMED])}"
            )


def _equal(contents: Contents) -> Iterator[Finding]:
    """Findings about splits where many captions have the text of other items' captions, so retrieval must fail."""
    for split in contents.corpus.splits:
        items: dict[str, set[str]] = defaultdict(set)
        texts: Counter[str] = Counter()
        for item, caption in contents.corpus.captions(split):
            text = " ".join(caption.text.casefold().split())
            texts[text] += 1
            items[text] |= {item.id, *caption.also}
        equal = {text: times for text, times in texts.items() if len(items[text]) > 1 and times > 1}
        count, total = sum(equal.values()), texts.total()
        if count > EQUAL_SHARE * total:
            most = max(equal, key=lambda text: (equal[text], text))
            yield Finding(
                "warning",
                f"{count} of {total} captions of {split} stand at several items, {most[:80]!r} {equal[most]} times; "
                "such a caption cannot tell its item from the others",
            )
