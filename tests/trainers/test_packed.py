"""Packs that refer to a store give the batches of packs that hold copies, and grow by what is new alone."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.store.fields import Field
from pipeline.store.fingerprint import Fingerprint, digest_text
from pipeline.store.places import place_table
from pipeline.store.segments import Damaged
from pipeline.store.store import REFERENCES, Store
from trainers import workers
from trainers.data import split_columns, split_of, write_ragged
from trainers.packed import ARRAYS, Ragged
from trainers.packing import referred
from trainers.registry import METHODS

OF_CAPTIONS = ("clip_text", "bert")
STAGES: dict[str, dict[str, Field]] = {
    "clip": {"frame": Field("float16", (None, 8)), "time": Field("float32", (None,))},
    "vgg16": {"frame": Field("float16", (None, 6))},
    "dgcnn": {"token": Field("float16", (None, 6))},
    "clip_text": {name: Field("float16", (None, 8)) for name in ("token", "projected")},
    "bert": {"token": Field("float16", (None, 5)), "offset": Field("int32", (None, 2))},
}
SMALL: dict[str, dict[str, Any]] = {
    "hlformer": {"map_size": 3, "max_ctx_l": 7, "max_desc_l": 4, "batch_size": 3},
    "neighborretr": {"mode": "frozen", "max_words": 5, "max_frames": 4, "batch_size": 8, "num_neighbors": 2},
    "lean": {"frames": 4, "nodes": "sentence", "keyframes": "", "batch_size": 3},
    "h2arn": {"mask_padding": True, "batch_size": 3},
}
WORDS = "a man in red is riding bikes through rain"


def outputs(stage: str, key: str, change: int = 0) -> dict[str, NDArray[Any]]:
    """Features of a key: clouds have equally many rows, others 3 to 11."""
    draw = np.random.default_rng([int(key[:8], 16), change])
    count = 5 if stage == "dgcnn" else 3 + int(key[:2], 16) % 9
    found = {}
    for name, field in STAGES[stage].items():
        shape = (count, *field.shape[1:])
        found[name] = draw.normal(size=shape).astype(field.dtype)  # type: ignore[arg-type]
    if "time" in found:
        found["time"] = np.arange(count, dtype=np.float32) / 3
    if "offset" in found:
        found["offset"] = np.stack([np.arange(count), np.arange(count) + 1], 1).astype(np.int32)
    return found


class Packing:
    """A store with features, and packs of a method in it, as a run makes them."""

    def __init__(self, root: Path, method: str) -> None:
        self.store, self.method = Store(root), method
        self.declared = METHODS.find(method)
        self.config = self.declared.config(**SMALL[method])
        self.kept = Fingerprint.of({"stage": f"packed-{method}"})
        self.made: list[list[str]] = []  # the units whose arrays were computed, of each packing

    def print(self, stage: str) -> Fingerprint:
        return Fingerprint.of({"stage": stage})

    def write(self, stage: str, keys: list[str], change: int = 0) -> None:
        """Store features of some keys; those of an earlier segment are replaced."""
        with self.store.writer(stage, self.print(stage), STAGES[stage]) as out:
            for key in keys:
                out.append(key, key, outputs(stage, key, change))
            path = out.finish()
        assert path is not None
        self.store.index.add_segment(out.id, self.print(stage).hex, path.stat().st_size, out.items)

    def splits(self, videos: int) -> dict[str, dict[str, list[Any]]]:
        """The members of the splits, as a run sends them."""
        found = {}
        for split, count in (("train", videos), ("val", 3)):
            items = [digest_text(f"{split} {n}") for n in range(count)]
            found[split] = split_columns(items, (
                (digest_text(f"{item} {n}"), f"{n} {WORDS}"[: 9 + n * 20], item, [])
                for item in items for n in range(2)
            ))  # fmt: skip
        return found

    def features(self, videos: int) -> None:
        """Store what is missing of the features of these splits."""
        for stage in self.config.features():
            there = self.store.places(stage, self.print(stage).hex)
            keys = [
                key for split in self.splits(videos).values()
                for key in split["captions" if stage in OF_CAPTIONS else "items"]
            ]  # fmt: skip
            if lacking := [key for key in keys if key not in there]:
                self.write(stage, lacking)

    def _where(self, stage: str, fp: str) -> dict[str, Any]:
        places = self.store.places(stage, fp)
        return place_table(places, places, lambda segment: self.store.segment_path(stage, fp, segment))

    def pack(self, videos: int, name: str = "a") -> Any:
        """Pack, and open the data."""
        stage, told = f"packed-{self.method}", list[str]()
        inputs = self.store.root / "work" / f"{name}.json"
        splits = self.splits(videos)
        inputs.write_text(json.dumps({
            "splits": splits,
            "rows": {
                need: {"field": next(iter(STAGES[need])), **self._where(need, self.print(need).hex)}
                for need in self.config.features()
            },
            "keeping": {
                "stage": stage, "fingerprint": self.kept.hex, "components": dict(self.kept.components),
                **self._where(stage, self.kept.hex),
            },
        }))  # fmt: skip

        def hear(header: Mapping[str, Any], arrays: Any) -> None:
            if kept := header.get("kept"):
                self.store.index.add_segment(kept["segment"], self.kept.hex, kept["bytes"], kept["items"])
                told.extend(kept["items"])
            self.record = header.get("record")

        self.folder = self.store.root / "runs" / f"pack-{self.method}" / name
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        params = self.config.model_dump_json()
        request = {"method": self.method, "params": params, "inputs": str(inputs), "folder": str(self.folder)}
        workers.pack(request, hear)  # type: ignore[arg-type]
        self.made.append(told)
        return self.declared.open_data(self.folder, self.config)

    def copied(self, folder: Path, videos: int) -> Any:
        """The same of features that are functions, which are copied into the folder."""
        folder.mkdir()
        read = {
            name: lambda key, stage=stage, output=output: outputs(stage, key)[
                output or next(iter(STAGES[stage]))
            ]
            for name, (stage, output) in self.config.inputs().items()
        }
        splits = {split: split_of(members) for split, members in self.splits(videos).items()}
        self.declared.pack(folder, self.config, splits, read)
        return self.declared.open_data(folder, self.config)


def batches(data: Any) -> list[dict[str, torch.Tensor]]:
    """Every batch of an epoch and of the evaluation."""
    return [*data.train_batches(1, 0), *data.item_batches("val"), *data.text_batches("val")]


def assert_equal(some: Any, others: Any) -> None:
    """Every number of every batch is the same, and of the same type."""
    first, second = batches(some), batches(others)
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name, values in one.items():
            assert values.dtype == other[name].dtype and torch.equal(values, other[name]), name


@pytest.mark.parametrize("method", sorted(SMALL))
def test_a_pack_grows_by_what_is_new_and_gives_the_batches_of_copies(tmp_path: Path, method: str) -> None:
    packing = Packing(tmp_path / "store", method)
    packing.features(7)
    assert_equal(packing.pack(7), packing.copied(tmp_path / "seven", 7))
    before = {path: path.read_bytes() for path in (tmp_path / "store/segments").rglob("*.h5")}
    packing.features(9)
    assert_equal(packing.pack(9, "b"), packing.copied(tmp_path / "nine", 9))
    units = [{*split["items"], *split["captions"]} for split in packing.splits(9).values()]
    old = [{*split["items"], *split["captions"]} for split in packing.splits(7).values()]
    assert set(packing.made[0]) == set.union(*old)
    assert sorted(packing.made[1]) == sorted(set.union(*units) - set.union(*old))
    assert all(path.read_bytes() == content for path, content in before.items())
    packing.pack(9, "c")
    assert packing.made[2] == []


def test_a_pack_is_far_smaller_than_what_it_refers_to_and_names_it(tmp_path: Path) -> None:
    packing = Packing(tmp_path, "h2arn")
    packing.features(40)
    packing.pack(40)
    assert packing.record is not None
    segments = {str(p.relative_to(tmp_path)): p.stat().st_size for p in (tmp_path / "segments").rglob("*.h5")}
    assert packing.record[REFERENCES].items() <= segments.items()
    assert {name.split("/")[1] for name in packing.record[REFERENCES]} == {"dgcnn", "clip_text"}
    assert not list(packing.folder.glob("*float*")), "rows were copied"


def test_features_that_were_made_again_are_read_and_checked_again(tmp_path: Path) -> None:
    packing = Packing(tmp_path, "lean")
    packing.features(5)
    first = batches(packing.pack(5))
    again = packing.splits(5)["train"]["items"][:2]
    packing.write("vgg16", again, change=1)
    second = batches(packing.pack(5, "b"))
    assert sorted(packing.made[1]) == sorted(again)
    assert not all(
        torch.equal(a["frames"], b["frames"]) for a, b in zip(first, second, strict=True) if "frames" in a
    )


def test_damaged_rows_are_not_packed(tmp_path: Path) -> None:
    packing = Packing(tmp_path, "h2arn")
    packing.features(4)
    (path,) = (tmp_path / "segments" / "dgcnn").rglob("*.h5")
    content = bytearray(path.read_bytes())
    rows = outputs("dgcnn", packing.splits(4)["train"]["items"][1])["token"].tobytes()
    content[content.index(rows) + 3] ^= 16
    path.write_bytes(content)
    with pytest.raises(Damaged, match="do not have the checksum they were written with"):
        packing.pack(4)


def test_what_a_stopped_packing_computed_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packing = Packing(tmp_path, "lean")
    packing.features(6)
    monkeypatch.setattr("trainers.packing.SEGMENT_BYTES", 1)  # a segment for each unit
    calls = iter(range(5))

    def stops(*arguments: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return video_frames(*arguments)

    from trainers.lean.data import video_frames

    with monkeypatch.context() as patched:
        patched.setattr("trainers.lean.data.video_frames", stops)
        with pytest.raises(KeyboardInterrupt):
            packing.pack(6)
    left = packing.store.places("packed-lean", packing.kept.hex)
    assert len(left) == 5
    assert_equal(packing.pack(6), packing.copied(tmp_path / "copies", 6))
    assert not left.keys() & set(packing.made[-1])


def test_arrays_that_an_earlier_version_copied_are_read(tmp_path: Path) -> None:
    arrays = [np.arange(n * 3, dtype=np.float32).reshape(n, 3) for n in (2, 1, 4)]
    write_ragged(tmp_path, "rows", arrays, [2, 1, 4])
    found = Ragged.open(tmp_path, "rows")
    assert found.lengths.tolist() == [2, 1, 4] and found.row_shape == (3,)
    for one, other in zip(arrays, found, strict=False):
        np.testing.assert_array_equal(one, other)
    padded = found.padded([2, 1], 3).numpy()
    np.testing.assert_array_equal(padded[0], arrays[2][:3])
    np.testing.assert_array_equal(padded[1], [*arrays[1], np.zeros(3), np.zeros(3)])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found))[2], arrays[2])


def test_a_pack_leads_to_segments_alone_and_names_one_that_is_gone(tmp_path: Path) -> None:
    packing = Packing(tmp_path, "h2arn")
    packing.features(3)
    packing.pack(3)
    listed = packing.folder / ARRAYS
    text = listed.read_text()
    (path,) = (tmp_path / "segments" / "dgcnn").rglob("*.h5")
    listed.write_text(text.replace(str(path.relative_to(tmp_path)), "segments/../../secret"))
    with pytest.raises(UserError, match="which is no segment"):
        Ragged.open(packing.folder, "clouds")
    listed.write_text(text)
    path.unlink()
    with pytest.raises(UserError, match="was removed by another run while it was packed"):
        referred(packing.folder)
    with pytest.raises(UserError, match="the next run packs them again"):
        Ragged.open(packing.folder, "clouds")
