"""What the stages of a method are told, and what makes them run again, where captions describe several items."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.experiment import Experiment
from flows.graph import build
from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import Caption, Corpus, Item, Protocol, write_manifest
from pipeline.run import plan
from pipeline.run.briefing import RunBriefing
from pipeline.store.index import Failure
from pipeline.store.places import Places, TablePlaces, Units, place_table
from pipeline.store.store import Store
from trainers import workers as run
from trainers.data import SplitIndex, split_columns, write_splits
from trainers.gare.config import GareConfig

SPLITS = ("train", "train", "train", "val", "val", "test", "test", "test")
FORMER = {"train": "9defa7acba36fab5f465ffb11c524bfb", "val": "78192d2d49cdd3754bc9a4c88da4ea01"}


class Known:
    """Digests as the store keeps them; nothing here has weights in files."""

    def file(self, path: Path) -> str:
        return "digest"

    def located(self, name: str, find: Callable[[], Path | None]) -> Path | None:
        return find()


def contents(also: Mapping[str, tuple[str, ...]] = {}, splits: tuple[str, ...] = SPLITS) -> Contents:
    """Items v0, v1 ... with a caption each, which also describe the items named by their own item's id."""
    items = tuple(
        Item(f"v{n}", split, (Caption(f"v{n}#0", f"caption {n}", also=also.get(f"v{n}", ())),), f"v{n}.mp4")
        for n, split in enumerate(splits)
    )
    return Contents(Corpus(Path("corpus.jsonl"), items), {f"v{n}": f"{n:032x}" for n in range(len(splits))})


@pytest.fixture
def survey(tmp_path: Path) -> Callable[[Contents], dict[str, plan.State]]:
    """The states of all stages of a small experiment over a corpus."""
    settings = {"extractors": {"clip": {"model": "crossreel-demo", "weights": "seed:0"}}}
    stages = build(Experiment(corpus="corpus.jsonl", methods=["hlformer"], **settings), {})
    store = Store(tmp_path / "store")
    return lambda corpus: plan.survey(stages, corpus, store, Known())


@pytest.mark.parametrize(
    ("also", "changed"),
    [
        ({"v0": ("v1",)}, {"pack-hlformer", "train-hlformer", "evaluate-hlformer", "report"}),
        ({"v3": ("v4",)}, {"pack-hlformer", "train-hlformer", "evaluate-hlformer", "report"}),
        ({"v5": ("v6", "v7")}, {"pack-hlformer-test", "evaluate-hlformer", "report"}),
    ],
    ids=["train", "val", "test"],
)
def test_other_items_of_a_caption_concern_the_stages_that_read_its_split(
    survey: Any, also: dict[str, tuple[str, ...]], changed: set[str]
) -> None:
    before, after = survey(contents()), survey(contents(also))
    assert {n for n in before if before[n].fingerprint.hex != after[n].fingerprint.hex} == changed


def test_order_of_other_items_does_not_count_and_which_they_are_does(survey: Any) -> None:
    def packed(*others: str) -> str:
        return str(survey(contents({"v5": others}))["pack-hlformer-test"].fingerprint.hex)

    assert packed("v6", "v7") == packed("v7", "v6")
    assert len({packed(), packed("v6"), packed("v7"), packed("v6", "v7")}) == 4


def test_fingerprint_of_splits_without_other_items_is_what_it_always_was(survey: Any) -> None:
    state = survey(contents(splits=("train", "train", "train", "val", "val")))["pack-hlformer"]
    assert state.fingerprint.components["corpus"] == FORMER


def briefed(survey: Any, stage: str, corpus: Contents, failed: str = "") -> dict[str, Any]:
    """What a stage is told, after an item failed upstream."""
    states = survey(corpus)
    if failed:
        states["clip"] = replace(states["clip"], failed={failed: Failure(failed, "v6", "broken", 1)})
    empty = SimpleNamespace(places_of=lambda stage, fp, units: {})  # a store that keeps no computed rows
    return dict(states[stage].stage.brief(RunBriefing(corpus, empty, states, [], {})))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("select_by", "direction", "figure", "retrains"),
    [
        ("SumR", "t2v", "SumR", False),
        ("SumR", "v2t", "v2t SumR", True),
        ("R@1+5+10", "t2v", "R@1+5+10", True),
        ("RSUM", "t2v", "RSUM", True),
        ("RSUM", "v2t", "RSUM", True),
    ],
)
def test_the_figure_that_chooses_the_epoch_retrains_and_the_usual_one_keeps_earlier_trainings(
    select_by: str, direction: str, figure: str, retrains: bool
) -> None:
    usual, other = GareConfig(), GareConfig(select_by=select_by, select_direction=direction)
    assert other.figure == figure
    assert "select_by" not in usual.decisive()
    assert (other.decisive() != usual.decisive()) == retrains
    assert (
        GareConfig(select_by="RSUM").decisive()
        == GareConfig(select_by="RSUM", select_direction="v2t").decisive()
    ), "RSUM has no direction"


def test_packing_gets_the_readable_other_items_that_did_not_fail(survey: Any) -> None:
    corpus = contents({"v5": ("v6", "v7"), "v7": ("v5",)})
    names = {name: corpus.digests[name] for name in ("v5", "v6", "v7")}
    told = briefed(survey, "pack-hlformer-test", corpus, failed=names["v6"])["splits"]["test"]
    assert told["also"] == [[names["v7"]], [names["v5"]]]
    unread = Contents(corpus.corpus, {k: v for k, v in corpus.digests.items() if k != "v7"})
    told = briefed(survey, "pack-hlformer-test", unread)["splits"]["test"]
    assert told["also"] == [[names["v6"]], []]
    assert briefed(survey, "pack-hlformer-test", contents())["splits"]["test"]["also"] == []


def test_packing_a_split_is_told_the_places_of_its_own_units_alone(survey: Any, tmp_path: Path) -> None:
    corpus = contents()
    states, store = dict(survey(corpus)), Store(tmp_path / "store")
    for stage, keys in (("clip", corpus.items()), ("clip_text", corpus.captions())):
        units = Units(keys)
        rows = ((key, "segment", number, None) for number, key in enumerate(keys))
        states[stage] = replace(states[stage], places=Places.of(units, rows))
    told = states["pack-hlformer-test"].stage.brief(RunBriefing(corpus, store, states, [], {}))
    fp = states["clip"].fingerprint.hex
    path = str(store.segment_path("clip", fp, "segment"))
    tested = [corpus.digests[name] for name in ("v5", "v6", "v7")]
    assert TablePlaces(told["rows"]["clip"]) == {key: (path, 5 + n) for n, key in enumerate(tested)}
    assert list(TablePlaces(told["rows"]["clip_text"])) == told["splits"]["test"]["captions"]
    assert TablePlaces(told["keeping"]) == {}
    assert json.dumps(told).count(path) == 1


def test_evaluation_gets_the_kind_and_how_many_queries_there_were_and_the_published_protocol(
    survey: Any, tmp_path: Path
) -> None:
    corpus = contents({"v5": ("v6",)})
    assert briefed(survey, "evaluate-hlformer", corpus) == {"kind": "video", "queries": 3}
    clouds = [replace(item, kind="pointcloud") for item in corpus.corpus.items]
    write_manifest(tmp_path / "clouds.jsonl", clouds, Protocol("p", "says who"))
    of_clouds = Contents(Corpus.read(tmp_path / "clouds.jsonl"), corpus.digests)
    told = briefed(survey, "evaluate-hlformer", of_clouds)
    assert (told["kind"], told["corpus"]["queries"]) == ("pointcloud", 3)


def test_packed_folder_of_any_method_holds_the_other_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Packing:
        @staticmethod
        def pack(folder: Path, config: Any, splits: Any, read: Any) -> None:
            write_splits(folder, splits)

    monkeypatch.setattr("trainers.hlformer.data.pack", Packing.pack)
    inputs = tmp_path / "inputs.json"
    nowhere = place_table({}, [], str)
    rows = {stage: {"field": "x", **nowhere} for stage in ("clip", "clip_text")}
    keeping = {"stage": "packed-hlformer", "fingerprint": "0", "components": {}, **nowhere}
    splits = {"test": split_columns(["a", "b"], [("q", "x", "a", ["b"])])}
    inputs.write_text(json.dumps({"splits": splits, "rows": rows, "keeping": keeping}))
    request = {"method": "hlformer", "params": "{}", "inputs": str(inputs), "folder": str(tmp_path / "out")}
    run.pack(request, lambda header, arrays: None)
    assert SplitIndex.read(tmp_path / "out" / "splits" / "test.json").positives == [[0, 1]]
