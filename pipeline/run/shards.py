"""The division of items into shards: it depends on the corpus and the stage alone, never on what is missing.

A segment holds a whole shard, so a new run after a killed one repeats exactly the unfinished shards,
with the same items in the same batches, and writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

LEAST_SHARDS = 16  # so that a small corpus occupies several workers and shows progress


def shard_size(total: int, most: int) -> int:
    """Return the number of items in a shard, for a corpus of `total` items; at most `most`."""
    return max(1, min(most, -(-total // LEAST_SHARDS)))


def cut(keys: Sequence[str], most: int, missing: Container[str]) -> list[list[str]]:
    """Cut all keys into shards; return the keys of each shard that are in `missing`, without empty shards."""
    size = shard_size(len(keys), most)
    shards = ([key for key in keys[i : i + size] if key in missing] for i in range(0, len(keys), size))
    return [shard for shard in shards if shard]
