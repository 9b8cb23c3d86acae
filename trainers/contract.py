"""Declaration of a retrieval method: one typed, versioned object. Importing it imports no torch."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from trainers.config import MethodConfig

if TYPE_CHECKING:  # declarations are read by `crossreel --help`, which pays for neither torch nor NumPy
    from torch.optim import Optimizer

    from trainers.data import Rows, Split
    from trainers.method import Method, MethodData

C = TypeVar("C", bound=MethodConfig)


class OfficialLayout(Protocol):
    """The module that knows the checkpoints which a method's authors published."""

    def import_checkpoint(
        self, file: Path, folder: Path, given: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write the weights and settings of a file into a folder; the settings that differ from the defaults.

        `given` are settings that the user adds: those that the file does not show, which a module may name in
        `NOT_SHOWN`. Raises UserError for one that is needed and not given.
        """
        ...

    def export_checkpoint(self, trained: Path, file: Path) -> None:
        """Write the weights of a trained method's folder as the authors' code reads them."""
        ...


class RetrievalMethod(ABC, Generic[C]):
    """A retrieval method: its name, version and settings, and the modules of its parts.

    The four methods import the heavy modules in their bodies. `version` is part of the fingerprints of the
    method's packed inputs, trained weights and evaluation. A change of the code that changes its results
    under the same settings must raise the version, so that all three are made again. One number serves for
    all three, because it can be raised without working out which of them a change affects, and packing costs
    minutes where training costs hours. `.ci/versions.py` reports a version that was not raised.

    The other attributes are optional and name modules that are imported when they are used, "" where there is none:
    `official` the authors' checkpoints (`OfficialLayout`), `cases` the module that runs the authors' recorded numerical
    cases (`trainers.verify.cases.MethodVerify`), `drawing` the `module:object` of the report's drawing of an
    explanation (`flows.results.report.explained.Drawer`), `table` the `package:file` of its published figures,
    `recipes` the `package:file` of its published experiments (`trainers.recipes`) where the package is not this one.
    """

    name: str
    version: int = 1
    config: type[C]
    official: str = ""
    cases: str = ""
    drawing: str = ""
    table: str = ""
    recipes: str = ""

    @abstractmethod
    def pack(self, folder: Path, config: C, splits: Mapping[str, Split], read: Mapping[str, Rows]) -> None:
        """Write the arrays and one index per split into a folder; `read` gives each of `config.inputs()` by key."""

    @abstractmethod
    def open_data(self, folder: Path, config: C) -> MethodData:
        """The data that `pack` wrote into a folder."""

    @abstractmethod
    def build(self, config: C, data: Any) -> Method:
        """The model with its initial weights, for the sizes of the data that `open_data` gave."""

    @abstractmethod
    def optimizer(self, config: C, method: Any, total_steps: int) -> Optimizer:
        """The optimizer of the model's parameters, whose schedule ends after `total_steps` updates."""

    def official_layout(self) -> OfficialLayout | None:
        """The module of the authors' checkpoints; None where none were published. Imports torch."""
        return cast(OfficialLayout, importlib.import_module(self.official)) if self.official else None
