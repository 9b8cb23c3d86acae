"""The features of an experiment by stage: `experiment.store["clip"]["video-12"]`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from flows.project import Project
from flows.reading import Features, stage_features, stages_with_features
from flows.troubles import in_sentences


class Store:
    """What the stages of an experiment made of items and captions. Iteration is over the stages that have arrays."""

    def __init__(self, project: Callable[[], Project]) -> None:
        """project: returns the opened project, or raises Error if it was closed."""
        self._project = project

    @property
    def path(self) -> Path:
        """The folder of the store."""
        return self._project().store.root

    @in_sentences()
    def __getitem__(self, stage: str) -> Features:
        return stage_features(self._project(), stage)

    def __contains__(self, stage: object) -> bool:
        return stage in stages_with_features(self._project())

    def __iter__(self) -> Iterator[str]:
        return iter(stages_with_features(self._project()))

    def __len__(self) -> int:
        return len(stages_with_features(self._project()))

    def __repr__(self) -> str:
        return f"<store {self.path}: {', '.join(self)}>"
