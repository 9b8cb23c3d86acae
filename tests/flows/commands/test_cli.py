"""The command line as its users meet it: one sentence for a mistake, and the status a script can read."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from flows.project import open_project


def mistake(ended, *words: str) -> None:
    """The command ended with 2 and, after what it said of its progress, one sentence that holds the words."""
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err
    sentence = ended.err.strip().rpartition("\n")[2]
    assert sentence.startswith("crossreel: "), ended.err
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("corpus = ]", ("not valid TOML", "line 1")),
        ('corpus = "corpus.jsonl"\nextrat = ["clip"]', ("extrat", "did you mean 'extract'")),
        ('corpus = "corpus.jsonl"\nextract = ["clpi"]', ("clpi", "did you mean 'clip'")),
        ('corpus = "corpus.jsonl"\nmethods = ["hlfromer"]', ("did you mean 'hlformer'",)),
        (
            'corpus = "corpus.jsonl"\nextract = ["compress"]\n[extractors.compress]\nfsp = 3',
            ("did you mean 'fps'",),
        ),
        ('corpus = "corpus.jsonl"\nextract = ["compress"]\n[extractors.compress]\nfps = -1', ("fps = -1",)),
        ('extract = ["compress"]', ("corpus is required",)),
        ('corpus = "corpus.jsonl"', ("neither methods nor extract",)),
        ('corpus = "nowhere.jsonl"\nextract = ["compress"]', ("no corpus manifest", "nowhere.jsonl")),
        (
            'corpus = "corpus.jsonl"\nstore = "clip00.mp4/store"\nextract = ["compress"]',
            ("store", "cannot be"),
        ),
        (
            'corpus = "corpus.jsonl"\nextract = ["clip"]\n[extractors.clip]\nmodel = "ViT-B-23"',
            ("did you mean",),
        ),
        (
            'corpus = "corpus.jsonl"\nextract = ["clip"]\n[extractors.clip]\nweights = "no/such.pt"',
            ("no/such.pt",),
        ),
        ('corpus = "corpus.jsonl"\nextract = ["compress"]\n[run]\ndevice = "gpu"', ("device = 'gpu'",)),
    ],
    ids=lambda value: value.split("\n")[-1] if isinstance(value, str) else "",
)
def test_a_mistake_in_an_experiment_is_one_sentence(small, crossreel, text, words):
    small.experiment(text)
    mistake(crossreel("plan", small.toml), *words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", ("line 4", "not valid JSON")),
        ('{"id": "clip00", "media": "clip00.mp4", "split": "train"}', ("line 4", "stands already on line 1")),
        (
            '{"id": "x", "media": "clip00.mp4", "split": "train", "captions": [{"text": "  "}]}',
            ("line 4", "is empty"),
        ),
        ('{"id": "x", "split": "train"}', ("neither media nor",)),
        ('{"id": "x", "media": "y", "split": "train", "capitons": []}', ("did you mean 'captions'",)),
        (
            '{"id": "x", "media": "y", "split": "t", "captions": [{"text": "a", "start": 3, "end": 1}]}',
            ("ends at",),
        ),
    ],
)
def test_a_bad_line_of_the_manifest_is_named(small, crossreel, line, words):
    manifest = small.folder / "corpus.jsonl"
    manifest.write_text(manifest.read_text() + line + "\n")
    mistake(crossreel("plan", small.toml), *words)


def test_unknown_stages_and_missing_files_are_named(small, crossreel):
    mistake(crossreel("stage", "compres", small.toml), "did you mean 'compress'")
    mistake(crossreel("plan", small.folder / "nothing.toml"), "no experiment file")
    mistake(crossreel("why", "compress", "clip0", small.toml), "clip0")
    mistake(crossreel("stage", "compress", small.toml, "--set", "run"), "--set 'run'")


def test_a_split_without_queries_is_refused_before_anything_is_made(lab, crossreel):
    lines = [json.loads(line) for line in (lab.folder / "corpus.jsonl").read_text().splitlines()]
    rows = [line | {"captions": []} if line["split"] == "val" else line for line in lines]
    (lab.folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mistake(crossreel("stage", "evaluate", lab.toml), "'val' has no captions", "train, test")
    assert not list((lab.store / "segments").glob("*"))


def test_weights_that_do_not_match_are_refused(lab, crossreel):
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"visual.proj": np.zeros((2, 2), np.float32)}, lab.folder / "other.safetensors")
    ended = crossreel("stage", "clip_text", lab.toml, "--set", 'extractors.clip.weights="other.safetensors"')
    mistake(ended, "do not fit crossreel-demo")


def test_a_run_with_nothing_to_do_says_so_and_starts_no_server(made, crossreel):
    ended = crossreel("stage", "evaluate", made.toml)
    assert ended.code == 0 and "0 stages ran" in ended.out


def test_a_setting_reruns_what_depends_on_it_and_nothing_above(made, crossreel):
    def missing(*sets: str) -> set[str]:
        words = [word for text in sets for word in ("--set", text)]
        states = json.loads(crossreel("plan", made.toml, "--json", *words).out)
        return {name for name, state in states.items() if state["missing"]}

    report = {"report"}
    assert missing() == report  # the stage after those that were made
    assert missing("trainers.hlformer.lr=1e-5") == report | {"train-hlformer", "evaluate-hlformer"}
    assert missing("evaluate.seed=7") == report | {"evaluate-hlformer"}
    learnt = {"pack-hlformer", "pack-hlformer-test", "train-hlformer", "evaluate-hlformer"} | report
    assert missing("trainers.hlformer.max_desc_l=5") == learnt
    assert missing("extractors.clip.dtype=float32") == learnt | {"clip", "clip_text"}
    assert missing("extractors.compress.crf=30") == learnt | {"compress", "clip"}
    assert missing("run.workers=1", "run.batch_size=7", "run.device=cpu") == report
    assert missing("trainers.hlformer.item_batch=3") == report


def test_moving_and_renaming_media_costs_nothing(made, crossreel):
    (made.folder / "elsewhere").mkdir()
    manifest = made.folder / "corpus.jsonl"
    text = manifest.read_text()
    for number in range(12):
        shutil.move(made.folder / f"clip{number:02}.mp4", made.folder / f"elsewhere/{number}.mp4")
        text = text.replace(f'"media": "clip{number:02}.mp4"', f'"media": "elsewhere/{number}.mp4"')
    manifest.write_text(text)
    states = json.loads(crossreel("plan", made.toml, "--json").out)
    assert {name for name, state in states.items() if state["missing"]} == {"report"}


def test_why_names_the_component_that_differs(made, crossreel):
    assert "clip of clip03: hit" in crossreel("why", "clip", "clip03", made.toml).out
    missed = crossreel("why", "clip", "clip03", made.toml, "--set", "extractors.compress.crf=30").out
    assert "miss" in missed and "compress, upstream" in missed and "params.crf: 30 now, 23 then" in missed


def segments(lab, stage: str) -> list[Path]:
    return sorted((lab.store / "segments" / stage).rglob("*.h5"))


def test_a_truncated_segment_is_missing_work(made, crossreel):
    path = segments(made, "clip_text")[0]
    os.truncate(path, path.stat().st_size // 2)
    assert json.loads(crossreel("plan", made.toml, "--json").out)["clip_text"]["missing"] == 2
    assert crossreel("store", "verify", made.store).code == 1
    assert crossreel("stage", "clip_text", made.toml).code == 0
    assert json.loads(crossreel("plan", made.toml, "--json").out)["clip_text"]["missing"] == 0


@pytest.mark.slow
def test_a_flipped_bit_is_found_named_dropped_and_made_again(made, crossreel):
    project = open_project(made.toml)
    state = project.survey()["clip"]
    key = next(iter(state.places))
    project.store.reader("clip", state.fingerprint.hex).rows(key, "frame", check=True)
    path = project.store.segment_path("clip", state.fingerprint.hex, state.places[key].segment)
    content = bytearray(path.read_bytes())
    row = project.store.reader("clip", state.fingerprint.hex).rows(key, "frame")
    content[content.index(row.tobytes()) + 5] ^= 1
    path.write_bytes(bytes(content))
    found = crossreel("store", "verify", made.store)
    assert found.code == 1 and path.name in found.out
    ended = crossreel("stage", "pack", made.toml, "--redo")  # of the test split there is nothing to repair
    assert ended.code == 3 and path.name in ended.out and "store verify --repair" in ended.out
    assert crossreel("store", "verify", made.store, "--repair").code == 0
    assert json.loads(crossreel("plan", made.toml, "--json").out)["clip"]["missing"] >= 1
    assert crossreel("stage", "clip", made.toml).code == 0
    assert crossreel("store", "verify", made.store).code == 0


def test_a_lost_index_is_rebuilt_from_the_segments(made, crossreel):
    for path in made.store.glob("index.sqlite*"):
        path.unlink()
    states = json.loads(crossreel("plan", made.toml, "--json").out)
    assert {name for name, state in states.items() if state["missing"]} == {"report"}


def test_a_segment_the_index_does_not_know_is_adopted(made, crossreel):
    with sqlite3.connect(made.store / "index.sqlite") as db:
        db.execute("DELETE FROM artifacts")
        db.execute("DELETE FROM segments")
    told = json.loads(crossreel("stage", "clip_text", made.toml, "--json").out)
    assert told["stages_ran"] == 0


def test_gc_removes_what_no_named_experiment_needs(made, crossreel):
    other = made.folder / "other.toml"
    other.write_text(made.toml.read_text().replace("epochs = 2", "epochs = 1"))
    assert crossreel("stage", "train", other).code == 0
    assert len(list((made.store / "runs/train-hlformer").iterdir())) == 2
    crossreel("store", "gc", made.toml, "--dry-run", "--young-seconds", "0")
    assert len(list((made.store / "runs/train-hlformer").iterdir())) == 2
    assert crossreel("store", "gc", made.toml, "--young-seconds", "0").code == 0
    assert len(list((made.store / "runs/train-hlformer").iterdir())) == 1
    states = json.loads(crossreel("plan", made.toml, "--json").out)
    assert {name for name, state in states.items() if state["missing"]} == {"report"}


@pytest.mark.slow
def test_redo_makes_a_stage_again_with_the_same_content(made):
    def rows() -> dict[str, bytes]:
        project = open_project(made.toml)
        state = project.survey()["clip_text"]
        reader = project.store.reader("clip_text", state.fingerprint.hex)
        return {key: reader.rows(key, "token").tobytes() for key in state.places}

    before, names = rows(), {path.name for path in segments(made, "clip_text")}
    ended = made.run("stage", "clip_text", made.toml, "--redo")
    assert "1 stages ran" in ended.out and "clip_text: 0 of 24  loading networks" in ended.err
    assert rows() == before and not names & {path.name for path in segments(made, "clip_text")}


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("mount") is None or os.geteuid() != 0, reason="a small disk needs mount and root"
)
def test_a_full_disk_is_one_sentence_and_loses_nothing(lab, tmp_path):
    import subprocess

    lab.store.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(lab.store)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        ended = lab.run_apart("stage", "clip", lab.toml)  # a process that has ended holds no file of the disk
        assert ended.code == 2, ended.err
        assert "full" in ended.err.splitlines()[-1] and "Traceback" not in ended.err
        subprocess.run(["mount", "-o", "remount,size=50m", str(lab.store)], check=True)
        ended = lab.run_apart("stage", "clip", lab.toml)
        assert ended.code == 0, ended.err
        assert lab.run_apart("store", "verify", lab.store).code == 0
    finally:
        subprocess.run(["umount", str(lab.store)], check=True)
