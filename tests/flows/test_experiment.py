"""Experiment files: defaults, paths beside the file, settings over settings, and the stages that follow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows.experiment import load
from flows.graph import build
from flows.project import open_project
from pipeline.corpus.manifest import Caption, Item, write_manifest
from pipeline.errors import UserError
from pipeline.run.plan import order

WHOLE = ["compress", "clip", "clip_text", "pack-hlformer", "pack-hlformer-test", "train-hlformer",
         "evaluate-hlformer", "report"]  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "my experiment.toml"
        path.write_text('corpus = "corpus.jsonl"\n' + text)
        return path

    return write


@pytest.fixture
def corpus(tmp_path):
    """A manifest with a caption in each split; the media are not there."""
    items = [Item(s, s, (Caption(f"{s}#0", f"seen in {s}"),), f"{s}.mp4") for s in ("train", "val", "test")]
    write_manifest(tmp_path / "corpus.jsonl", items)


def test_paths_are_beside_the_file_wherever_it_is_opened_from(write, tmp_path, monkeypatch):
    path = write('store = "../elsewhere"\nextract = ["clip"]\n')
    monkeypatch.chdir(tmp_path.parent)
    found = load(Path(os.path.relpath(path)))
    assert found.corpus_path == tmp_path / "corpus.jsonl" and found.name == "my experiment"
    assert os.path.normpath(found.store_path) == str(tmp_path.parent / "elsewhere")
    absolute = load(path, [f"store={tmp_path}/s", "name=other"])
    assert absolute.store_path == tmp_path / "s" and absolute.name == "other"


@pytest.mark.parametrize("given", ['["hlformer", "hlformer"]', '"hlformer"', '"hlformer, hlformer"'])
def test_methods_are_a_list_or_words_and_each_is_trained_once(write, given):
    assert load(write(f"methods = {given}\n")).methods == ["hlformer"]


def test_methods_of_the_command_stand_instead_of_the_file_s(write):
    path = write('methods = ["hlformer"]\n')
    assert load(path, methods=["a,b", "c"]).methods == ["a", "b", "c"]
    assert load(path).methods == ["hlformer"]


def test_a_method_brings_the_stages_it_needs_and_no_more(write):
    assert list(build(load(write('methods = "hlformer"\n')), {})) == WHOLE
    assert order(build(load(write('methods = "hlformer"\n')), {})) == WHOLE
    assert list(build(load(write('extract = "clip"\n')), {})) == ["compress", "clip"]
    assert list(build(load(write('extract = "clip_text"\n')), {})) == ["clip_text"]


def test_an_evaluation_on_a_split_that_is_learnt_from_packs_nothing_more(write):
    stages = build(load(write('methods = "hlformer"\n[evaluate]\nsplit = "val"\n')), {})
    assert list(stages) == [name for name in WHOLE if name != "pack-hlformer-test"]


def test_the_text_side_takes_the_network_of_the_frames_unless_it_has_its_own(write):
    text = (
        'extract = ["clip", "clip_text"]\n[extractors.clip]\nmodel = "crossreel-demo"\nweights = "seed:3"\n'
    )
    stages = build(load(write(text)), {})
    assert stages["clip_text"].params.weights == "seed:3" and stages["clip_text"].params.max_tokens == 77
    stages = build(load(write(text + '[extractors.clip_text]\nweights = "seed:4"\n')), {})
    assert (
        stages["clip_text"].params.weights == "seed:4"
        and stages["clip_text"].params.model == "crossreel-demo"
    )
    assert stages["clip"].params.weights == "seed:3"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path = 3\n", "unknown setting path"),
        ('methods = "hlfromer"\n', "unknown name 'hlfromer' in methods; did you mean 'hlformer'"),
        ('extract = "clipp"\n', "unknown name 'clipp' in extract; did you mean 'clip'"),
        ('extract = "clip"\n[trainers.hlfromer]\n', "unknown name 'hlfromer' in trainers"),
        ('extract = "clip"\n[extractors.clipp]\n', "unknown name 'clipp' in extractors"),
        (
            'extract = "clip"\n[extractors.clip_text]\nmodle = 1\n',
            "unknown setting extractors.clip_text.modle",
        ),
        ('extract = "clip"\n[evaluate]\nspilt = 1\n', "unknown setting evaluate.spilt; did you mean 'split'"),
        (
            'methods = "hlformer"\n[trainers.hlformer]\nlr = nan\n',
            r"trainers.hlformer.lr = nan is not possible",
        ),
        (
            'methods = "hlformer"\n[trainers.hlformer]\nmu = inf\n',
            r"trainers.hlformer.mu = inf is not possible",
        ),
        ('methods = "hlformer"\n[trainers.hlformer]\nvideo_features = "clp"\n', "'clp'; did you mean 'clip'"),
        ('extract = "clip"\n[run]\nworkers = -1\n', "run.workers = -1 is not possible"),
        ('extract = "clip"\n[run]\nbatch_size = 0\n', "run.batch_size = 0 is not possible"),
        ('extract = "clip"\n[run]\ndevice = "tpu"\n', "run.device = 'tpu' is not possible"),
        ('extract = "clip"\nextractors = 3\n', "extractors = 3 is not possible"),
        ("", "neither methods nor extract names anything to do"),
    ],
)
def test_what_is_wrong_is_one_sentence(write, text, sentence):
    with pytest.raises(UserError, match=sentence):
        build(load(write(text)), {})


def test_all_that_is_wrong_is_told_at_once(write):
    text = """methods = ["hlformer", "gare"]
[trainers.hlformer]
lr = nan
mu = inf
[trainers.gare]
widht = 3
[extractors.clip]
modle = "a"
[evaluate]
spilt = 1
"""
    with pytest.raises(UserError) as caught:
        build(load(write(text)), {})
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 settings have to be changed:" and len(lines) == 6
    names = ["trainers.hlformer.lr", "trainers.hlformer.mu", "trainers.gare.widht", "extractors.clip.modle"]
    for line, name in zip(lines[1:], [*names, "evaluate.spilt"], strict=True):
        assert name in line


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            'methods = "hlformer"\n[evaluate]\nsplit = "tset"\n',
            "the split 'tset' has no captions.*train, val, test",
        ),
        ('methods = "hlformr"\n', "did you mean"),
    ],
)
def test_nothing_is_made_where_an_experiment_cannot_work(write, corpus, tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        open_project(write(text))
    assert not list((tmp_path / "store").rglob("*.h5"))


def test_features_alone_need_no_splits(write, tmp_path):
    write_manifest(tmp_path / "corpus.jsonl", [Item("a", "all", (), "a.mp4")])
    project = open_project(write('extract = ["compress"]\n'))
    assert project.contents.unreadable["a"].endswith("a.mp4 does not exist")


def test_an_item_without_media_cannot_be_compressed_and_what_to_set_is_said(write, tmp_path):
    write_manifest(tmp_path / "corpus.jsonl", [Item("a", "train", (Caption("c", "x"),), digest="d" * 32)])
    runner = open_project(write('extract = ["compress"]\n')).runner()
    with pytest.raises(
        UserError,
        match=r"a of .*corpus.jsonl has no media to make compress of; name the imported stage where trainers",
    ):
        runner.bring_up_to_date("compress")


def test_stages_that_read_another_kind_of_media_are_refused_before_anything_is_made(write, tmp_path):
    write_manifest(tmp_path / "corpus.jsonl", [Item("a", "train", (), "a.ply", kind="pointcloud")])
    with pytest.raises(UserError, match=r"compress reads items of the kind video, .* holds pointcloud"):
        open_project(write('extract = ["compress"]\n'))
    assert not (tmp_path / "store").exists()


def test_without_an_experiment_the_error_says_what_to_type_first(tmp_path, corpus):
    def said(folder: Path) -> str:
        with pytest.raises(UserError) as caught:
            load(folder / "experiment.toml")
        return str(caught.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    assert "`crossreel corpus import folder VIDEOS` comes first" in said(empty)
    assert f"`crossreel init --corpus {tmp_path}/corpus.jsonl` writes one" in said(tmp_path)
    (tmp_path / "mine.toml").write_text('corpus = "corpus.jsonl"\n')
    assert said(tmp_path) == f"no experiment file {tmp_path}/experiment.toml; there is mine.toml"
