"""A child that is killed is not its item's fault: the item is tried again, alone, and else by the next run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.media.video import find_ffmpeg

pytestmark = pytest.mark.slow

SHIM = """#!/bin/sh
case "$*" in
*-version*) exec {ffmpeg} "$@" ;;
*{clip}*)
    echo x >> {folder}/tries
    if [ $(wc -l < {folder}/tries) -le {times} ]; then {does}; fi ;;
esac
exec {ffmpeg} "$@"
"""


@contextlib.contextmanager
def shim(folder: Path, does: str, times: int, clip: str = "clip01.mp4") -> Iterator[None]:
    """An ffmpeg that does something else the first times that it gets a clip."""
    path = folder / "bin" / "ffmpeg"
    path.parent.mkdir(exist_ok=True)
    path.write_text(SHIM.format(ffmpeg=find_ffmpeg(), clip=clip, folder=folder, times=times, does=does))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (folder / "tries").unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
        find_ffmpeg.cache_clear()
        yield
    find_ffmpeg.cache_clear()


def tries(folder: Path) -> int:
    return len((folder / "tries").read_text().splitlines())


@pytest.mark.parametrize(
    "does", ["kill -9 $$", "kill -TERM $$", "exit 255", "echo 'Cannot allocate memory' >&2; exit 244"]
)
def test_an_ffmpeg_that_is_killed_once_costs_nothing(small, does):
    with shim(small.folder, does, 1):
        ended = small.run("stage", "compress", small.toml)
    assert ended.code == 0, ended.out + ended.err
    assert small.plan()["compress"]["cached"] == 3 and tries(small.folder) == 2


def test_an_ffmpeg_that_is_always_killed_is_recorded_as_killed_and_taken_up_by_the_next_run(small):
    with shim(small.folder, "kill -9 $$", 99):
        ended = small.run("stage", "compress", small.toml)
        assert ended.code == 3, ended.err
        assert "1 killed; the next run tries them again" in ended.out and "failed" not in ended.out
        assert "clip01: ffmpeg was killed: SIGKILL (out of memory?) (compress)" in ended.out
        assert tries(small.folder) == 2
        state = small.plan()["compress"]
        assert (state["cached"], state["missing"], state["failed"], state["killed"]) == (2, 1, 0, 1)
        told = small.run("status", small.toml)
        assert told.code == 3 and "killed: clip01 (compress): ffmpeg was killed" in told.out
        assert "the next run tries it again" in told.out
        why = small.run("why", "compress", "clip01", small.toml)
        assert "compress of clip01: killed 1 times, the next run tries it again: ffmpeg was killed" in why.out
        assert small.run("stage", "compress", small.toml).code == 3
        assert tries(small.folder) == 3  # alone, once
    ended = small.run_without_prefect(small.toml)
    assert ended.code == 0 and small.plan()["compress"]["cached"] == 3, ended.err
    assert small.run("status", small.toml).code == 0


def test_an_ffmpeg_that_crashes_twice_over_a_file_is_that_files_failure(small):
    with shim(small.folder, "kill -SEGV $$", 99):
        ended = small.run("stage", "compress", small.toml)
    assert ended.code == 3 and "1 failed" in ended.out and "clip01: ffmpeg was killed: SIGSEGV" in ended.out
    assert tries(small.folder) == 2 and small.plan()["compress"]["failed"] == 1


def test_the_hang_of_an_ffmpeg_is_its_items_failure_unless_it_was_stopped(small):
    limit = ("--set", "run.item_seconds=2")
    with shim(small.folder, "exec sleep 60", 99):
        ended = small.run("stage", "compress", small.toml, *limit)
    assert "ffmpeg was not done after 2 s (run.item_seconds)" in ended.out and "1 failed" in ended.out
    with shim(small.folder, "kill -STOP $$", 1):
        ended = small.run("stage", "compress", small.toml, *limit, "--retry-failed")
    assert ended.code == 0 and tries(small.folder) == 2, ended.out


@pytest.mark.parametrize("entry", ["video:serve_decode", "extractors.shard:run"])
def test_a_decoder_or_worker_that_is_killed_changes_nothing(made, entry):
    before = json.loads(made.run("plan", made.toml, "--json").out)["clip"]["fingerprint"]
    process = made.start("stage", "clip", made.toml, "--redo")
    kills, deadline = 0, time.monotonic() + 150
    while process.poll() is None and time.monotonic() < deadline:
        for pid in [pid for pid, words in made.processes().items() if entry in words]:
            if kills < 2:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
                time.sleep(1.5)
        time.sleep(0.02)
    out, err = process.communicate()
    # The run may end before the process that took over is there to be hit.
    assert process.returncode == 0 and kills in (1, 2), out + err
    state = json.loads(made.run("plan", made.toml, "--json").out)["clip"]
    assert (state["fingerprint"], state["cached"], state["failed"], state["killed"]) == (before, 12, 0, 0)
