"""Published experiments as data: with which settings a method was run on a data set, and by whom. Imports no torch.

The rows stand in recipes.toml, those of an installed package's method in the file that its `recipes` names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from pipeline.corpus.importers.published import UNITS
from pipeline.errors import UserError, nearest
from pipeline.settings import Options, Tree, fill, read_toml

Trajectory = Literal["release", "stable"]
TRAJECTORIES: tuple[Trajectory, ...] = get_args(Trajectory)
STABLE: Trajectory = "stable"  # what we recommend instead of the authors' precision and gradients
PRESETS = ("hlformer", "neighborretr")  # methods whose recipes were once chosen by a setting called `preset`
NONE = "none"  # the value of `recipe` that fills no setting
Status = Literal["release", "paper", "command published, cannot run", "none"]
BUILT_IN = Path(__file__).with_name("recipes.toml")


class Size(Options):
    """Numbers of items and of captions of a split; None where the source does not state one."""

    items: int | None = Field(None, ge=1)
    captions: int | None = Field(None, ge=1)


class Selection(Options):
    """The split and the figure that chose the epoch; "" where the source does not say or nothing was trained."""

    split: str = ""
    figure: str = ""


class PublishedRecipe(Options):
    """A method's run on a data set as its source describes it; recipes.toml says what each key means."""

    method: str
    name: str
    aliases: tuple[str, ...] = ()
    dataset: str
    protocols: tuple[str, ...] = Field(min_length=1)
    captions: str = ""
    status: Status
    source: str = ""
    backbone: str = ""
    note: str = ""
    free: tuple[str, ...] = ()
    processes: int = Field(0, ge=0)
    settings: Tree = Field(default_factory=dict)
    release: Tree = Field(default_factory=dict)
    stable: Tree = Field(default_factory=dict)
    extractors: dict[str, Tree] = Field(default_factory=dict)
    networks: dict[str, Tree] = Field(default_factory=dict)
    imported: bool = False
    train: Size = Size()
    val: Size = Size()
    test: Size = Size()
    selection: Selection = Selection()

    @field_validator("captions")
    @classmethod
    def _known_unit(cls, value: str) -> str:
        if value and value not in UNITS:
            raise ValueError(f"unknown captions {value!r}; {nearest(value, UNITS)}")
        return value

    @property
    def published(self) -> bool:
        """Whether a source says how it was run. The settings of a row with the status none are ours."""
        return self.status != NONE

    @property
    def trained(self) -> bool:
        """Whether anything is trained; zero-shot CLIP is not."""
        return self.settings.get("epochs") != 0

    def filled(self, trajectory: Trajectory = "release") -> Tree:
        """The settings of `trainers.<method>` under a trajectory."""
        return self.settings | (self.release if trajectory == "release" else self.stable)


def recipes(method: str, extra: str = "") -> tuple[PublishedRecipe, ...]:
    """The rows of a method, in the order of the file. extra: `package:file` of rows of an installed package.

    Raises UserError naming the row and key of a package's file that cannot be read.
    """
    rows = _read(BUILT_IN)
    if extra:
        package, _, file = extra.partition(":")
        rows += _read(Path(str(files(package))) / file)
    return tuple(row for row in rows if row.method == method)


def every_recipe() -> tuple[PublishedRecipe, ...]:
    """All rows of the methods that are built in, in the order of the file."""
    return _read(BUILT_IN)


def dataset_name(dataset: str) -> str:
    """The name that the importer of a layout writes into a corpus's protocol: "MSR-VTT" of msrvtt."""
    return _datasets()[dataset]


def find(method: str, name: str, extra: str = "") -> PublishedRecipe | None:
    """The row of a name or of an alias; None for "none" and for "". Raises UserError for one that is not there."""
    if name in ("", NONE):
        return None
    rows = recipes(method, extra)
    for row in rows:
        if name in (row.name, *row.aliases):
            return row
    raise UserError(unknown(name, rows))


def unknown(name: str, rows: Sequence[PublishedRecipe]) -> str:
    """The end of a sentence about a recipe that does not exist: the nearest name and the list."""
    names = [row.name for row in rows]
    close = nearest(name, names)
    hint = f"{close} " if close.startswith("did you mean") else ""
    return f"there is no such recipe; {hint}possible: {', '.join([*names, NONE])}"


def protocol_name(row: PublishedRecipe) -> str:
    """The data set and protocol of a row in words: "ActivityNet Captions val_1, every sentence is a caption"."""
    unit = UNITS.get(row.captions, "")
    return f"{dataset_name(row.dataset)} {row.protocols[0]}" + (f", {unit}" if unit else "")


def of_corpus(row: PublishedRecipe, protocol: Mapping[str, Any] | None) -> bool:
    """Whether a corpus was imported as the data set and protocol of a row; protocol: `Corpus.protocol`, if any."""
    if protocol is None:
        return False
    names = [f"{dataset_name(row.dataset)} {each}" for each in row.protocols]
    unit = UNITS.get(row.captions, "")
    return protocol.get("name") in names and unit in str(protocol.get("sentence", ""))


def fitting(
    rows: Sequence[PublishedRecipe], protocol: Mapping[str, Any] | None, given: Mapping[str, Any]
) -> PublishedRecipe | None:
    """The published row of a corpus that a method is run with where its experiment names none; None without one.

    Of several rows (headers, ablations) it is the one that agrees with most of the `given` settings, of equals the
    first. One that trains nothing is chosen only where `epochs = 0` is given, without weights to start from.
    """
    untrained = given.get("epochs") == 0 and not given.get("weights")
    possible = [
        row for row in rows if row.published and of_corpus(row, protocol) and (row.trained or untrained)
    ]
    return max(possible, key=lambda row: _agreement(row, given), default=None)


def _agreement(row: PublishedRecipe, given: Mapping[str, Any]) -> int:
    """The number of given settings that a row has too, less those that it has otherwise."""
    filled = row.filled()
    return sum(1 if filled[name] == value else -1 for name, value in given.items() if name in filled)


@dataclass(frozen=True)
class Choice:
    """The row whose settings a method of an experiment takes, if any, and the reason in one sentence."""

    row: PublishedRecipe | None
    sentence: str
    settings: Tree = field(default_factory=dict)  # what the row gives, before the experiment's own
    named: bool = False  # by the experiment, not by its corpus
    advice: str = ""  # what to write instead of an older word

    @property
    def extractors(self) -> Mapping[str, Tree]:
        """Settings of extraction stages that the row needs."""
        return self.row.extractors if self.row else {}


def choose(
    method: str, given: Mapping[str, Any], protocol: Mapping[str, Any] | None = None, extra: str = ""
) -> Choice:
    """The recipe of a method: the one that its `given` settings name, else that of the corpus's `protocol`.

    Raises UserError for a recipe or trajectory that does not exist, with the setting's full name.
    """
    rows, name = recipes(method, extra), given.get("recipe", "")
    trajectory = given.get("trajectory", TRAJECTORIES[0])
    where = f"trainers.{method}"
    if trajectory not in TRAJECTORIES:
        raise UserError(
            f"{where}.trajectory = {trajectory!r} is not possible: {nearest(str(trajectory), TRAJECTORIES)}"
        )
    preset = given.get("preset") if method in PRESETS else None
    if preset is not None:
        by_preset = _of_preset(method, preset, rows)
        if not name:
            return by_preset
        raise UserError(
            f'{where}.recipe = "{name}" and {where}.preset = "{preset}" both choose the settings: leave out preset, an '
            "older word for recipe"
        )
    if name == NONE:
        return Choice(None, f"no recipe, as {where}.recipe says: the method's defaults")
    if name:
        try:
            row = find(method, str(name), extra)
        except UserError as error:
            raise UserError(f"{where}.recipe = {name!r} is not possible: {error}") from None
        return _chosen(row, trajectory, f"{where}.recipe says", named=True) if row else Choice(None, "")
    if given.get("weights"):
        return Choice(None, f"no recipe, because {where}.weights were trained with settings of their own")
    row = fitting(rows, protocol, given)
    corpus = str(protocol.get("name", "")) if protocol else ""
    if row is None:
        return Choice(None, _why_none(where, rows, protocol))
    return _chosen(row, trajectory, f'the corpus is {corpus} ({where}.recipe = "none" leaves it out)')


def _chosen(row: PublishedRecipe, trajectory: Trajectory, why: str, named: bool = False) -> Choice:
    differs = row.filled("release") != row.filled("stable")
    words = f"recipe {row.name}{f', trajectory {trajectory}' if differs else ''}, because {why}; {about(row)}"
    return Choice(row, words, row.filled(trajectory), named)


def _of_preset(method: str, preset: object, rows: Sequence[PublishedRecipe]) -> Choice:
    """The row of an older `preset`, which never said anything of a trajectory."""
    where = f"trainers.{method}"
    try:
        row = find(method, str(preset))
    except UserError as error:
        raise UserError(f"{where}.preset = {preset!r} is not possible: {error}") from None
    if row is None:
        raise UserError(f"{where}.preset = {preset!r} is not possible: {unknown(str(preset), rows)}")
    advice = f'{where}.preset = "{preset}" is an older word: write recipe = "{row.name}"'
    words = f"recipe {row.name}, because {where}.preset says; {about(row)}"
    return Choice(row, words, row.settings, named=True, advice=advice)


def about(row: PublishedRecipe) -> str:
    """Where the settings of a row are from, in words that call nothing published which nobody published."""
    if not row.published:
        return row.note
    return f"settings of {row.source}" + (f" ({row.note})" if row.note else "")


def _why_none(where: str, rows: Sequence[PublishedRecipe], protocol: Mapping[str, Any] | None) -> str:
    if protocol is None:
        return "no recipe, because the corpus is of no published experiment: the method's defaults"
    ours = next((row for row in rows if not row.published and of_corpus(row, protocol)), None)
    offer = f'; {where}.recipe = "{ours.name}" takes settings of ours' if ours else ""
    return (
        f"no recipe, because nobody published this method's settings for {protocol.get('name')}: "
        f"the method's defaults{offer}"
    )


def from_preset(method: str, data: Any) -> Any:
    """Settings with those of an older `preset` instead of the word, as configs that were stored with one need them.

    Raises ValueError for a preset that does not exist.
    """
    if not isinstance(data, Mapping) or "preset" not in data:
        return data
    rest = {name: value for name, value in data.items() if name != "preset"}
    try:
        row = find(method, str(data["preset"]))
    except UserError as error:
        raise ValueError(f"preset = {data['preset']!r}: {error}") from None
    return {**row.settings, "recipe": row.name, **rest} if row else rest


@cache
def _read(path: Path) -> tuple[PublishedRecipe, ...]:
    tree = read_toml(path)
    usual = tree.get("methods", {})
    rows = []
    for number, own in enumerate(tree.get("recipes", []), 1):
        whole = _merged(usual.get(own.get("method"), {}), own)
        rows.append(fill(PublishedRecipe, whole, f"{path.name}: recipe {number}"))
    for row in rows:
        if row.dataset not in _datasets():
            raise UserError(
                f"{path.name}: {row.method} has the data set {row.dataset!r}; {nearest(row.dataset, _datasets())}"
            )
    return tuple(rows)


def _merged(usual: Mapping[str, Any], own: Mapping[str, Any]) -> Tree:
    """What all rows of a method have, and a row's own values, which win; tables are merged."""
    return {**usual, **own} | {
        key: {**value, **own[key]} for key, value in usual.items() if isinstance(value, dict) and key in own
    }


@cache
def _datasets() -> Mapping[str, str]:
    return dict(read_toml(BUILT_IN)["datasets"])
