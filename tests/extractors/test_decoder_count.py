"""The number of decoders follows from the rates of decoding and of the reader, within cores and memory."""

from __future__ import annotations

import pytest

from extractors.decoder_count import PROCESS_BYTES, Rates, most_decoders


def measured(decode_fps: float, reader_fps: float, videos: int = 20, frames: int = 90) -> Rates:
    """Rates after some videos that are decoded and read at constant speeds."""
    rates = Rates()
    for _ in range(videos):
        rates.add(frames, frames / decode_fps, frames / reader_fps)
    return rates


@pytest.mark.parametrize(
    ("decode_fps", "reader_fps", "wanted"),
    [
        (700, 7, 1),
        (700, 500, 1),
        (700, 700, 2),
        (700, 2000, 4),
        (700, 3000, 6),
        (700, 1e6, 15),
        (700, 1e12, 15),
    ],
)
def test_as_many_decoders_as_the_reader_takes_and_a_quarter_more(decode_fps, reader_fps, wanted):
    assert measured(decode_fps, reader_fps).wanted(1, 15) == wanted


def test_nothing_changes_before_enough_was_measured():
    assert Rates().wanted(3, 15) == 3 and Rates().wanted(0, 15) == 1
    assert measured(100, 10_000, videos=1, frames=10).wanted(2, 15) == 2


def test_the_number_does_not_swing_between_two_that_are_nearly_right():
    nearly = measured(700, 1660)  # 2.96 decoders with the quarter more
    assert nearly.wanted(3, 15) == 3 and nearly.wanted(4, 15) == 4 and nearly.wanted(5, 15) == 3
    assert nearly.wanted(2, 15) == 3 and nearly.wanted(4, 2) == 2


def test_the_latest_videos_count_most_so_that_a_gpu_that_warms_up_is_soon_forgotten():
    rates = measured(700, 50)  # the first batches of a GPU
    assert rates.wanted(1, 15) == 1
    for _ in range(20):
        rates.add(90, 90 / 700, 90 / 2000)
    assert rates.wanted(1, 15) == 4


@pytest.mark.parametrize(
    ("threads", "memory", "most"),
    [
        (1, 1 << 40, 1),
        (2, 1 << 40, 1),
        (16, 1 << 40, 15),
        (16, 0, 1),
        (16, 4 * (PROCESS_BYTES + 70_000_000), 4),
    ],
)
def test_a_worker_keeps_a_core_and_its_memory(threads, memory, most):
    assert most_decoders(threads, memory, chunk_bytes=10_000_000, chunks=7) == most
