"""Decoding ahead: every source is answered for, by the second decoder where the first one cannot."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from extractors.decoding import CHUNKS_AHEAD, Begin, Chunk, Decoders, End, Failed, Source, decode_with
from pipeline.child import Child
from pipeline.errors import UserError

DECODER = """
import os, signal, time
from pathlib import Path
import numpy as np
from pipeline.errors import ItemError, UserError

def decode(request, send):
    path, decoder = Path(request["path"]), request["decoder"]
    with path.with_name("asked").open("a") as asked:
        asked.write(f"{path.name} {decoder}\\n")
    does, _, only = path.stem.partition("-")
    if only and decoder != only:
        does = "good"
    count = 1 if "half" in does else 3
    if does != "none":
        for n in range(count):
            value = len(path.name) + (100 if decoder == "pyav" else 0)
            send({}, {"frames": np.full((2, 4, 6, 3), value, np.uint8), "times": np.arange(2) + 2.0 * n})
            with path.with_name("sent").open("a") as sent:
                sent.write("x")
    if does.startswith("item"):
        raise ItemError(str(path), "it is broken")
    if does.startswith("ours"):
        raise MemoryError("too much")
    if does.startswith("user"):
        raise UserError("no decoder here")
    if does.endswith("die"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if does.endswith("kill") and not (does.startswith("once") and path.with_name("killed").exists()):
        path.with_name("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if does.endswith("hang"):
        time.sleep(60)
"""


def decode_ahead(decoder, sources, limit_seconds):
    """The events from one decoder."""
    return decode_with(Decoders(lambda: decoder, 1), sources, limit_seconds)


@pytest.fixture(autouse=True)
def beside(tmp_path, forked, monkeypatch) -> None:
    """Children are forks, which read sys.path; a new interpreter reads PYTHONPATH."""
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def decoder(tmp_path):
    (tmp_path / "decoder_of_test.py").write_text(DECODER)
    child = Child(
        "decoder_of_test:decode",
        env={"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
    )
    yield child
    child.kill()


@pytest.fixture
def decoded(decoder, tmp_path):
    """What comes of each source, in order: the decoder, the frames and times that count; or the reason."""

    def run(
        *names: str, limit_seconds: float = 30.0, frames: int | None = None
    ) -> dict[str, tuple[str, int, list[float]] | str]:
        out: dict[str, tuple[str, int, list[float]] | str] = {}
        began, parts = None, []
        for event in decode_ahead(
            decoder, [Source(name, tmp_path / f"{name}.mp4", frames) for name in names], limit_seconds
        ):
            if isinstance(event, Begin):
                began, parts = event, []
            elif isinstance(event, Chunk):
                parts.append(event)
            elif isinstance(event, End):
                assert began is not None and event.unit == began.unit
                times = np.concatenate([part.times for part in parts]).tolist()
                out[event.unit] = (began.decoder, int(parts[0].frames[0, 0, 0, 0]), times)
            elif isinstance(event, Failed):
                out[event.unit] = event.reason
        assert list(out) == list(names)
        return out

    return run


TIMES = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_good_sources_come_in_order_from_the_first_decoder(decoded):
    found = decoded("good", "gooood", "gooo")
    assert found == {name: ("decord", len(name) + 4, TIMES) for name in ("good", "gooood", "gooo")}


@pytest.mark.parametrize(
    "name", ["item-decord", "ours-decord", "die-decord", "half die-decord", "none-decord"]
)
def test_what_the_first_decoder_cannot_the_second_does_from_the_beginning(decoded, name):
    """Frames of a decoder that broke off halfway do not count."""
    found = decoded("good", name, "goood")
    assert found[name] == ("pyav", len(name) + 104, TIMES)
    assert found["good"] == ("decord", 8, TIMES) and found["goood"] == ("decord", 9, TIMES)


@pytest.mark.slow
def test_a_decoder_that_hangs_is_killed_and_the_other_one_asked(decoded):
    found = decoded("hang-decord", "good", limit_seconds=4)
    assert found["hang-decord"] == ("pyav", 115, TIMES) and found["good"] == ("decord", 8, TIMES)


def test_a_source_that_none_can_decode_fails_with_both_reasons_and_the_rest_goes_on(decoded):
    found = decoded("item", "die", "none", "ours", "good")
    assert found["item"] == "it is broken; it is broken"
    assert "SIGSEGV" in found["die"] and "pyav failed" in found["die"]
    assert found["none"] == "decord finds no frame; pyav finds no frame"
    assert "decord failed: MemoryError: too much" in found["ours"]
    assert found["good"] == ("decord", 8, TIMES)


def test_a_decoder_that_gives_fewer_frames_than_there_are_is_not_believed(decoded):
    found = decoded("half-decord", "half", frames=6)
    assert found["half-decord"] == ("pyav", 115, [0, 1, 2, 3, 4, 5])
    assert found["half"] == "decord finds 2 frames of 6; pyav finds 2 frames of 6"


def test_an_error_of_the_user_is_raised_where_the_frames_are_asked_for(decoded):
    with pytest.raises(UserError, match="no decoder here"):
        decoded("good", "user")


def test_only_a_few_chunks_are_decoded_ahead(decoder, tmp_path):
    names = [Source(n, tmp_path / f"good{n}.mp4") for n in range(8)]
    events = decode_ahead(decoder, names, 30.0)
    assert isinstance(next(events), Begin)
    time.sleep(0.5)
    assert len((tmp_path / "sent").read_text()) < CHUNKS_AHEAD + 6  # of 24; some wait in the pipe
    events.close()


def test_stopping_early_ends_thread_and_decoder_even_one_that_hangs(decoder, tmp_path):
    before = threading.active_count()
    events = decode_ahead(decoder, [Source("a", tmp_path / "hang.mp4")], 60.0)
    for _ in range(4):
        next(events)
    began = time.monotonic()
    events.close()
    assert time.monotonic() - began < 3 and threading.active_count() == before and decoder.pid is None


def test_the_process_is_kept_for_the_next_shard_and_is_the_callers_own(decoder, decoded):
    decoded("good")
    pid = decoder.pid
    decoded("good", "goood")
    assert decoder.pid == pid and decoder.owner is threading.current_thread()


def test_real_videos_are_decoded_by_decord_and_what_is_none_is_named(rendered, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    child = Child("pipeline.media.video:serve_decode")
    try:
        sources = [Source("clip", rendered / "clip00.mp4"), Source("text", tmp_path / "text.mp4")]
        events = list(decode_ahead(child, sources, 60.0))
    finally:
        child.kill()
    assert sum(len(event.frames) for event in events if isinstance(event, Chunk)) == 50
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed.unit == "text" and "decord" in failed.reason and "PyAV" in failed.reason


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 7])
def test_several_decoders_give_what_one_gives_in_its_order(decoder, decoded, tmp_path, count):
    names = ["good", "item", "none", "half_die-decord", "good2", "ours"]
    alone = decoded(*names)
    others = [
        Child(
            "decoder_of_test:decode",
            env={"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        )
        for _ in range(count)
    ]
    try:
        kept = Decoders(iter(others).__next__, count)
        for _ in range(2):  # the decoders are kept from one shard to the next
            sources = [Source(name, tmp_path / f"{name}.mp4", None) for name in names]
            order, frames, reasons = [], {}, {}
            for event in decode_with(kept, sources, 30.0):
                if isinstance(event, Begin):
                    order.append(event.unit)
                    frames[event.unit] = 0
                elif isinstance(event, Chunk):
                    frames[order[-1]] += len(event.frames)
                elif isinstance(event, Failed):
                    reasons[event.unit] = event.reason
            assert list(dict.fromkeys(order)) == names
            for name in names:
                if isinstance(alone[name], str):
                    assert reasons[name] == alone[name]
                else:
                    assert frames[name] == len(alone[name][2])
    finally:
        for child in others:
            child.kill()


def test_several_decoders_end_at_once_where_their_caller_stops(decoder, tmp_path):
    others = [
        Child(
            "decoder_of_test:decode",
            env={"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        )
        for _ in range(2)
    ]
    sources = [Source(name, tmp_path / f"{name}.mp4", None) for name in ("good", "good_hang", "good3")]
    events = decode_with(Decoders(iter(others).__next__, len(others)), sources, 30.0)
    next(events)
    started = time.monotonic()
    events.close()
    assert time.monotonic() - started < 5
    assert all(child.pid is None for child in others)


def test_a_decoder_that_is_killed_is_started_again_and_not_replaced_by_another(decoded):
    found = decoded("good", "once kill", "goood")
    assert found["once kill"] == ("decord", 13, TIMES)
    assert found["good"] == ("decord", 8, TIMES) and found["goood"] == ("decord", 9, TIMES)


def test_a_source_whose_decoder_is_killed_each_time_is_given_back_as_killed(decoder, tmp_path):
    sources = [Source(name, tmp_path / f"{name}.mp4", None) for name in ("half kill", "good")]
    events = [e for e in decode_ahead(decoder, sources, 30) if isinstance(e, (Failed, End))]
    (failed, end) = events
    assert isinstance(failed, Failed) and failed.killed and "decord failed: SIGKILL" in failed.reason
    assert isinstance(end, End) and end.unit == "good"


class Swinging(Decoders):
    """Decoders whose number changes at every source."""

    def adapt(self, frames: int, decoding: float, reading: float) -> None:
        super().adapt(frames, decoding, reading)
        self.count = next(self.numbers)


def test_decoders_that_come_and_go_in_the_middle_of_a_pass_change_neither_events_nor_order(tmp_path):
    names = ["good", "item", "goood", "half_die-decord", "good2", "none", "good3", "good4", "good5"]
    sources = [Source(name, tmp_path / f"{name}.mp4") for name in names]

    def start() -> Child:
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        return Child("decoder_of_test:decode", env={"PYTHONPATH": path})

    def told(kept: Decoders) -> list[tuple]:
        try:
            return [
                (
                    type(event).__name__,
                    getattr(event, "unit", None),
                    getattr(event, "times", np.empty(0)).tolist(),
                )
                for event in decode_with(kept, sources, 30.0)
            ]
        finally:
            kept.kill()

    (tmp_path / "decoder_of_test.py").write_text(DECODER)
    one, swinging = Decoders(start, 1), Swinging(start, 0, threads=4, memory_bytes=1 << 40)
    swinging.numbers = iter([3, 3, 1, 1, 2, 4, 4, 1, 1])
    assert told(swinging) == told(one)
    assert len(swinging.children) > 1


def test_decoders_adapt_to_what_is_measured_unless_their_number_is_fixed():
    def never() -> Child:
        raise AssertionError("no process is needed to choose")

    chosen, fixed = Decoders(never, 0, threads=4, memory_bytes=1 << 40), Decoders(never, 2, 4, 1 << 40)
    slim = Decoders(never, 0, threads=64, memory_bytes=1 << 30)
    for decoders in (chosen, fixed, slim):
        decoders.chunk_bytes = 10_000_000
        for _ in range(10):
            decoders.adapt(90, decoding=0.6, reading=0.05)  # a reader twelve times as fast as a decoder
    assert (chosen.count, fixed.count, slim.count) == (3, 2, 4)  # cores, the setting, memory
    for _ in range(10):
        chosen.adapt(90, decoding=0.1, reading=5.0)
    assert chosen.count == 1
