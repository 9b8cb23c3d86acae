"""Which item is in which shard: decided by the corpus and the stage alone, never by what is missing.

A segment holds a whole shard, so a run that was killed repeats exactly the shards it had not
finished, with the same items in the same batches, and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

SHARDS_WANTED = 16  # so that a small corpus still spreads over workers and shows progress


def shard_size(total: int, most: int) -> int:
    """Items in a shard of a corpus of `total` items, at most `most`."""
    return max(1, min(most, -(-total // SHARDS_WANTED)))


def cut(keys: Sequence[str], most: int, wanted: Container[str]) -> list[list[str]]:
    """The wanted keys of each shard of all keys, shards without one left out."""
    size = shard_size(len(keys), most)
    shards = ([key for key in keys[i : i + size] if key in wanted] for i in range(0, len(keys), size))
    return [shard for shard in shards if shard]
