"""What the process that searches is told: where everything lies, and which stages a query goes through."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from extractors.base import WorkOptions
from flows.project import Project
from flows.search.searched import Searched
from pipeline.errors import UserError
from pipeline.run import plan
from pipeline.run.engines.machine import cores, gpu_numbers, threads, visible_gpus
from trainers.config import MethodConfig

Kind = Literal["captions", "items"]


@dataclass(frozen=True)
class SearchBriefing:
    """What a process is told that searches."""

    searched: Searched

    @property
    def project(self) -> Project:
        """The project whose stages include the index."""
        return self.searched.project

    @property
    def method(self) -> str:
        """The method that is searched with."""
        return self.searched.method

    @property
    def states(self) -> Mapping[str, plan.State]:
        """The states of the stages."""
        return self.searched.states

    def about(self, contents: Mapping[str, Any], device: str) -> dict[str, Any]:
        """What `flows.search.worker.Loaded` reads; contents: the digests that the index holds."""
        run = self.project.experiment.run
        chosen = run.model_dump(include={"batch_size", "item_seconds", "decoder_bytes"})
        (packed,) = (need for need in self._needs if need.startswith("pack-"))
        features = self._config.features()
        beside, text = self._pair(contents)
        return {
            "trained": self._folder(f"train-{self.method}"),
            "packed": self._folder(packed),
            "index": str(self.searched.folder),
            "work": tempfile.gettempdir()
            if self.project.store.read_only
            else str(self.project.store.root / "work"),
            "device": device,
            "options": WorkOptions(device=device, **chosen).model_dump_json(),
            "chains": {"captions": self._stage_specs("captions"), "items": self._stage_specs("items")},
            "first": {name: next(iter(self.project.stages[name].fields)) for name in features},
            "beside": {
                "item": beside["items"],
                "caption": beside["captions"],
                "text": text,
                "rows": {name: self._row(name, beside) for name in features},
            },
        }

    def sample(self, split: str, most: int) -> dict[str, Any] | None:
        """At most `most` captions from all over a split whose features the store has, and where these lie.

        None where the split has none; for `flows.search.worker.Loaded.profile`.
        """
        states = [self.states[name] for name in self._config.features()]
        features = [state for state in states if state.stage.over == "captions"]
        texts = {
            caption.digest: caption.text
            for _, _, caption in self.project.contents.queries(split)
            if all(caption.digest in state.places for state in features)
        }
        keys = list(texts)[:: max(1, len(texts) // most)][:most]
        if not keys:
            return None
        rows = {
            state.stage.name: {key: self._row(state.stage.name, {"captions": key})[key] for key in keys}
            for state in features
        }
        return {"captions": [[key, texts[key]] for key in keys], "rows": rows}

    def require_chain(self, over: Kind) -> None:
        """Raise UserError if the features of a new caption, or item, cannot be made because they were imported."""
        imported = [name for name in self._chain(over) if not self.project.stages[name].runner]
        if imported and over == "captions":
            raise UserError(
                f"the text features of {self.method} were imported ({imported[0]}), so a new query cannot be encoded; "
                "search by the id of a caption of the split instead"
            )
        if imported:
            raise UserError(
                f"the item features of {self.method} were imported ({imported[0]}), so a new file cannot be encoded; "
                "give a file of the split instead"
            )

    @property
    def _needs(self) -> tuple[str, ...]:
        return self.project.stages[f"index-{self.method}"].needs

    @property
    def _config(self) -> MethodConfig:
        config = self.project.stages[f"train-{self.method}"].params
        if not isinstance(config, MethodConfig):
            raise TypeError(f"train-{self.method} has no settings of a method")
        return config

    def _pair(self, contents: Mapping[str, Any]) -> tuple[dict[str, str], str]:
        """A caption with its item, by key, whose features the store has, and its text.

        Items of an index may have left the corpus since it was made.
        """
        features = [self.states[name] for name in self._config.features()]
        rows = zip(contents["captions"], contents["caption_item"], contents["texts"], strict=True)
        for caption, place, text in rows:
            keys = {"items": contents["items"][place], "captions": caption}
            if all(keys[state.stage.over] in state.places for state in features):
                return keys, text
        raise UserError(
            f"the corpus {self.project.contents.corpus.path} no longer has a caption of the split "
            f"{self.searched.split!r} that {self.method} indexed"
        )

    def _folder(self, stage: str) -> str:
        return str(self.project.store.run_folder(stage, self.states[stage].fingerprint.hex))

    def _chain(self, over: Kind) -> list[str]:
        """The stages that a new item or caption goes through, in order."""
        stages = self.project.stages
        needed = plan.ancestors(stages, self._config.features())
        return [name for name in plan.order(stages) if name in needed and stages[name].over == over]

    def _stage_specs(self, over: Kind) -> list[dict[str, Any]]:
        """The description of each stage of the chain that this process can run, for `flows.search.chain.Chain`."""
        states = [self.states[name] for name in self._chain(over) if self.project.stages[name].runner]
        return [
            {
                "name": state.stage.name,
                "entry": state.stage.entry,
                "params": state.stage.params.model_dump_json(),
                "fingerprint": state.fingerprint.hex,
                "components": dict(state.fingerprint.components),
                "suffix": state.stage.file_suffix or "",
            }
            for state in states
        ]

    def _row(self, name: str, beside: Mapping[str, str]) -> dict[str, list[Any]]:
        """The segment file and row of a stage's output for the item, or caption, that is encoded beside a query."""
        state = self.states[name]
        key = beside[state.stage.over]
        place = state.places[key]
        path = self.project.store.segment_path(name, state.fingerprint.hex, place.segment)
        return {key: [str(path), place.row]}


def placed(device: str) -> tuple[str, dict[str, str]]:
    """The device that `[run] device` gives a search, and the environment of its process.

    The GPU is not reserved: a query needs little of it, and a server would reserve it for days.
    """
    numbers, env = gpu_numbers(device), threads(cores())
    if not numbers:
        return "cpu", env
    return "cuda:0", env | {"CUDA_VISIBLE_DEVICES": visible_gpus()[numbers[0]]}
