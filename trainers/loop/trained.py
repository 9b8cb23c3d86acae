"""What a training leaves in its folder, written and read by one class. Reading settings and history imports no torch.

`weights.safetensors` holds the kept weights, `config.json` the settings and a summary, `history.jsonl` a line an
epoch, `tensorboard/` the curves; the store adds its record when it publishes the folder. A training of no epochs,
which keeps the weights it starts from, has neither history nor curves; an imported checkpoint has no summary either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError
from pipeline.store.documents import Document, complaint, read_document
from pipeline.store.store import RECORD, write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS, CONFIG, HISTORY, TENSORBOARD = "weights.safetensors", "config.json", "history.jsonl", "tensorboard"
OWNER = "a trained method"
REMEDY = "train the method again with --redo, or import the checkpoint again"

C = TypeVar("C", bound=BaseModel)


class Epoch(Document):
    """One line of the history. `epoch` counts from 1; `steps` are those done so far; `best`: its weights were kept.

    `waiting`: share of the time of its steps, in the process that ended it, in which they waited for their data.
    `training_seconds` and `validation_seconds`: of these steps, and of the validation after them, the mean over the
    processes. They are None in histories from before they were measured. `validation_captions`: captions of the
    validation split that were drawn to judge the epoch, 0 if all did.
    """

    epoch: int
    steps: int
    lr: float
    loss: float  # the mean over the epoch of the sum of `terms`
    terms: dict[str, float]
    validation: dict[str, float]
    best: bool
    waiting: float | None = None
    training_seconds: float | None = None
    validation_seconds: float | None = None
    validation_captions: int = 0


class Summary(Document):
    """How a training ended. Of one without epochs, `best_epoch` is 0 and `validation` is empty."""

    best_epoch: int
    epochs: int
    validation: dict[str, float]
    stopped_early: bool = False
    parameters: int = 0


class Settings(Document):
    """config.json: the method, its settings, and the summary, which an imported checkpoint does not have."""

    method: str
    config: dict[str, Any]
    summary: Summary | None = None


class Record(Document):
    """The part of the store's record of a training that pages print."""

    seconds: float | None = None


@dataclass(frozen=True)
class TrainedFolder:
    """The folder of a training, or of an imported checkpoint. Files are read at first use."""

    folder: Path

    @property
    def weights(self) -> Path:
        """The file of the kept weights."""
        return self.folder / WEIGHTS

    @property
    def tensorboard(self) -> Path:
        """The folder of the TensorBoard logs; a training of no epochs does not make it."""
        return self.folder / TENSORBOARD

    @property
    def finished(self) -> bool:
        """Whether everything was written: the settings are written last."""
        return (self.folder / CONFIG).exists()

    @cached_property
    def settings(self) -> Settings:
        """config.json. Raises UserError naming a file that is missing or damaged."""
        return read_document(self.folder / CONFIG, Settings, OWNER, REMEDY)

    @property
    def summary(self) -> Summary:
        """How the training ended. Raises UserError for an imported checkpoint, which was not trained here."""
        if self.settings.summary is None:
            raise UserError(
                f"{self.folder / CONFIG} has no summary: it is an imported checkpoint, not a training"
            )
        return self.settings.summary

    def config(self, kind: type[C]) -> C:
        """The settings as the config class of the method. Raises UserError where they are none of that class."""
        try:
            return kind(**self.settings.config)
        except ValidationError as error:
            raise UserError(
                f"{self.folder / CONFIG} does not hold settings of {self.settings.method}: {complaint(error)}"
            ) from None

    @cached_property
    def history(self) -> tuple[Epoch, ...]:
        """The epochs in order; empty where there was none. Raises UserError for a file that is missing or damaged."""
        path = self.folder / HISTORY
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            if self.settings.summary is None or self.settings.summary.epochs == 0:
                return ()
            raise UserError(f"there is no {path}; {REMEDY}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        return tuple(_epoch(path, number, line) for number, line in enumerate(lines, start=1))

    @property
    def seconds(self) -> float | None:
        """Seconds that the stage took, as the store recorded them; None in a folder that no store published."""
        path = self.folder / RECORD
        return read_document(path, Record, OWNER, REMEDY).seconds if path.exists() else None

    def write_history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace the history by these rows, each with the fields of `Epoch`: whole or not at all."""
        path = self.folder / HISTORY
        aside = path.with_name(f"{HISTORY}.aside")
        aside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        aside.replace(path)

    def write(
        self, name: str, config: BaseModel, method: nn.Module, summary: Summary | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Write the weights, then the settings, so that a folder with settings is whole.

        The summary of a training gets the number of parameters; an imported checkpoint has none. `about` is what is
        written into the file of the weights besides the method's name.
        """
        from trainers.loop.checkpoint import save_weights  # torch: only a training and an import pay for it

        self.folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.weights, method, {"method": name, **(about or {})})
        content: dict[str, Any] = {"method": name, "config": config.model_dump(mode="json")}
        if summary is not None:
            parameters = sum(parameter.numel() for parameter in method.parameters())
            counted = summary.model_copy(update={"parameters": parameters})
            content["summary"] = counted.model_dump(mode="json", exclude_unset=True)
        write_json(self.folder / CONFIG, content)

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weights by name, and what was written beside them. Raises UserError for a missing or damaged file."""
        from trainers.loop.checkpoint import load_tensors  # torch: only who needs the weights pays for it

        return load_tensors(self.weights)

    def fill(self, method: nn.Module, whole: bool = False) -> dict[str, Any]:
        """Fill a method with the weights; returns what was written beside them. See `checkpoint.load_weights`."""
        from trainers.loop.checkpoint import load_weights  # torch: only who needs the weights pays for it

        return load_weights(self.weights, method, whole)


def _epoch(path: Path, number: int, line: str) -> Epoch:
    try:
        return Epoch.model_validate_json(line)
    except ValidationError as error:
        raise UserError(f"line {number} of {path} is damaged: {complaint(error)}; {REMEDY}") from None
