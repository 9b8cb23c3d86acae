"""How large a published data set is, and the disk and time that its features take: estimates, before anything is there.

Sizes and lengths of the public sets are rounded figures of their papers; the costs of a second of video are those that
docs/scale.md measured on one core. Both are good for "fits my disk" and "hours or days", and for no more.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trainers.recipes import PublishedRecipe

COMPRESS_SECONDS = 0.57 / 30  # CPU seconds for a second of video of 640 x 360
DECODE_SECONDS = 0.15 / 30  # of its compressed frames, once for all stages
COMPRESSED_BYTES = 28e3  # for a second
FRAMES_A_SECOND = 3
CLIP_BYTES = 512 * 2  # a frame
PICTURE_BYTES = 224 * 224 * 3
KEYFRAMES, VGG16_BYTES = 10, 82e3  # pictures a video; bytes of their features
TEXT_BYTES = 33e3  # a caption's tokens
PACKED = 2  # packed features are float32, stored ones float16


@dataclass(frozen=True)
class DataSet:
    """Numbers of items and captions of all used splits, and the hours of the videos (None of clouds)."""

    items: int | None
    captions: int
    hours: float | None


DATA_SETS = {
    ("msrvtt", ""): DataSet(10_000, 200_000, 41),
    ("msvd", ""): DataSet(1_970, 80_000, 5.3),
    ("lsmdc", ""): DataSet(110_000, 110_000, 147),
    ("activitynet", "paragraph"): DataSet(14_926, 14_926, 490),
    ("activitynet", "moments"): DataSet(14_926, 55_000, 490),
    ("didemo", "paragraph"): DataSet(10_464, 10_464, 160),
    ("charades", ""): DataSet(6_672, 16_128, 57),
    ("tvr", ""): DataSet(19_614, 98_070, 415),
    ("t3dr-hit", ""): DataSet(None, 8_935, None),
}


@dataclass(frozen=True)
class Estimate:
    """Rounded sizes of a data set and costs of its features, all estimated.

    hours: of video; decode_seconds: CPU seconds of one core for compressing and decoding all of it once; bytes: of
    everything that a run leaves in the store. None where nothing is decoded.
    """

    items: int | None
    captions: int
    hours: float | None
    decode_seconds: float | None
    bytes: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def estimate(row: PublishedRecipe) -> Estimate:
    """What a published experiment needs, from its media on; of imported features, only the sizes of its data."""
    data = DATA_SETS[row.dataset, row.captions]
    if data.hours is None or row.imported:
        return Estimate(data.items, data.captions, None if row.imported else data.hours, None, None)
    seconds = data.hours * 3600
    made = COMPRESSED_BYTES * seconds + _stored(row, data, seconds)
    return Estimate(
        data.items, data.captions, data.hours, (COMPRESS_SECONDS + DECODE_SECONDS) * seconds, made
    )


def _stored(row: PublishedRecipe, data: DataSet, seconds: float) -> float:
    """Bytes of what the method reads and of its packed inputs: pictures to fine-tune a network, or features."""
    videos = data.items or 0
    if row.settings.get("mode") == "finetune":
        return 2 * row.settings["max_frames"] * PICTURE_BYTES * videos  # packed as they are
    texts = TEXT_BYTES * data.captions
    if row.method == "lean":
        return KEYFRAMES * PICTURE_BYTES * videos + (1 + PACKED) * (VGG16_BYTES * videos + texts)
    return (1 + PACKED) * (CLIP_BYTES * FRAMES_A_SECOND * seconds + texts)
