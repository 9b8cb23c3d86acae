"""Packing, and batches from packed arrays: disk, memory and time, at first and with a few videos more.

Features are drawn at random and written by the store's own writer, so that no network runs. For each method: CPU
seconds of packing, the largest anonymous memory of its process, bytes on the disk beside the features, the same of
packing again with `--more` videos, CPU milliseconds of a training batch, and a digest of every number in the batches,
by which two versions of the code can be compared.

    python benchmarks/packs.py --videos 1000 --captions 20 --more 10
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.process_tree import anonymous_kib
from pipeline.store.fields import Field
from pipeline.store.fingerprint import Fingerprint, digest_text
from pipeline.store.places import place_table
from pipeline.store.store import Store, tree_bytes
from trainers.data import split_columns
from trainers.registry import METHODS

Split = dict[str, list[Any]]
SHARD, TEXT_SHARD = 32, 2048  # units of a segment, as the extractors have them
WIDTHS = {"demo": (64, 32, 256), "published": (512, 768, 4096)}  # of CLIP, BERT and VGG16
METHODS_RUN: dict[str, dict[str, Any]] = {
    "hlformer": {}, "neighborretr": {"mode": "frozen"}, "gare": {"mode": "frozen"}, "lean": {},
}  # fmt: skip
STAGES: dict[str, dict[str, Field]] = {
    "clip": {"frame": Field("float16", (None, None)), "time": Field("float32", (None,))},
    "vgg16": {"frame": Field("float16", (None, None))},
    "keyframes": {"top": Field("int64", (None,))},
    "clip_text": {name: Field("float16", (None, None)) for name in ("token", "projected", "pooled")},
    "bert": {"token": Field("float16", (None, None)), "offset": Field("int32", (None, 2))},
    "triples": {"span": Field("int32", (None, 4))},
}
OF_CAPTIONS = ("clip_text", "bert", "triples")


def outputs(stage: str, key: str, widths: tuple[int, int, int]) -> dict[str, NDArray[Any]]:
    """Features of an item or caption, decided by its key."""
    draw = np.random.default_rng(int(key[:12], 16))
    clip, bert, vgg = widths
    if stage in ("clip", "vgg16"):
        count, width = (int(draw.integers(60, 120)), clip) if stage == "clip" else (10, vgg)
        frames = {"frame": draw.standard_normal((count, width), np.float32).astype(np.float16)}
        return frames | ({"time": np.arange(count, dtype=np.float32) / 3} if stage == "clip" else {})
    if stage == "keyframes":
        return {"top": np.sort(draw.choice(10, 3, replace=False))}
    words = 8 + int(key[:2], 16) % 16  # all stages of a caption count alike
    starts = np.arange(words, dtype=np.int32) * 5
    if stage == "triples":
        spans = [
            (n, part, 5 * (3 * n + part), 5 * (3 * n + part) + 4)
            for n in range(words // 3)
            for part in range(3)
        ]
        return {"span": np.array(spans, np.int32)}
    states = draw.standard_normal((words, bert if stage == "bert" else clip), np.float32).astype(np.float16)
    if stage == "bert":
        return {"token": states, "offset": np.stack([starts, starts + 4], 1)}
    return {"token": states, "projected": states, "pooled": states[:1]}


def make_features(
    store: Store, splits: dict[str, Split], widths: tuple[int, int, int]
) -> dict[str, Fingerprint]:
    """Write what the store lacks of the features of these splits."""
    prints = {stage: Fingerprint.of({"stage": stage, "widths": list(widths)}) for stage in STAGES}
    for stage, fields in STAGES.items():
        captions = stage in OF_CAPTIONS
        keys = dict.fromkeys(
            key for split in splits.values() for key in split["captions" if captions else "items"]
        )
        there = store.places(stage, prints[stage].hex)
        todo, size = [key for key in keys if key not in there], TEXT_SHARD if captions else SHARD
        store.index.add_fingerprint(prints[stage].hex, stage, prints[stage].components)
        for first in range(0, len(todo), size):
            with store.writer(stage, prints[stage], fields) as out:
                for key in todo[first : first + size]:
                    out.append(key, key, outputs(stage, key, widths))
                path = out.finish()
                assert path is not None
                store.index.add_segment(out.id, prints[stage].hex, path.stat().st_size, out.items)
    return prints


def corpus(videos: int, captions: int) -> dict[str, Split]:
    """A training split, and a validation split of a tenth of it."""
    found: dict[str, Split] = {}
    for split, count in (("train", videos), ("val", max(2, videos // 10))):
        items = [digest_text(f"{split} {number}") for number in range(count)]
        found[split] = split_columns(items, (
            (digest_text(f"{item} {n}"), f"a man {n} on a bike {item[:4]}", item, [])
            for item in items for n in range(captions)
        ))  # fmt: skip
    return found


def request(
    store: Store, method: str, splits: dict[str, Split], prints: dict[str, Fingerprint]
) -> dict[str, Any]:
    """The request that a run sends to the process that packs."""
    config = METHODS.find(method).config(**METHODS_RUN[method])
    needs = {stage: prints[stage].hex for stage in config.features()}
    kept = Fingerprint.of({"stage": f"packed-{method}", "needs": needs})
    shape = Fingerprint.of(
        {
            "stage": f"pack-{method}",
            "needs": needs,
            "splits": sum(len(split["captions"]) for split in splits.values()),
        }
    )

    def table(stage: str, fp: str) -> dict[str, Any]:
        places = store.places(stage, fp)
        return place_table(places, places, lambda segment: store.segment_path(stage, fp, segment))

    where = {stage: {"field": next(iter(STAGES[stage])), **table(stage, fp)} for stage, fp in needs.items()}
    stage = f"packed-{method}"
    keeping = {
        "stage": stage, "fingerprint": kept.hex, "components": dict(kept.components), **table(stage, kept.hex),
    }  # fmt: skip
    inputs = store.root / "work" / f"{method}.inputs.json"
    inputs.write_text(json.dumps({"splits": splits, "rows": where, "keeping": keeping}))
    folder = store.run_folder(f"pack-{method}", shape.hex)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return {
        "stage": f"pack-{method}", "method": method, "params": config.model_dump_json(), "inputs": str(inputs),
        "folder": str(folder), "kept": [f"packed-{method}", kept.hex],
    }  # fmt: skip


def pack_here(asked: dict[str, Any]) -> None:
    """Pack in this process, which was started for it, and print the segments it made and what it cost."""
    from trainers.workers import pack

    kept: list[dict[str, Any]] = []
    before, peak = resource.getrusage(resource.RUSAGE_SELF), [0]
    started, start_bytes = time.monotonic(), anonymous_kib() * 1024
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            peak[0] = max(peak[0], anonymous_kib() * 1024)

    threading.Thread(target=watch, daemon=True).start()
    pack(asked, lambda header, arrays: kept.append(header["kept"]) if "kept" in header else None)
    ended.set()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({
        "kept": kept, "cpu_s": cpu, "s": time.monotonic() - started, "peak_mb": (peak[0] - start_bytes) / 1e6,
    }))  # fmt: skip


def packed(store: Store, asked: dict[str, Any]) -> dict[str, Any]:
    """Pack in a process of its own, and record what it kept."""
    done = subprocess.run(
        [sys.executable, __file__, "--pack", json.dumps(asked)], check=True, stdout=subprocess.PIPE, text=True
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for made in told.pop("kept"):
        store.index.add_segment(made["segment"], asked["kept"][1], made["bytes"], made["items"])
    kept = store.root / "segments" / asked["kept"][0]
    own = tree_bytes(Path(asked["folder"]))
    return told | {"mb": (own + (tree_bytes(kept) if kept.exists() else 0)) / 1e6}


def batches(asked: dict[str, Any], most: int) -> dict[str, Any]:
    """CPU milliseconds of a training batch, and a digest of all numbers of those batches and of the gallery."""
    import torch

    torch.set_num_threads(1)
    declared = METHODS.find(asked["method"])
    data: Any = declared.open_data(
        Path(asked["folder"]), declared.config.model_validate_json(asked["params"])
    )
    state, seconds = hashlib.blake2b(digest_size=8), []
    for batch in _timed(data.train_batches(0, 0), most, seconds):
        _digest(state, batch)
    for found in (data.item_batches("val"), data.text_batches("val")):
        for batch in found:
            _digest(state, batch)
    return {"batch_ms": 1e3 * float(np.median(seconds)), "batches": len(seconds), "digest": state.hexdigest()}


def _timed(found: Iterator[Any], most: int, seconds: list[float]) -> Iterator[Any]:
    for _ in range(most):
        started = time.process_time()
        batch = next(found, None)
        if batch is None:
            return
        seconds.append(time.process_time() - started)
        yield batch


def _digest(state: Any, batch: dict[str, Any]) -> None:
    for name in sorted(batch):
        state.update(f"{name} {batch[name].dtype} {tuple(batch[name].shape)}".encode())
        state.update(batch[name].contiguous().numpy().tobytes())


def main() -> None:
    """Print a line for each method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--captions", type=int, default=20, help="of each video")
    parser.add_argument("--more", type=int, default=10, help="videos that are added afterwards")
    parser.add_argument("--widths", choices=WIDTHS, default="published")
    parser.add_argument("--methods", nargs="*", default=list(METHODS_RUN), choices=METHODS_RUN)
    parser.add_argument("--batches", type=int, default=20, help="training batches that are assembled")
    parser.add_argument("--folder", type=Path, help="where the store is made, and kept")
    parser.add_argument("--pack", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pack:
        pack_here(json.loads(options.pack))
        return
    with tempfile.TemporaryDirectory() as name:
        store, widths = Store(options.folder or Path(name)), WIDTHS[options.widths]
        splits = corpus(options.videos, options.captions)
        prints = make_features(store, splits, widths)
        print(f"features {sum(tree_bytes(store.root / 'segments' / stage) for stage in STAGES) / 1e6:.0f} MB")
        print(
            "method        pack CPU s     MB  peak MB  batch ms  digest            more CPU s     s  MB more"
        )
        for method in options.methods:
            asked = request(store, method, splits, prints)
            first, read = packed(store, asked), batches(asked, options.batches)
            grown = corpus(options.videos + options.more, options.captions)
            again_asked = request(store, method, grown, make_features(store, grown, widths))
            again = packed(store, again_asked)
            once = f"{method:13s} {first['cpu_s']:10.1f} {first['mb']:6.0f} {first['peak_mb']:8.0f}"
            then = f"{again['cpu_s']:10.1f} {again['s']:5.1f} {again['mb'] - first['mb']:8.1f}"
            print(f"{once} {read['batch_ms']:9.2f}  {read['digest']}  {then}", flush=True)


if __name__ == "__main__":
    main()
