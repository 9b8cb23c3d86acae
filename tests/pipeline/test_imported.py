"""Imported features: a stage that is there or not, found again in the store, and that nobody runs."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.contents import Contents, RememberedDigests
from pipeline.corpus import Caption, Corpus, Item
from pipeline.errors import UserError
from pipeline.execute import Runner, RunOptions
from pipeline.fingerprint import Fingerprint
from pipeline.imported import Imported, ImportedParams, has_imports, imported_stages
from pipeline.plan import components, survey
from pipeline.store import Store


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def stage(of: str = "items") -> Imported:
    return Imported(f"import-{of}", ImportedParams(layout="ms-sl", source="d", of=of, dims=3))  # type: ignore[arg-type]


def bring(store: Store, stage: Imported, *keys: str) -> None:
    fp = Fingerprint.of(components(stage, {}, RememberedDigests(store.index)))
    with store.writer(stage.name, fp, stage.fields) as writer:
        for key in keys:
            writer.append(key, key, {"row": np.ones((2, 3))})
        items, path = dict(writer.items), writer.finish()
    assert path is not None
    store.index.add_fingerprint(fp.hex, stage.name, fp.components)
    store.index.add_segment(path.stem, fp.hex, path.stat().st_size, items)


def contents(tmp_path) -> Contents:
    item = Item("a", "train", (Caption("c", "x", digest="caption"),), digest="video")
    return Contents(Corpus(tmp_path / "corpus.jsonl", (item,)), {"a": "video"})


def test_what_was_imported_is_found_again_as_the_same_stage(store):
    assert not has_imports(store.root) and imported_stages(store.index) == {}
    for of, key in (("items", "video"), ("captions", "caption")):
        bring(store, stage(of), key)
    found = imported_stages(store.index)
    assert has_imports(store.root) and set(found) == {"import-items", "import-captions"}
    assert [(found[name].over, found[name].params) for name in sorted(found)] == [
        ("captions", stage("captions").params), ("items", stage().params),
    ]  # fmt: skip


def test_imported_features_are_done_and_nothing_runs(store, tmp_path):
    stages = {s.name: s for s in (stage(), stage("captions"))}
    for one, key in zip(stages.values(), ("video", "caption"), strict=True):
        bring(store, one, key)
    states = survey(stages, contents(tmp_path), store, RememberedDigests(store.index))
    assert all(state.complete and state.done == 1 for state in states.values())


def test_features_that_are_not_there_are_one_sentence(store, tmp_path):
    one = stage()
    bring(store, one, "another video")
    runner = Runner({one.name: one}, contents(tmp_path), store, RememberedDigests(store.index), RunOptions())
    with pytest.raises(
        UserError, match=r"the imported features import-items lack 1 of the 1 items of .*corpus.jsonl"
    ):
        runner.bring_up_to_date(one.name)
