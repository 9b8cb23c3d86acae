"""Order, ancestors and groups of stages; what enters a fingerprint and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.experiment import Experiment
from flows.graph import build
from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import Caption, Corpus, Item
from pipeline.errors import UserError
from pipeline.run import plan
from pipeline.store.store import Store


class Known:
    """Digests as the store keeps them; nothing here has weights in files."""

    def file(self, path: Path) -> str:
        return "digest"

    def located(self, name, find):
        return find()


def stages(**more):
    settings = {
        "extractors": {"clip": {"model": "crossreel-demo", "weights": "seed:0"}},
        "methods": ["hlformer"],
    }
    return build(Experiment(corpus="corpus.jsonl", **(settings | more)), {})


def contents(items: int = 4, split_of=("train", "val", "test", "train")) -> Contents:
    rows = tuple(
        Item(f"v{n}", split_of[n % 4], (Caption(f"v{n}#0", f"caption {n}"),), f"v{n}.mp4")
        for n in range(items)
    )
    return Contents(Corpus(Path("corpus.jsonl"), rows), {f"v{n}": f"{n:032x}" for n in range(items)})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def prints(store, chosen=None, corpus=None) -> dict[str, str]:
    states = plan.survey(chosen or stages(), corpus or contents(), store, Known())
    return {name: state.fingerprint.hex for name, state in states.items()}


def test_each_stage_comes_after_what_it_needs_however_they_are_given():
    given = stages()
    for chosen in (given, dict(reversed(given.items()))):
        order = plan.order(chosen)
        assert sorted(order) == sorted(given)
        for name in order:
            assert all(order.index(need) < order.index(name) for need in given[name].needs)


def test_ancestors_and_descendants_are_each_others_reverse():
    given = stages()
    for name in given:
        for other in given:
            assert (other in plan.ancestors(given, [name])) == (name in plan.descendants(given, [other]))


def test_a_need_that_does_not_exist_and_a_cycle_are_refused():
    given = stages()
    with pytest.raises(ValueError, match="no stage compress"):
        plan.order({"clip": given["clip"]})
    given["compress"].needs = ("clip",)
    with pytest.raises(ValueError, match="needs itself"):
        plan.order(given)


def test_a_word_names_a_stage_or_a_group():
    given = stages()
    assert plan.choose(given, "clip") == ["clip"]
    assert plan.choose(given, "pack") == ["pack-hlformer", "pack-hlformer-test"]
    with pytest.raises(UserError, match="did you mean 'evaluate'"):
        plan.choose(given, "evalute")


def test_only_what_reads_a_changed_stage_changes_its_fingerprint(store):
    before = prints(store)
    given = stages(extractors={"clip": {"model": "crossreel-demo", "weights": "seed:1"}})
    changed = {name for name, fp in prints(store, given).items() if fp != before[name]}
    assert changed == plan.descendants(stages(), ["clip", "clip_text"])


@pytest.mark.parametrize(
    ("split", "same"),
    [
        ("test", {"pack-hlformer", "train-hlformer"}),
        ("train", {"pack-hlformer-test"}),
        ("val", {"pack-hlformer-test"}),
    ],
)
def test_a_changed_caption_concerns_the_stages_that_read_its_split(store, split, same):
    before = prints(store)
    corpus = contents()
    items = tuple(
        Item(i.id, i.split, (Caption(i.captions[0].id, i.captions[0].text + "!"),), i.media)
        if i.split == split
        else i
        for i in corpus.corpus.items
    )
    after = prints(store, corpus=Contents(Corpus(corpus.corpus.path, items), corpus.digests))
    kept = {name for name in before if before[name] == after[name]}
    assert kept == same | {"compress", "clip", "clip_text"}


def test_names_of_items_and_captions_do_not_count(store):
    corpus = contents()
    items = tuple(
        Item(f"other {i.id}", i.split, (Caption(f"q{i.id}", i.captions[0].text),), f"moved/{i.media}")
        for i in corpus.corpus.items
    )
    renamed = Contents(
        Corpus(Path("elsewhere.jsonl"), items), {f"other {k}": v for k, v in corpus.digests.items()}
    )
    assert prints(store, corpus=renamed) == prints(store)


CLOUDS = {
    "methods": ["h2arn"],
    "extractors": {
        "clip_text": {"model": "crossreel-demo", "weights": "seed:0"},
        "dgcnn": {"weights": "seed:0"},
    },
}


def clouds(first: int = 4) -> Contents:
    rows = tuple(
        Item(
            f"c{n}",
            split,
            (Caption(f"c{n}#0", f"cloud {n}", also=(f"c{(n + 4) % 8}",)),),
            f"c{n}.ply",
            "pointcloud",
        )
        for n, split in enumerate(("train", "val", "test", "train") * 2)
    )
    return Contents(Corpus(Path("corpus.jsonl"), rows), {f"c{n}": f"{first + n:032x}" for n in range(8)})


def together(*parts: Contents) -> Contents:
    items = tuple(item for some in zip(*(part.corpus.items for part in parts), strict=False) for item in some)
    items += tuple(item for part in parts for item in part.corpus.items if item not in items)
    digests = {name: digest for part in parts for name, digest in part.digests.items()}
    return Contents(Corpus(Path("corpus.jsonl"), items), digests)


def test_a_method_has_the_same_fingerprints_beside_items_of_another_kind(store):
    """Both methods are in one experiment, whose stages are one table, as their text stages are the same ones."""
    chosen = stages(methods=["hlformer", "h2arn"], extractors=CLOUDS["extractors"] | {
        "clip": {"model": "crossreel-demo", "weights": "seed:0"}
    })  # fmt: skip
    mixed = prints(store, chosen, together(contents(), clouds()))
    for kind, alone in (("hlformer", contents()), ("h2arn", clouds())):
        named = {name: fp for name, fp in prints(store, chosen, alone).items() if name.endswith(kind)}
        assert named == {name: mixed[name] for name in named} and len(named) == 3


def test_a_stage_takes_the_items_of_its_kind_and_a_stage_of_captions_takes_all(store):
    chosen = stages(methods=["hlformer", "lean", "h2arn"], extractors=CLOUDS["extractors"])
    states = plan.survey(chosen, together(contents(), clouds()), store, Known())
    sizes = {name: len(state.keys) for name, state in states.items() if state.stage.over != "corpus"}
    videos, points, texts = ("compress", "clip", "vgg16"), ("points", "dgcnn"), ("clip_text", "bert")
    assert [sizes[name] for name in videos] == [4] * 3
    assert [sizes[name] for name in points] == [8] * 2
    assert [sizes[name] for name in texts] == [12] * 2


def test_an_item_that_failed_changes_what_is_learnt_and_nothing_else(store):
    before = prints(store)
    states = plan.survey(stages(), contents(), store, Known())
    store.index.add_failure(states["compress"].fingerprint.hex, f"{0:032x}", "v0", "broken")
    after = prints(store)
    changed = {name for name in before if before[name] != after[name]}
    assert changed >= {"pack-hlformer", "train-hlformer"}
    assert not changed & {"compress", "clip", "clip_text"}
    states = plan.survey(stages(), contents(), store, Known())
    assert list(states["compress"].failed) == [f"{0:032x}"] and states["clip"].blocked == {f"{0:032x}"}
    assert states["clip"].missing == [f"{n:032x}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("item", "kept"),
    [(2, {"pack-hlformer", "train-hlformer"}), (0, {"pack-hlformer-test"})],
    ids=["of test", "of train"],
)
def test_an_item_that_failed_concerns_only_what_reads_its_split(store, item, kept):
    """A broken video of the test split is no reason to train again, nor is its mending."""
    before = prints(store)
    compress = plan.survey(stages(), contents(), store, Known())["compress"].fingerprint.hex
    store.index.add_failure(compress, f"{item:032x}", f"v{item}", "broken")
    after = prints(store)
    same = {name for name in before if before[name] == after[name]}
    assert same == kept | {"compress", "clip", "clip_text"}


def test_a_stage_over_the_corpus_that_was_made_is_done_whatever_became_of_its_inputs(store):
    """A run makes the inputs again, and then finds it done; unless an input fails, which changes its fingerprint."""
    states = plan.survey(stages(), contents(), store, Known())
    fp = states["pack-hlformer"].fingerprint.hex
    store.work_folder("pack-hlformer", fp).mkdir(parents=True)
    store.publish("pack-hlformer", states["pack-hlformer"].fingerprint, 1.0, {})
    states = plan.survey(stages(), contents(), store, Known())
    assert states["clip"].missing and states["pack-hlformer"].complete
    assert not states["train-hlformer"].complete
    store.index.add_failure(states["clip"].fingerprint.hex, f"{1:032x}", "v1", "broken")
    assert not plan.survey(stages(), contents(), store, Known())["pack-hlformer"].complete


def test_a_pack_that_is_gone_is_missing_only_while_something_is_to_read_it(store):
    chosen = stages()

    def missing(*demanded: str) -> set[str]:
        survey = plan.Survey(chosen, contents(), store, Known())
        survey.demand(demanded)
        return {name for name, state in survey.items() if state.missing}

    def make(name: str) -> None:
        fingerprint = plan.Survey(chosen, contents(), store, Known())[name].fingerprint
        store.work_folder(name, fingerprint.hex).mkdir(parents=True)
        store.publish(name, fingerprint, 1.0, {})

    packs = {"pack-hlformer", "pack-hlformer-test"}
    assert packs <= missing()
    make("train-hlformer")
    assert missing() & packs == {"pack-hlformer-test"}, "the evaluation is to read that of its split"
    make("evaluate-hlformer")
    assert not missing() & packs
    assert missing("pack-hlformer", "clip") & packs == {"pack-hlformer"}
    assert plan.ends(chosen, list(chosen)) == {"report"}
    assert plan.ends(chosen, ["clip", "pack-hlformer"]) == {"pack-hlformer"}
