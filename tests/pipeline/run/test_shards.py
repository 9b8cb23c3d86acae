"""Shards: the corpus and the stage decide them, not what is missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.run.shards import LEAST_SHARDS, cut, shard_size


@given(total=st.integers(0, 500), most=st.integers(1, 64), data=st.data())
def test_shards_hold_missing_keys_once_in_order_and_never_change_company(
    total: int, most: int, data: st.DataObject
) -> None:
    keys = [str(n) for n in range(total)]
    wanted = data.draw(st.sets(st.sampled_from(keys))) if keys else set()
    whole, part = cut(keys, most, set(keys)), cut(keys, most, wanted)
    assert [key for shard in whole for key in shard] == keys
    assert [key for shard in part for key in shard] == [key for key in keys if key in wanted]
    assert all(1 <= len(shard) <= most for shard in whole)
    of = {key: n for n, shard in enumerate(whole) for key in shard}
    assert all(len({of[key] for key in shard}) == 1 for shard in part)


def test_a_small_corpus_still_makes_many_shards() -> None:
    assert len(cut([str(n) for n in range(32)], 32, {str(n) for n in range(32)})) == LEAST_SHARDS
    assert shard_size(10_000, 32) == 32
