"""Sixteen stages that do next to nothing, so that what a run costs beside the work of its stages can be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from extractors.base import Extractor, Output, Unit
from pipeline.child import Send
from pipeline.run.stage import Briefing, Stage
from pipeline.settings import Params
from pipeline.store.fields import Field


class MappedParams(Params):
    """The params from which a worker builds the stage again."""

    name: str
    suffix: str | None = None


class Mapped(Extractor[MappedParams]):
    """One row of zeros for each item or caption, and a file of one byte if a suffix is given."""

    settings = MappedParams
    fields = {"row": Field("float16", (None, 4))}
    shard_items = 64

    def __init__(
        self, params: MappedParams, needs: tuple[str, ...] = (), over: Literal["items", "captions"] = "items",
        one_pass: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params)
        self.name, self.file_suffix, self.needs = params.name, params.suffix, needs  # type: ignore[misc]
        self.over, self.one_pass = over, one_pass  # type: ignore[misc]

    def extract(self, unit: Unit, work: Path) -> Output:
        """The row, and the file if the stage makes one."""
        row = {"row": np.zeros((1, 4), np.float16)}
        if self.file_suffix is None:
            return Output(row)
        file = work / f"{unit.key}{self.file_suffix}"
        file.write_bytes(b"x")
        return Output(row, file=file)


class WholeParams(Params):
    """No settings."""


class Whole(Stage[WholeParams]):
    """A stage over the corpus; a pack is given the place of every row that it reads, as real ones are."""

    settings, over = WholeParams, "corpus"
    runner = "benchmarks.synthetic:touch"

    def __init__(self, name: str, needs: tuple[str, ...]) -> None:
        super().__init__(WholeParams())
        self.name, self.needs = name, needs

    def splits(self) -> tuple[str, ...]:
        """The training split."""
        return ("train",)

    def brief(self, briefing: Briefing) -> dict[str, Any]:
        """The places of the features that it reads."""
        mapped = [need for need in self.needs if briefing.states[need].stage.over != "corpus"]
        return {need: briefing.table(need, briefing.states[need].keys) for need in mapped}


def touch(request: dict[str, Any], send: Send) -> None:
    """Entry of the process of a stage over the corpus: one file in its folder."""
    (Path(request["folder"]) / "made").write_bytes(b"x")


def stages() -> dict[str, Stage[Any]]:
    """Nine stages over items, four over captions, and a pack, a training and an evaluation, by name."""
    made: list[Stage[Any]] = [Mapped(MappedParams(name="prepared", suffix=".bin"))]
    made += [
        Mapped(MappedParams(name=f"frames{n}"), ("prepared",), one_pass=n < 3)  # three share a pass
        for n in range(7)
    ]
    made += [Mapped(MappedParams(name="pooled"), ("frames0",))]
    made += [Mapped(MappedParams(name=f"texts{n}"), over="captions") for n in range(4)]
    made += [
        Whole("pack", ("pooled", "texts0")),
        Whole("train", ("pack",)),
        Whole("evaluate", ("pack", "train")),
    ]
    return {stage.name: stage for stage in made}
