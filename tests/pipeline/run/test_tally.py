"""Progress of a pass that several stages share."""

from __future__ import annotations

from pipeline.run.execute import Progress, _Tally


def test_a_bar_counts_items_and_not_items_times_stages():
    seen: list[Progress] = []
    tally = _Tally("clip", {"clip": ["a", "b"], "frames": ["a"]}, seen.append)
    for key, stage in (("a", "clip"), ("a", "clip"), ("b", "clip"), ("a", "frames"), ("b", "clip")):
        tally.add(key, stage)
    assert [(p.done, p.total) for p in seen] == [(0, 2), (1, 2), (2, 2)]
