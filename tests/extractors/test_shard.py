"""A shard in a worker: every unit is answered for, batches fill across videos, and one segment is left."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extractors import shard
from pipeline.errors import UserError
from pipeline.media import video
from pipeline.store.fields import Field
from pipeline.store.fingerprint import digest_file
from pipeline.store.segments import Segment, SegmentWriter

TOYS = '''
"""Extractors without a network."""
import numpy as np
from extractors.base import Extractor, FrameExtractor, FrameReader, Output, TextExtractor
from pipeline.errors import ItemError
from pipeline.settings import Params
from pipeline.store.fields import Field

class ToyParams(Params):
    scale: float = 1.0

class Grey(FrameExtractor[ToyParams]):
    """The mean of each frame; notes the sizes of its batches."""
    name, settings, batches, loads = "grey", ToyParams, [], []
    fields = {"mean": Field("float32", (None, 3)), "time": Field("float32", (None,))}

    def load(self, options):
        super().load(options)
        self.loads.append(1)

    def prepare(self, frames):
        return frames.mean(axis=(1, 2), dtype=np.float64) * self.params.scale

    def encode(self, prepared):
        self.batches.append(len(prepared))
        return {"mean": prepared}

class Counter(FrameReader[ToyParams]):
    """How many frames; what it thinks of a clip comes of its name."""
    name, settings = "counter", ToyParams
    fields = {"count": Field("int64", (None,))}

    def begin(self, unit, decoder):
        self.unit, self.count = unit, 0

    def take(self, frames, times):
        self.count += len(frames)
        if "refused" in self.unit.name:
            raise ItemError("somewhere", "it does not like the clip")
        yield None

    def end(self):
        yield self.unit, Output({"count": np.array([self.count])})

class Letters(TextExtractor[ToyParams]):
    """The code of each letter; a text of digits fails where it is declared to."""
    name, settings, batches = "letters", ToyParams, []
    fields = {"code": Field("float16", (None, 1))}

    def encode(self, texts):
        self.batches.append(texts)
        return [{"code": np.array([[np.inf if letter == "!" else ord(letter)] for letter in text])} for text in texts]

class Filer(Extractor[ToyParams]):
    """A file an item."""
    name, settings, file_suffix = "filer", ToyParams, ".txt"
    fields = {"size": Field("int64", (None,))}

    def extract(self, unit, work):
        if "bad" in unit.name:
            raise ItemError("somewhere", "it is bad")
        if "full" in unit.name:
            raise OSError(28, "No space left on device")
        path = work / f"{unit.key}.txt"
        path.write_text(unit.name)
        return Output({"size": np.array([len(unit.name)])}, {"decoder": "none"}, path)
'''


@pytest.fixture
def toys(tmp_path, monkeypatch):
    (tmp_path / "toys_of_test_shard.py").write_text(TOYS)
    monkeypatch.syspath_prepend(tmp_path)
    shard._read.cache_clear()
    import toys_of_test_shard

    yield toys_of_test_shard
    shard._read.cache_clear()
    del sys.modules["toys_of_test_shard"]


def request_of(kind: str, keys: list[str], params: dict[str, Any] | None = None) -> dict[str, Any]:
    own = {"entry": f"toys_of_test_shard:{kind}", "params": json.dumps(params or {})}
    return own | {"fingerprint": "fp", "components": {}, "keys": keys}


def segment_of(folder: Path, replies: list[dict[str, Any]], kind: str) -> Segment | None:
    name = replies[-1]["segments"][kind.lower()]["segment"]
    return Segment(folder / "store/segments" / kind.lower() / "fp" / f"{name}.h5") if name else None


@pytest.fixture
def run(toys, tmp_path):
    """The replies of a shard, and the segment it leaves."""

    def run(kind: str, units: list[dict[str, Any]], params: dict[str, Any] | None = None, **options: Any):
        replies: list[dict[str, Any]] = []
        keys = [unit["key"] for unit in units]
        request = {
            "stages": [request_of(kind, keys, params)], "options": json.dumps(options),
            "store": str(tmp_path / "store"), "units": units,
        }  # fmt: skip
        shard.run(request, lambda header, arrays: replies.append(dict(header)))
        replies[-1] |= replies[-1]["segments"][kind.lower()]
        return replies, segment_of(tmp_path, replies, kind)

    return run


def clips(folder: Path, *names: str) -> list[dict[str, Any]]:
    return [
        {"key": name, "name": f"the clip {name}", "files": {"compress": str(folder / f"{name}.mp4")}}
        for name in names
    ]


CLIPS = ("clip00", "clip01", "clip02", "clip03")


def means(path: Path) -> np.ndarray:
    """Frame by frame, as the slow twin of what fills batches across videos."""
    return np.concatenate([f.mean(axis=(1, 2), dtype=np.float64) for f, _ in video.decode(path, "decord")])


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_each_video_gets_its_own_rows_whatever_the_batch(run, toys, rendered, batch_size):
    toys.Grey.batches.clear()
    replies, segment = run("Grey", clips(rendered, *CLIPS), batch_size=batch_size)
    assert sorted(segment.items) == sorted(CLIPS)
    for row, name in enumerate(segment.items):
        np.testing.assert_allclose(segment.rows("mean", row), means(rendered / f"{name}.mp4"), rtol=1e-6)
        np.testing.assert_allclose(segment.rows("time", row), np.arange(50) / 25, atol=1e-3)
        assert (
            json.loads(segment.notes[row]) == {"decoder": "decord"}
            and segment.names[row] == f"the clip {name}"
        )
        segment.check(row)
    assert sum(toys.Grey.batches) == 200 and set(toys.Grey.batches[:-1]) <= {batch_size}
    assert sorted(reply["done"] for reply in replies if "done" in reply) == sorted(CLIPS)
    assert replies[-1]["items"] == dict.fromkeys(segment.items) and replies[-1]["decodes"] == 4
    assert replies[-1]["bytes"] == segment.path.stat().st_size
    assert ({} in replies) == (batch_size <= 64)  # signs of life


def test_a_video_that_cannot_be_decoded_fails_by_name_and_the_others_are_whole(run, rendered, tmp_path):
    for path in rendered.glob("clip0[01].mp4"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    cut = (rendered / "clip02.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(cut[: len(cut) // 2])
    replies, segment = run(
        "Grey", clips(tmp_path, "clip00", "broken", "cut", "gone", "clip01"), batch_size=16
    )
    failed = {reply["failed"]: (reply["name"], reply["reason"]) for reply in replies if "failed" in reply}
    assert set(failed) == {"broken", "cut", "gone"} and sorted(segment.items) == ["clip00", "clip01"]
    assert failed["gone"][0] == "the clip gone" and "does not exist" in failed["gone"][1]
    np.testing.assert_allclose(
        segment.rows("mean", 1), means(rendered / f"{segment.items[1]}.mp4"), rtol=1e-6
    )


@pytest.fixture
def together(toys, tmp_path):
    """The replies of a shard in which several stages lack units, by the keys that each lacks."""

    def together(units: list[dict[str, Any]], lacking: dict[str, list[str]], **options: Any):
        replies: list[dict[str, Any]] = []
        stages = [request_of(kind, keys) for kind, keys in lacking.items()]
        request = {
            "stages": stages,
            "options": json.dumps(options),
            "store": str(tmp_path / "store"),
            "units": units,
        }
        shard.run(request, lambda header, arrays: replies.append(dict(header)))
        return replies, {kind: segment_of(tmp_path, replies, kind) for kind in lacking}

    return together


def test_stages_that_read_frames_share_one_decode_and_each_gets_the_units_it_lacks(together, run, rendered):
    lacking = {"Grey": ["clip00", "clip02", "clip03"], "Counter": ["clip01", "clip02"]}
    replies, segments = together(clips(rendered, *CLIPS), lacking, batch_size=16)
    assert replies[-1]["decodes"] == 4
    assert {kind: sorted(segment.items) for kind, segment in segments.items()} == lacking
    assert segments["Counter"].rows("count", 0).tolist() == [50]
    _, alone = run("Grey", clips(rendered, "clip00", "clip02", "clip03"), batch_size=16)
    assert segments["Grey"].items == alone.items
    for row in range(3):
        np.testing.assert_array_equal(segments["Grey"].rows("mean", row), alone.rows("mean", row))


def test_a_clip_that_one_stage_refuses_is_whole_in_the_other(together, rendered):
    units = clips(rendered, "clip00", "clip01")
    units[0]["name"] = "refused"
    replies, segments = together(units, {"Counter": ["clip00", "clip01"], "Grey": ["clip00", "clip01"]})
    (failed,) = [reply for reply in replies if "failed" in reply]
    assert failed == {
        "failed": "clip00", "name": "refused", "reason": "it does not like the clip", "stage": "counter"
    }  # fmt: skip
    assert segments["Counter"].items == ["clip01"] and sorted(segments["Grey"].items) == ["clip00", "clip01"]


def test_a_clip_that_no_decoder_reads_fails_in_every_stage_that_lacks_it(together, rendered, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "clip00.mp4").write_bytes((rendered / "clip00.mp4").read_bytes())
    units = clips(tmp_path, "broken", "clip00")
    replies, _ = together(units, {"Counter": ["broken", "clip00"], "Grey": ["clip00"]})
    assert [(r["failed"], r["stage"]) for r in replies if "failed" in r] == [("broken", "counter")]
    assert replies[-1]["decodes"] == 3  # the broken one by both decoders


def test_a_worker_loads_once_for_many_shards_and_again_for_other_settings(run, toys, rendered):
    toys.Grey.loads.clear()
    _, first = run("Grey", clips(rendered, "clip00"))
    run("Grey", clips(rendered, "clip01"))
    assert len(toys.Grey.loads) == 1
    _, other = run("Grey", clips(rendered, "clip00"), {"scale": 2.0})
    assert len(toys.Grey.loads) == 2
    np.testing.assert_allclose(other.rows("mean", 0), 2 * first.rows("mean", 0), rtol=1e-6)


def test_texts_of_similar_length_share_a_batch_and_each_gets_its_own_rows(run, toys):
    toys.Letters.batches.clear()
    texts = ["a long sentence", "b", "cc", "another sentence", "d"]
    _, segment = run("Letters", [{"key": t, "name": t, "text": t} for t in texts], batch_size=2)
    assert toys.Letters.batches == [["b", "d"], ["cc", "a long sentence"], ["another sentence"]]
    for row, text in enumerate(segment.items):
        np.testing.assert_array_equal(segment.rows("code", row)[:, 0], [ord(letter) for letter in text])


def test_an_output_that_is_not_finite_fails_its_caption_alone(run):
    replies, segment = run(
        "Letters", [{"key": t, "name": f"caption {t}", "text": t} for t in ("a", "b!", "c")]
    )
    assert segment.items == ["a", "c"]
    (failed,) = [reply for reply in replies if "failed" in reply]
    assert failed == {
        "failed": "b!", "name": "caption b!", "reason": "output 'code' holds NaN or infinity", "stage": "letters"
    }  # fmt: skip


def test_files_are_in_place_with_their_size_and_digest_before_the_segment_tells_of_them(run, tmp_path):
    replies, segment = run(
        "Filer", [{"key": f"ab{n}", "name": name} for n, name in enumerate(("one", "bad", "three"))]
    )
    assert replies[-1]["items"] == {"ab0": 3, "ab2": 5} and segment.file_bytes == [3, 5]
    for row, (key, text) in enumerate({"ab0": "one", "ab2": "three"}.items()):
        file = tmp_path / "store/files/filer/fp/ab" / f"{key}.txt"
        note = json.loads(segment.notes[row])
        assert file.read_text() == text and note["suffix"] == ".txt" and len(note["file_digest"]) == 32
    assert [reply["reason"] for reply in replies if "failed" in reply] == ["it is bad"]


def test_a_shard_in_which_all_fail_leaves_no_segment(run, tmp_path):
    replies, segment = run("Filer", [{"key": "a", "name": "bad"}])
    nothing = {"segment": None, "bytes": 0, "items": {}}
    assert segment is None and replies[-1]["segments"] == {"filer": nothing} and replies[-1]["decodes"] == 0
    assert list((tmp_path / "store/work").iterdir()) == []


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_made(run, tmp_path):
    with pytest.raises(UserError, match=r"the disk of the store .* is full; what was finished is kept"):
        run("Filer", [{"key": "a", "name": "one"}, {"key": "b", "name": "full"}])
    assert list((tmp_path / "store/work").iterdir()) == [] and not (tmp_path / "store/segments").exists()


def upstream(folder: Path, key: str, content: bytes) -> dict[str, Any]:
    """A unit whose compressed file, of so many bytes, was made and recorded as `compress` does it."""
    file = folder / "store/files/compress/fp" / key[:2] / f"{key}.mp4"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    fields = {"time": Field("float64", (None,))}
    with SegmentWriter(
        folder / "store/segments/compress/fp", folder / "work", "compress", "fp", {}, fields
    ) as out:
        note = {"suffix": ".mp4", "file_digest": digest_file(file)}
        out.append(key, f"the clip {key}", {"time": np.arange(3) / 3}, note, len(content))
        path = out.finish()
    return {
        "key": key, "name": f"the clip {key}", "files": {"compress": str(file)},
        "rows": {"compress": [str(path), 0]},
    }  # fmt: skip


def test_a_compressed_file_of_another_item_is_not_decoded_as_this_ones(run, tmp_path):
    one, two = upstream(tmp_path, "a1", b"1" * 100), upstream(tmp_path, "b2", b"2" * 100)
    paths = [Path(unit["files"]["compress"]) for unit in (one, two)]
    paths[0].write_bytes(b"2" * 100)  # of the same size, so that no look at sizes finds it
    paths[1].write_bytes(b"1" * 100)
    replies, segment = run("Counter", [one, two])
    assert segment is None
    for unit, path in zip((one, two), paths, strict=True):
        assert reason(replies, unit["key"]).startswith(
            f"the file {path} is not the one that was made of {unit['name']}"
        )


def test_rows_of_another_item_are_not_read_as_this_ones(run, tmp_path):
    one, two = upstream(tmp_path, "a1", b"1"), upstream(tmp_path, "b2", b"2")
    one["rows"], two["rows"] = two["rows"], one["rows"]
    replies, segment = run("Counter", [one, two])
    assert segment is None
    assert re.search(r"places the item a1 in row 0 of the segment .* holds b2", reason(replies, "a1"))
    assert re.search(r"places the item b2 in row 0 of the segment .* holds a1", reason(replies, "b2"))


def reason(replies: list[dict[str, Any]], key: str) -> str:
    """Why a unit failed."""
    (found,) = [reply["reason"] for reply in replies if reply.get("failed") == key]
    return found


class Memory:
    """Raises as torch does, on a CPU or a GPU, where more than so many rows are asked for at once."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error, self.sizes = most, error, []

    def __call__(self, rows: int) -> None:
        self.sizes.append(rows)
        if rows > self.most:
            raise self.error


class OutOfMemoryError(RuntimeError):
    """Called as torch.cuda's."""


NO_MEMORY = [
    MemoryError(), OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
]  # fmt: skip


@pytest.mark.parametrize("error", NO_MEMORY, ids=["python", "gpu", "cpu"])
def test_a_batch_without_memory_is_halved_and_every_unit_is_right(run, toys, monkeypatch, error):
    memory, encode = Memory(3, error), toys.Letters.encode
    monkeypatch.setattr(toys.Letters, "encode", lambda self, texts: memory(len(texts)) or encode(self, texts))
    texts = [f"{'a' * (n + 1)}" for n in range(13)]
    replies, segment = run("Letters", [{"key": t, "name": t, "text": t} for t in texts], batch_size=8)
    assert sum("done" in reply for reply in replies) == 13 and segment is not None
    for row, key in enumerate(segment.items):
        assert segment.rows("code", row)[:, 0].tolist() == [float(ord(letter)) for letter in key]
    assert memory.sizes == [8, 4, 2, 2, 4, 2, 2, 2, 2, 1]  # later batches are as small as what fitted


def test_frames_without_memory_for_their_batch_keep_their_videos(run, toys, monkeypatch, tmp_path, clip_of):
    for name, hue in (("a", 0), ("b", 120)):
        clip_of(tmp_path / f"{name}.mp4", 2, hue=hue)
    _, whole = run("Grey", clips(tmp_path, "a", "b"), batch_size=32)
    memory, encode = Memory(5, MemoryError()), toys.Grey.encode
    monkeypatch.setattr(toys.Grey, "encode", lambda self, rows: memory(len(rows)) or encode(self, rows))
    _, halved = run("Grey", clips(tmp_path, "a", "b"), batch_size=32)
    assert whole is not None and halved is not None and min(memory.sizes) < 5
    for key in "ab":
        one, other = (s.rows("mean", s.items.index(key)) for s in (whole, halved))
        np.testing.assert_array_equal(one, other)


def test_no_memory_for_one_unit_is_a_sentence_with_the_settings_that_need_less(run, toys, monkeypatch):
    memory = Memory(0, MemoryError("Unable to allocate 9 GiB"))
    monkeypatch.setattr(toys.Letters, "encode", lambda self, texts: memory(len(texts)))
    with pytest.raises(UserError, match=r"no memory for letters .*9 GiB.*run\.workers.*run\.batch_size"):
        run("Letters", [{"key": t, "name": t, "text": t} for t in "abc"])
    assert memory.sizes == [3, 1]


def test_no_memory_outside_of_a_batch_is_the_same_sentence(run, toys, monkeypatch):
    def extract(self, unit, work):
        raise MemoryError

    monkeypatch.setattr(toys.Filer, "extract", extract)
    with pytest.raises(
        UserError, match=r"no memory for filer with a batch of 32 .*run\.workers.*run\.batch_size"
    ):
        run("Filer", [{"key": "a", "name": "a"}])


def test_a_gpu_whose_memory_does_not_suffice_is_one_sentence_with_its_settings(run, toys, monkeypatch):
    def load(self, options):
        raise OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB"
        )

    monkeypatch.setattr(toys.Filer, "load", load)
    with pytest.raises(
        UserError,
        match=r"the memory of cuda:0 does not suffice for filer with a batch of 32 \(CUDA out of memory.*8 GiB\); "
        r"raise run\.gpu_fraction.*run\.batch_size.*run\.device",
    ):
        run("Filer", [{"key": "a", "name": "a"}], device="cuda:0")


def test_the_last_reply_says_where_the_time_went(run, rendered):
    replies, _ = run("Grey", clips(rendered, "clip00", "clip01"), batch_size=8)
    seconds = replies[-1]["seconds"]
    assert {"decode", "wait", "preprocess", "copy", "network", "write", "all"} <= set(seconds)
    assert min(seconds.values()) >= 0 and seconds["decode"] > 0
    own = sum(seconds[part] for part in ("wait", "preprocess", "copy", "network", "write", "device"))
    assert own <= seconds["all"] * 1.01
    assert replies[-1]["decoders"] == 1 and replies[-1]["unshared"] == ""


def test_a_reader_that_is_faster_than_a_decoder_gets_more_of_them_beside_a_gpu(run, rendered):
    units = clips(rendered, "clip00", "clip01", "clip02", "clip03", "clip04")
    one, alone = run("Counter", units, device="cpu", threads=3)
    assert one[-1]["decoders"] == 1
    several, segment = run("Counter", units, device="cuda:0", threads=3)
    assert several[-1]["decoders"] == 2  # a core is left to the worker
    assert segment.items == alone.items == [unit["key"] for unit in units]
    for row in range(len(units)):
        assert segment.rows("count", row) == alone.rows("count", row)
