"""A run beside the published experiment of its corpus: what is published is no difference, and none is left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import graph
from flows.experiment import Experiment
from flows.repetition import Repetition, compare
from pipeline.corpus.importers.activitynet import ACTIVITYNET
from pipeline.corpus.importers.msrvtt import MSRVTT
from pipeline.corpus.importers.msvd import MSVD
from pipeline.corpus.importers.published import (
    UNITS,
    VALIDATED_ON_TEST,
    Choice,
    Published,
    read_published,
)
from pipeline.corpus.manifest import Caption, Corpus, Item, write_manifest
from trainers.measure.evaluated import Protocol, Spread
from trainers.recipes import recipes

Imported = Callable[..., Corpus]
UNPUBLISHED = Protocol(
    split="test", split_digest="", items=2, captions=2, captions_per_item=Spread(min=1, mean=1, max=1),
    directions={}, ties="", v2t_rank="", post_processing="", intervals="",
)  # fmt: skip


@pytest.fixture
def imported(tmp_path: Path) -> Imported:
    def made(layout: Published, val: str = "", captions: str = "", tests: int = 2) -> Corpus:
        source = tmp_path / "annotations"
        source.mkdir()
        _annotate(source, layout, tests)
        choice = Choice(no_media=True, val=val, captions=captions, protocol="val_1" if captions else "")
        found = read_published(layout, source, tmp_path, choice)
        write_manifest(tmp_path / "corpus.jsonl", found.items, found.protocol)
        return Corpus.read(tmp_path / "corpus.jsonl")

    return made


def _annotate(source: Path, layout: Published, tests: int) -> None:
    if layout is MSVD:
        sizes = {"train": 2, "val": 2, "test": tests}
        for split, count in sizes.items():
            (source / f"{split}_list.txt").write_text("".join(f"{split}{n}\n" for n in range(count)))
        captions = {f"{s}{n}": [["a", s, str(n)]] for s, count in sizes.items() for n in range(count)}
        (source / "raw-captions.json").write_text(json.dumps(captions))
    elif layout is MSRVTT:
        (source / "MSRVTT_train.9k.csv").write_text("video_id\n" + "".join(f"v{n}\n" for n in range(20)))
        rows = "".join(f"ret{n},msr{n},v{n},a {n}\n" for n in (20, 21))
        (source / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\n" + rows)
        said = [{"video_id": f"v{n}", "caption": f"it is {n}"} for n in range(22)]
        (source / "MSRVTT_data.json").write_text(json.dumps({"videos": [], "sentences": said}))
    else:
        for name, count in (("train", 20), ("val_1", tests)):
            videos = {
                f"v_{name}{n}": {"duration": 9.0, "timestamps": [[0, 1]], "sentences": [f"{name} {n}."]}
                for n in range(count)
            }
            (source / f"{name}.json").write_text(json.dumps(videos))


def beside(
    corpus: Corpus, method: str, extractors: Any = None, measured: Protocol | None = None, **settings: Any
) -> Repetition:
    """A method with its settings, filled as a run fills them."""
    experiment = Experiment(
        corpus="corpus.jsonl", methods=[method], trainers={method: settings}, extractors=extractors or {}
    )
    protocol = corpus.claimed_protocol()
    stages = graph.build(experiment, {}, graph.choices(experiment, protocol))
    return compare(method, stages, corpus, protocol, measured)


def changed(found: Repetition) -> set[str]:
    return {difference.setting for difference in found.settings}


def test_msrvtt_settings_on_activitynet_are_told_and_its_own_are_no_difference(imported: Imported) -> None:
    corpus = imported(ACTIVITYNET, captions="paragraph")
    own = beside(corpus, "gare")
    assert own.row is not None and own.row.name == "activitynet" and not own.settings
    foreign = beside(corpus, "gare", recipe="msrvtt")
    assert foreign.row == own.row
    assert "its settings are those of the recipe msrvtt" in foreign.reasons
    assert {"epochs", "max_words", "max_frames"} <= changed(foreign) and not foreign.exact
    (words,) = [d for d in foreign.settings if d.setting == "max_words"]
    assert (words.here, words.published, str(words)) == (32, 64, "max_words is 32 (published: 64)")


def test_hlformer_of_another_corpus_differs_and_so_do_features_of_ours(imported: Imported) -> None:
    corpus = imported(ACTIVITYNET, captions="moments", val="papers")
    own, foreign = beside(corpus, "hlformer"), beside(corpus, "hlformer", preset="tvr")
    assert not own.settings
    assert changed(foreign) == {
        "clip_nce_weight", "diversity_weight", "margin", "mu", "tau", "input_dropout", "dropout", "lr",
    }  # fmt: skip
    assert any("clip and clip_text instead of what the authors read: I3D" in reason for reason in own.reasons)


@pytest.mark.parametrize("method", ["gare", "neighborretr", "clip4clip"])
def test_what_the_authors_do_is_no_difference_and_what_we_recommend_is(
    method: str, imported: Imported
) -> None:
    corpus = imported(MSRVTT)
    released, stable = beside(corpus, method), beside(corpus, method, trajectory="stable")
    assert not released.settings
    assert {"precision", "coef_lr"} <= changed(stable)
    assert any("trajectory stable" in reason for reason in stable.reasons)
    assert not any("trajectory" in reason for reason in released.reasons)
    (precision,) = [d for d in stable.settings if d.setting == "precision"]
    assert (precision.here, precision.published) == ("fp32", "fp16-legacy")


def test_videos_held_out_another_selection_and_sizes_are_reasons(imported: Imported) -> None:
    reasons = beside(imported(MSRVTT), "gare").reasons
    assert "validated on 2 training videos held out by a digest of their ids" in reasons
    assert "the epoch is chosen on the split val; the authors chose it on the test split" in reasons
    assert "18 items of train; published: 9,000" in reasons
    assert "2 items of test; published: 1,000" in reasons


def test_validation_on_the_test_split_is_the_published_selection(imported: Imported) -> None:
    reasons = beside(imported(MSRVTT, val="papers"), "gare").reasons
    assert not any("held out" in reason or "chosen on" in reason for reason in reasons)
    assert "20 items of train; published: 9,000" in reasons


def test_frozen_towers_random_weights_and_another_network_are_told(imported: Imported) -> None:
    corpus = imported(MSRVTT)
    frozen = beside(corpus, "gare", {"clip": {"model": "crossreel-demo", "weights": "seed:0"}}, mode="frozen")
    assert 'CLIP is frozen (published: "finetune")' in frozen.every_reason
    assert "random weights of clip (seed:0)" in frozen.reasons
    other = beside(corpus, "gare", base_encoder="ViT-B/16", backbone_weights="laion2b")
    assert 'base_encoder is "ViT-B/16" (published: "ViT-B/32")' in other.every_reason
    assert 'clip has weights = "laion2b" (published: "openai")' in other.reasons
    same = beside(
        corpus, "gare", base_encoder="ViT-B-32-quickgelu"
    )  # open_clip's name of the published network
    assert not same.settings


def test_a_run_without_any_reason_is_a_repetition_and_one_change_ends_that(imported: Imported) -> None:
    corpus = imported(MSVD, tests=670)
    found = beside(corpus, "clip4clip", epochs=0, mode="frozen")
    assert found.exact and found.row is not None and found.row.name == "msvd-zero-shot"
    assert "is a repetition of the published experiment clip4clip/msvd-zero-shot" in found.verdict
    cut = beside(corpus, "clip4clip", epochs=0, mode="frozen", max_frames=12)
    assert not cut.exact and changed(cut) == {"max_frames"}


def test_stages_set_to_other_than_the_published_run_needs_are_told(imported: Imported) -> None:
    corpus = imported(MSRVTT)
    stages = {"frames": {"select": "head"}, "compress": {"fps": 1}}
    found = beside(corpus, "gare", stages)
    assert [str(difference) for difference in found.settings] == [
        "compress.fps is 1.0 (usual: 3.0)",
        'frames.select is "head" (published: "uniform")',
    ]
    assert not beside(corpus, "neighborretr", {"frames": {"select": "head"}}).settings
    assert changed(beside(corpus, "neighborretr", frame_select="uniform")) == {"frame_select"}
    assert not changed(beside(corpus, "gare", {"frames": {"count": 12}}))


def test_sizes_that_no_source_states_make_no_run_a_repetition(imported: Imported) -> None:
    found = beside(imported(MSVD, tests=670), "clip4clip", recipe="msvd", backbone_weights="openai")
    assert "published: 1,200" in " ".join(found.reasons) and "states no number" not in " ".join(found.reasons)
    (row,) = [row for row in recipes("clip4clip") if row.name == "didemo"]
    corpus = Corpus(Path("c.jsonl"), tuple(Item(s, s, (Caption(s, s),), digest=s) for s in ("train", "test")))
    protocol = {
        "name": "DiDeMo lists",
        "sentence": f"DiDeMo lists; {UNITS['paragraph']}; {VALIDATED_ON_TEST}",
    }
    settings = Experiment(corpus="c.jsonl", methods=["clip4clip"])
    stages = graph.build(settings, {}, graph.choices(settings, protocol))
    found = compare("clip4clip", stages, corpus, protocol)
    assert found.row == row and not found.exact
    assert found.every_reason == (
        "1 item of train; its source states no number", "1 item of test; its source states no number",
    )  # fmt: skip


def test_what_nobody_published_is_compared_with_defaults_alone(imported: Imported) -> None:
    found = beside(imported(MSVD), "neighborretr", recipe="msvd", lr=1e-3)
    assert found.row is None and not found.exact and found.every_reason == ()
    assert found.verdict == "neighborretr: nobody published its settings for MSVD lists"
    assert "lr" in changed(found)


def test_a_corpus_of_ones_own_and_one_that_was_changed_have_no_published_experiment(
    imported: Imported,
) -> None:
    corpus = imported(MSRVTT)
    told = corpus.path.read_text()
    corpus.path.write_text(told.replace("it is 3", "it was 3"))
    edited = Corpus.read(corpus.path)
    assert (
        edited.claimed_protocol() and edited.protocol("train") is None
    )  # what was measured there is of no protocol
    assert beside(edited, "gare", measured=UNPUBLISHED).row is None
    lines = told.splitlines()
    corpus.path.write_text("\n".join(lines[1:]) + "\n")
    found = beside(Corpus.read(corpus.path), "gare")
    assert found.row is None and found.verdict == "gare: nobody published its settings for this corpus"
