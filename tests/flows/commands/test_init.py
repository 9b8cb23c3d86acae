"""`crossreel init`: every published experiment is written, imported and planned, and nothing is replaced unasked."""

from __future__ import annotations

import json
import pickle
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.drafting.explanations import explanations
from flows.drafting.published import (
    COLLECTIONS,
    every_example,
    experiment_name,
    find_row,
    manifest_name,
    usual_val,
)
from flows.experiment import load
from flows.graph import EVERY_EXTRACTOR
from pipeline.corpus.manifest import Caption, Corpus, Item, write_manifest
from trainers.recipes import every_recipe
from trainers.registry import METHODS

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "published"
TINY = ROOT / "tests/fixtures/hlformer/mssl_tiny/tiny"
PUBLISHED = [row for row in every_recipe() if row.published]
NAMES = [f"{row.method}/{row.name}" for row in PUBLISHED]
TRAIN, TEST = 260, 4  # enough for the largest published batch
SEEDED = [  # networks without weights on the disk
    "extractors.clip.weights=seed:0", "extractors.clip_text.weights=seed:0", "extractors.vgg16.weights=seed:0",
    "extractors.bert.model=crossreel-demo", "extractors.bert.weights=seed:0",
    "extractors.triples.package=crossreel-small", "extractors.dgcnn.weights=seed:0",
]  # fmt: skip


def ids(split: str) -> list[str]:
    return [f"{split}{n}" for n in range(TRAIN if split == "train" else TEST)]


def lines(*rows: Any) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"


def msrvtt() -> dict[str, Any]:
    every = [*ids("train"), *ids("val"), *ids("test")]
    return {
        "MSRVTT_train.9k.csv": lines("video_id", *ids("train")),
        "MSRVTT_JSFUSION_test.csv": lines("video_id,sentence", *(f"{v},about {v}" for v in ids("test"))),
        "MSRVTT_data.json": {
            "videos": [
                {"video_id": v, "split": s}
                for s, names in (("train", "train"), ("validate", "val"), ("test", "test"))
                for v in ids(names)
            ],
            "sentences": [{"video_id": v, "caption": f"{v} is seen"} for v in every],
        },
    }


def msvd() -> dict[str, Any]:
    every = [v for split in ("train", "val", "test") for v in ids(split)]
    files: dict[str, Any] = {f"{split}_list.txt": lines(*ids(split)) for split in ("train", "val", "test")}
    return files | {"raw-captions.pkl": pickle.dumps({v: [["a", v], ["seen", v]] for v in every})}


def lsmdc() -> dict[str, Any]:
    def rows(split: str) -> str:
        return lines(*(f"{v}\t00.1\t00.2\t00.1\t00.2\tSOMEONE {v}." for v in ids(split)))

    return {
        "LSMDC16_annos_training.csv": rows("train"), "LSMDC16_annos_val.csv": rows("val"),
        "LSMDC16_challenge_1000_publictect.csv": rows("test"),
    }  # fmt: skip


def activitynet() -> dict[str, Any]:
    def entries(split: str) -> dict[str, Any]:
        return {v: {"duration": 9.5, "timestamps": [[0, 2]], "sentences": [f"{v} runs."]} for v in ids(split)}

    return {"train.json": entries("train"), "val_1.json": entries("test")}


def didemo() -> dict[str, Any]:
    return {
        f"{split}_data.json": [{"video": f"{v}.mp4", "description": v, "times": [[0, 0]]} for v in ids(split)]
        for split in ("train", "val", "test")
    }


def t3dr_hit(subset: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for split in ("train", "test"):
        said = {"result": {f"Area_1_{v}": [f"{v} of clay"] for v in ids(split)}}
        points = "0.1 0.2 0.3 1 2 3\n" * 25
        if subset == "elephant":
            out[f"Elephant/Elephant_caption_{split}.json"] = said
            out |= {f"Elephant/pcd_normalize_{split}/{v}/model.txt": points for v in said["result"]}
        else:
            out[f"S3DIS/S3DIS_{split}_captions.json"] = said
            out |= {f"S3DIS/S3DIS_{split}_pcds/{v}.txt": points for v in said["result"]}
    return out


MADE: dict[str, Callable[[], dict[str, Any]]] = {
    "msrvtt": msrvtt, "msvd": msvd, "lsmdc": lsmdc, "activitynet": activitynet, "didemo": didemo,
    "elephant": lambda: t3dr_hit("elephant"), "s3dis": lambda: t3dr_hit("s3dis"),
}  # fmt: skip


def lay(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def collection(folder: Path, dataset: str) -> Path:
    """The tiny collection under the names of a published one."""
    videos, captions = COLLECTIONS[dataset]
    target = folder / dataset
    shutil.copytree(TINY, target)
    (target / "FeatureData" / "i3d_toy").rename(target / "FeatureData" / videos)
    for path in (target / "TextData").iterdir():
        name = f"{captions}.hdf5" if path.suffix == ".hdf5" else path.name.replace("tiny", dataset)
        path.rename(path.with_name(name))
    return target


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A made corpus of a published layout, with a file for each video; `published(layout)` is its folder."""
    made: dict[str, Path] = {}

    def make(layout: str) -> Path:
        if layout in COLLECTIONS and layout not in MADE:
            made[layout] = collection(tmp_path_factory.mktemp(layout), layout)
        if layout not in made:
            made[layout] = lay(tmp_path_factory.mktemp(layout), MADE[layout]())
            for video in (v for split in ("train", "val", "test") for v in ids(split)):
                (made[layout] / f"{video}.mp4").write_text(video)
        return made[layout]

    return make


def test_the_examples_are_what_init_writes() -> None:
    """After a change of a recipe, of a setting's comment or of the writing: python .ci/examples.py."""
    assert {path.name: path.read_text() for path in EXAMPLES.glob("*.toml")} == dict(every_example())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_published_experiment_is_written_imported_and_planned(
    name: str, published: Any, crossreel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = find_row(name)
    layout = row.protocols[0] if row.dataset == "t3dr-hit" else row.dataset
    if row.imported:
        ended = crossreel("init", name, "--features", collection(tmp_path / "source", row.dataset))
    else:
        ended = crossreel("init", name, "--annotations", published(layout))
    assert ended.code == 0, ended.out + ended.err
    file = Path(experiment_name(row))
    assert file.read_text() == (EXAMPLES / file.name).read_text()
    sets = [
        *SEEDED,
        *(f"trainers.{m}.backbone_weights=seed:0" for m in ("gare", "neighborretr", "clip4clip")),
    ]
    methods = tomllib.loads(file.read_text())["methods"]
    own = [s for s in sets if not s.startswith("trainers.") or s.split(".")[1] in methods]
    if row.imported:
        own += [f"trainers.{row.method}.batch_size=2"]  # the tiny collection has no whole batch
    ended = crossreel("plan", file, *(word for s in own for word in ("--set", s)))
    assert ended.code == 0, ended.out + ended.err
    assert f"evaluate-{row.method}" in ended.out
    if not row.imported and row.trained:
        corpus = Corpus.read(load(file).corpus_path)
        test, val = ([c.text for _, c in corpus.captions(split)] for split in ("test", "val"))
        assert (test == val) == (row.selection.split == "test"), (
            "the epoch is chosen where its authors chose it"
        )
        assert sum(1 for _ in corpus.captions("train")) >= TRAIN, "no training video is held out"


def test_every_line_of_an_example_says_what_it_is() -> None:
    for row in every_recipe():
        known = set(explanations(METHODS.find(row.method).config))
        assert {*row.filled("release"), *row.filled("stable")} <= known, f"{row.method}/{row.name}"
        for stage, settings in {**row.networks, **row.extractors}.items():
            assert settings.keys() <= set(explanations(EVERY_EXTRACTOR.find(stage).settings)), stage
    for name, text in every_example():
        for line in text.splitlines():
            assert not line or line.startswith(("#", "[")) or " # " in line, f"{name}: {line}"


def test_list_has_every_row_and_marks_estimates_and_what_nobody_published(crossreel: Any) -> None:
    shown = crossreel("init", "--list", "--json")
    assert shown.code == 0, shown.err
    found = {entry["name"]: entry for entry in json.loads(shown.out)}
    assert list(found) == [f"{row.method}/{row.name}" for row in every_recipe()]
    gare = found["gare/msrvtt"]
    assert gare["published"] and gare["sizes"]["train"] == {"items": 9000, "captions": 180_000}
    pictures = 12 * 224 * 224 * 3 * 10_000  # stored, and packed for training
    assert gare["estimated"]["bytes"] == pytest.approx(28e3 * 41 * 3600 + 2 * pictures)
    assert not found["neighborretr/msvd"]["published"] and found["neighborretr/msvd"]["source"] == ""
    assert found["hlformer/tvr"]["estimated"]["bytes"] is None, "published features: nothing is extracted"
    table = crossreel("init", "--list")
    assert (
        table.code == 0
        and "~41 h of video, ~59 min" in table.out
        and "gare/msrvtt: MSR-VTT 1k-A" in table.out
    )


def test_nothing_is_replaced_without_force(
    published: Any, crossreel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("init", "clip4clip/msvd-zero-shot", "--annotations", published("msvd"))
    file, manifest = tmp_path / "clip4clip-msvd-zero-shot.toml", tmp_path / "msvd-lists-papers.jsonl"
    file.write_text("mine")
    ended = crossreel(*words)
    assert ended.code == 2 and "clip4clip-msvd-zero-shot.toml is there already; --force" in ended.err
    assert not manifest.exists() and file.read_text() == "mine"
    assert crossreel(*words, "--force").code == 0 and file.read_text() != "mine"
    file.unlink()
    ended = crossreel(*words)
    assert ended.code == 2 and "--corpus msvd-lists-papers.jsonl" in ended.err and not file.exists()
    before = manifest.read_bytes()
    ended = crossreel("init", "gare/msvd", "--corpus", manifest.name)
    assert ended.code == 0 and manifest.read_bytes() == before, ended.err
    assert "the epoch is chosen on the test split" in (tmp_path / "gare-msvd.toml").read_text()
    ended = crossreel("init", "gare/msrvtt", "--corpus", manifest.name)
    assert (
        ended.code == 2
        and "gare/msrvtt is of MSR-VTT 1k-A, and msvd-lists-papers.jsonl is MSVD lists" in ended.err
    )


def test_held_out_videos_and_the_stable_trajectory_are_told_in_the_file(
    published: Any, crossreel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = find_row("gare/msrvtt")
    ended = crossreel(
        "init",
        "gare/msrvtt",
        "--annotations",
        published("msrvtt"),
        "--val",
        "9",
        "--trajectory",
        "stable",
        "-o",
        "x.toml",
    )
    assert ended.code == 0, ended.err
    text = (tmp_path / "x.toml").read_text()
    assert manifest_name(row, "9") == "msrvtt-1k-A-val9.jsonl" in text
    assert "held out, not on the test split as its authors did" in text and usual_val(row) == "papers"
    assert "#   crossreel run x.toml" in text
    assert 'trajectory = "stable"' in text and '# precision = "fp32"' in text and "# coef_lr = 0.01" in text
    assert len(Corpus.read(tmp_path / "msrvtt-1k-A-val9.jsonl").gallery("val")) == 9


def test_ones_own_corpus_gets_settings_that_fit_it_and_are_planned(
    crossreel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    items = []
    for n, split in enumerate(["train"] * 30 + ["val"] * 3 + ["test"] * 3):
        (tmp_path / f"{n}.mp4").write_text(str(n))
        items.append(
            Item(
                f"v{n}", split, (Caption(f"c{n}", f"caption {n}"), Caption(f"d{n}", f"said {n}")), f"{n}.mp4"
            )
        )
    write_manifest(tmp_path / "corpus.jsonl", items)
    trained = [*items[:8], *items[30:]]
    write_manifest(tmp_path / "few.jsonl", trained)
    assert crossreel("init", "--corpus", "few.jsonl", "--methods", "neighborretr", "-o", "few.toml").code == 0
    few = tomllib.loads((tmp_path / "few.toml").read_text())["trainers"]["neighborretr"]
    assert (few["batch_size"], few["num_neighbors"]) == (16, 13), "as many as a batch leaves"
    seeded = ("--set", "trainers.neighborretr.backbone_weights=seed:0")
    assert crossreel("plan", "few.toml", *seeded).code == 0
    ended = crossreel("init", "--corpus", "corpus.jsonl", "--methods", "clip4clip,gare,hlformer")
    assert ended.code == 0, ended.err
    file = tmp_path / "corpus-clip4clip-gare-hlformer.toml"
    tree = tomllib.loads(file.read_text())
    assert tree["methods"] == ["clip4clip", "gare", "hlformer"]
    assert {name: table["recipe"] for name, table in tree["trainers"].items()} == dict.fromkeys(
        tree["methods"], "none"
    )
    gare = tree["trainers"]["gare"]
    assert (gare["batch_size"], gare["precision"], gare["coef_lr"]) == (60, "fp32", 0.01)
    assert tree["trainers"]["clip4clip"]["epochs"] == 0 and tree["trainers"]["hlformer"]["batch_size"] == 30
    sets = ["extractors.clip.weights=seed:0", "trainers.gare.backbone_weights=seed:0"]
    ended = crossreel("plan", file.name, *(word for s in sets for word in ("--set", s)))
    assert ended.code == 0, ended.out + ended.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "name a published experiment (METHOD/RECIPE; --list shows all), or --methods and --corpus"),
        (("gare/msrvt",), "there is no experiment 'gare/msrvt' (`crossreel init --list` shows all); did you mean"),
        (("gare/msrvtt",), "gare/msrvtt needs one of --annotations, --features, --corpus"),
        (("gare/msrvtt", "--methods", "gare"), "name a published experiment"),
        (("gare/msrvtt", "--annotations", "nowhere"), "nowhere is not a folder"),
        (("gare/msrvtt", "--features", "."), "--features is for experiments on published features (hlformer)"),
        (("gare/msrvtt", "--annotations", ".", "-o", "no/x.toml"), "no is not a folder; x.toml cannot be written"),
        (("gare/msrvtt", "--annotations", ".", "--trajectory", "new"), "unknown --trajectory 'new'"),
        (("--methods", "gare"), "--methods needs --corpus"),
        (("--methods", "gare", "--corpus", "c.jsonl"), "no corpus manifest c.jsonl"),
        (("--methods", "h2arn", "--corpus", "videos.jsonl"), "--methods h2arn: it ranks items of kind pointcloud"),
        (("--methods", "gare", "--corpus", "trained.jsonl"), "the split 'val' has no captions"),
        (("--methods", "gare", "--corpus", "videos.jsonl", "--val", "3"), "--val is for a published experiment"),
        (("gare/msrvtt", "--json"), "gare/msrvtt needs one of --annotations, --features, --corpus"),
        (("gare/msrvtt", "--corpus", "videos.jsonl", "--val", "3"), "--val is for --annotations, whose corpus"),
        (("gare/msrvtt", "--corpus", "videos.jsonl"), "and videos.jsonl is of no published protocol"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_one_sentence(
    words: tuple[str, ...], sentence: str, crossreel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    every = [Item(s, s, (Caption(f"{s}#0", s),), digest=s) for s in ("train", "val", "test")]
    write_manifest(tmp_path / "videos.jsonl", every)
    write_manifest(tmp_path / "trained.jsonl", every[:1])
    ended = crossreel("init", *words)
    assert ended.code == 2 and sentence in ended.err, ended.err
    assert not list(tmp_path.glob("*.toml"))
