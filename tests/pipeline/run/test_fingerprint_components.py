"""Each component of a fingerprint by itself: another value is another digest, for a mapped stage and a whole one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import Caption, Corpus, Item
from pipeline.run import plan
from pipeline.run.stage import Digests, Stage
from pipeline.settings import Params
from pipeline.store.store import Store


class Scale(Params):
    factor: float = 1.0


class Rows(Stage[Scale]):
    """A row of each item, and by `of_corpus` a stage that reads the split `train` as well."""

    name, runner, settings = "rows", "no:where", Scale

    def __init__(self, factor: float = 1.0, *, weights: str = "a", needs: Sequence[str] = (), **more: Any):
        super().__init__(Scale(factor=factor))
        self.weights, self.needs = weights, tuple(needs)
        for attribute, value in more.items():
            setattr(self, attribute, value)

    def identity(self, known: Digests) -> Mapping[str, Any]:
        return {"weights": self.weights}

    def splits(self) -> tuple[str, ...]:
        return ("train",) if self.over == "corpus" else ()


class Known:
    """Digests for stages that have no files."""

    def file(self, path: Path) -> str:
        raise AssertionError(f"no stage here reads {path}")

    def located(self, name: str, find: Callable[[], Path | None]) -> Path | None:
        raise AssertionError(f"no stage here looks for {name}")


def corpus(**captions: str) -> Contents:
    """Items of the split `train`, each with a caption a letter of its text."""
    items = tuple(
        Item(item, "train", tuple(Caption(f"{item}#{text}", text) for text in texts), f"{item}.mp4")
        for item, texts in captions.items()
    )
    return Contents(Corpus(Path("corpus.jsonl"), items), {item: item * 32 for item in captions})


PLAIN = {"a": "xy", "b": "z"}


def digest(
    folder: Path, *, contents: Contents | None = None, above: Stage[Any] | None = None, **stage: Any
) -> str:
    """The fingerprint of a stage of these attributes that needs `above`."""
    above = above or Rows()
    asked = Rows(**{"name": "asked", "needs": (above.name,)} | stage)
    stages = {above.name: above, "other": Rows(name="other"), asked.name: asked}
    found = plan.survey(stages, contents or corpus(**PLAIN), Store(folder), Known())
    return found[asked.name].fingerprint.hex


CHANGES: dict[str, dict[str, Any]] = {
    "stage": {"name": "renamed"},
    "version": {"version": 2},
    "params": {"factor": 2.0},
    "identity": {"weights": "b"},
    "one more need": {"needs": ("rows", "other")},
    "no need": {"needs": ()},
    "params upstream": {"above": Rows(2.0)},
    "version upstream": {"above": Rows(version=2)},
    "weights upstream": {"above": Rows(weights="b")},
}


@pytest.mark.parametrize("over", ["items", "corpus"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_each_component_changes_the_fingerprint(tmp_path: Path, over: str, change: dict[str, Any]) -> None:
    plain = digest(tmp_path, over=over)
    assert digest(tmp_path, over=over) == plain
    assert digest(tmp_path, over=over, **change) != plain


@pytest.mark.parametrize(
    "changed",
    [
        corpus(a="x", b="yz"),
        corpus(a="xy", b="w"),
        corpus(a="yx", b="z"),
        corpus(a="xy", c="z"),
        corpus(b="z", a="xy"),
        corpus(a="xy", b="z", c=""),
    ],
    ids=[
        "owner of a caption",
        "text",
        "order of captions",
        "bytes of an item",
        "order of items",
        "one more item",
    ],
)
def test_what_a_split_is_made_of_changes_the_fingerprint_of_what_reads_it(
    tmp_path: Path, changed: Contents
) -> None:
    assert digest(tmp_path, over="corpus", contents=changed) != digest(tmp_path, over="corpus")
    assert digest(tmp_path, over="items", contents=changed) == digest(tmp_path, over="items")
