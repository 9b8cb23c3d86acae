"""Ids and sentences that begin with a dash work in every verb that takes one; mistyped options are still refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

IDS = ("-v1", "--7yDmy1q9w", "-sets", "-h4", "-")


@pytest.fixture
def folder(tmp_path: Path, crossreel: Callable) -> Path:
    """An experiment on imported features of items and captions whose ids begin with a dash."""
    splits = ("train", "train", "train", "val", "test")
    lines = [
        {"id": name, "split": split, "captions": [{"id": f"{name}_0", "text": f"a dog {n}"}]}
        for n, (name, split) in enumerate(zip(IDS, splits, strict=True))
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    np.savez(tmp_path / "items.npz", **{name: np.ones((4, 8), "f4") for name in IDS})
    np.savez(tmp_path / "texts.npz", **{f"{name}_0": np.ones((3, 8), "f4") for name in IDS})
    for of, name in (("items", "items"), ("captions", "texts")):
        ended = crossreel(
            "import", "features", tmp_path / f"{name}.npz", "--layout", "npz", "--corpus",
            tmp_path / "corpus.jsonl", "--store", tmp_path / "store", "--of", of,
        )  # fmt: skip
        assert ended.code == 0, ended.err
    (tmp_path / "e.toml").write_text(
        'corpus = "corpus.jsonl"\nmethods = ["hlformer"]\n[trainers.hlformer]\nvideo_features = "import-items"\n'
        'text_features = "import-texts"\n'
    )
    return tmp_path


@pytest.mark.parametrize("name", IDS)
def test_why_is_asked_of_an_id_that_begins_with_a_dash(folder, crossreel, name):
    for words in ((name, folder / "e.toml"), ("--", name, folder / "e.toml")):
        ended = crossreel("why", "import-items", *words)
        assert ended.out.startswith(f"import-items of {name}: hit"), ended
    ended = crossreel(
        "why", "--set", "trainers.hlformer.lr=1e-3", "import-texts", f"{name}_0", folder / "e.toml"
    )
    assert ended.out.startswith(f"import-texts of {name}_0: hit"), ended


@pytest.mark.parametrize("name", IDS)
def test_search_takes_captions_and_sentences_that_begin_with_a_dash(folder, crossreel, name):
    """Nothing is trained, which is what the answers are about: the words have arrived."""
    for words in (
        ("--caption", f"{name}_0"),
        (f"--caption={name}_0",),
        (name,),
        ("-- a dog",),
        ("- a dog, running",),
    ):
        ended = crossreel("search", *words, folder / "e.toml", "--method", "hlformer")
        assert ended.code == 2 and "is not done yet" in ended.err, (words, ended)


def test_mistyped_options_are_refused_with_the_nearest(folder, crossreel):
    ended = crossreel("why", "import-items", "-v1", folder / "e.toml", "--sett", "a.b=1")
    assert ended.code == 2 and "No such option: --sett" in ended.err and "--set" in ended.err
    assert "Usage" in crossreel("why", "-h").out
    ended = crossreel("why", "import-items", "-v9", folder / "e.toml")
    assert ended.code == 2 and "no item '-v9'" in ended.err
