"""Runs recorded numerical cases of the methods through our own implementation, a line per quantity.

A case is a .json file with tensors beside it. Its content says which method it belongs to, never its name. A case
that no method understands is a failure, because a case left out would pass for one that agrees.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError

from pipeline.errors import ItemError, UserError, nearest
from trainers.registry import METHODS

T = TypeVar("T")  # a type of tensors; this module imports no torch

BROKEN = (UserError, ItemError, OSError, LookupError, ValueError, TypeError, RuntimeError, SafetensorError)
"""Exceptions that a damaged or unsuitable case can raise while it runs."""


@dataclass(frozen=True)
class Quantity:
    """One compared quantity: the largest error relative to the largest expected value, and the tolerance."""

    name: str
    error: float
    tolerance: float
    note: str = ""
    skipped: bool = False

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = ("skip" if self.skipped else "ok") if self.ok else "FAIL"
        note = f"  {self.note}" if self.note else ""
        return f"{verdict:4}  {self.name:60}  {self.error:9.2e}  (allowed {self.tolerance:.2e}){note}"


@dataclass(frozen=True)
class CaseResult:
    """A case with all its quantities."""

    path: Path
    method: str
    quantities: list[Quantity]

    @property
    def ok(self) -> bool:
        """Whether every quantity is within its tolerance, and there is one."""
        return bool(self.quantities) and all(quantity.ok for quantity in self.quantities)


class MethodVerify(Protocol):
    """Interface of the module that a method names as its `cases`."""

    def understands(self, case: Mapping[str, Any]) -> bool:
        """Whether the content of a .json file is a case of the method."""
        ...

    def run(self, path: Path, case: Mapping[str, Any]) -> Iterator[Quantity]:
        """Every quantity of the case."""
        ...


@runtime_checkable
class ReadsFolders(Protocol):
    """Interface of such a module if the data of its cases include .json files."""

    def data(self, path: Path, case: Mapping[str, Any]) -> Collection[Path]:
        """The folders of a case's data; what is in them and below is no case."""
        ...


def verify(folder: Path, method: str | None = None, device: str = "cpu") -> Iterator[CaseResult]:
    """The result of each case in and below a folder, in the order of their paths, computed on `device`.

    With a method named, every .json file must be a case of it, except those in a folder that bears another
    method's name. Raises UserError if there is no case at all.
    """
    if method is not None and (method not in METHODS.names() or not METHODS.find(method).cases):
        raise UserError(f"no cases of a method {method!r} can be run; {nearest(method, _with_cases())}")
    paths = [
        path
        for path in sorted(folder.rglob("*.json"))
        if method is None or not _of_another(path, folder, method)
    ]
    paths = _without_data(paths, method)
    if not paths:
        raise UserError(f"there is no .json file in {folder} or below, so there is no case to run")
    for path in paths:
        yield run_case(path, method, device)


def run_case(path: Path, method: str | None = None, device: str = "cpu") -> CaseResult:
    """The result of one case; an error that prevents it is a failed quantity."""
    try:
        case = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return _failed(path, method or "?", f"cannot be read: {error}")
    name = _method_of(case, method)
    if name is None:
        return _failed(path, method or "?", "is no case that is understood here")
    quantities: list[Quantity] = []
    try:
        module = _module(name)
        with importlib.import_module("trainers.verify.tensors").computing_on(device):
            quantities.extend(module.run(path, case))
    except BROKEN as error:
        quantities.append(failure("case", f"cannot be run: {type(error).__name__}: {error}"))
    return CaseResult(path, name, quantities)


def compare(name: str, computed: ArrayLike, expected: ArrayLike, allowed: float, note: str = "") -> Quantity:
    """The greatest absolute difference against the absolute error `allowed`, both over the greatest value expected.

    A wrong shape is an infinite error; so is a NaN.
    """
    a, b = as_numbers(computed), as_numbers(expected)
    if a.shape != b.shape:
        return failure(name, f"shape {a.shape}, expected {b.shape}")
    if b.size == 0:
        return Quantity(name, 0.0, allowed, note)
    scale = float(np.abs(b).max()) or 1.0
    error = float(np.abs(a - b).max())
    return Quantity(name, error / scale if np.isfinite(error) else np.inf, allowed / scale, note)


def as_numbers(values: ArrayLike) -> NDArray[np.float64]:
    """The values as float64, also of a tensor that lies on a GPU."""
    detach = getattr(values, "detach", None)  # this module imports no torch
    return np.asarray(detach().cpu() if detach is not None else values, dtype=np.float64)


def same(name: str, computed: object, expected: object) -> Quantity:
    """Whether two values, not numbers alone, are equal."""
    if computed == expected:
        return Quantity(name, 0.0, 0.0)
    return failure(name, f"{str(computed)[:80]} instead of {str(expected)[:80]}")


def skipped(name: str, note: str) -> Quantity:
    """A quantity that cannot be compared here and is no failure, for a file that the case does not hold."""
    return Quantity(name, 0.0, 0.0, f"skipped: {note}", skipped=True)


def failure(name: str, note: str) -> Quantity:
    """A quantity that fails for a reason that has no number."""
    return Quantity(name, float("inf"), 0.0, note)


def worst(name: str, quantities: list[Quantity]) -> Iterator[Quantity]:
    """Several alike quantities as one: the one with the largest error in units of its tolerance."""
    if quantities:
        computed = max(quantities, key=lambda q: q.error / max(q.tolerance, 1e-300))
        note = f"worst of {len(quantities)}: {computed.name} {computed.note}".rstrip()
        yield Quantity(name, computed.error, computed.tolerance, note)


class Recorded(Generic[T]):
    """The tensors of a case. It remembers which were read: a tensor that no check reads must fail, not pass."""

    def __init__(self, tensors: Mapping[str, T]) -> None:
        self.tensors = tensors
        self.read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> T:
        self.read.add(name)
        return self.tensors[name]

    def get(self, name: str) -> T | None:
        """The tensor of that name, if there is one."""
        if name not in self:
            return None
        return self[name]

    def names(self, prefix: str) -> list[str]:
        """The names that begin with a prefix, without the prefix."""
        return [name.removeprefix(prefix) for name in self.tensors if name.startswith(prefix)]

    def under(self, prefix: str) -> dict[str, T]:
        """The tensors whose names begin with a prefix, by the rest of their name."""
        return {name: self[prefix + name] for name in self.names(prefix)}

    def left(self) -> Iterator[Quantity]:
        """A failure for each tensor that no check has read."""
        for name in sorted(set(self.tensors) - self.read):
            yield failure(name, "this quantity is not understood")


def _failed(path: Path, method: str, note: str) -> CaseResult:
    return CaseResult(path, method, [failure("case", note)])


def _without_data(paths: list[Path], method: str | None) -> list[Path]:
    """The .json files that are no data of a case beside them; a case among the data stays one."""
    folders: set[Path] = set()
    cases = set()
    for path in paths:
        try:
            case = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # running it gives a failed quantity with the reason
        name = _method_of(case, method)
        if name is not None:
            cases.add(path)
            module = _module(name)
            folders.update(module.data(path, case) if isinstance(module, ReadsFolders) else ())
    return [path for path in paths if path in cases or not folders.intersection(path.parents)]


def _method_of(case: Any, method: str | None) -> str | None:
    """The method that understands a case, the one named alone if one is."""
    return next((m for m in ([method] if method else _with_cases()) if _understood(m, case)), None)


def _with_cases() -> Iterator[str]:
    """The methods that have a module which runs cases; each is looked up when its turn comes, those built in first."""
    return (name for name in METHODS.names() if METHODS.find(name).cases)


def _understood(method: str, case: Any) -> bool:
    return isinstance(case, dict) and _module(method).understands(case)


def _module(method: str) -> MethodVerify:
    module: MethodVerify = importlib.import_module(METHODS.find(method).cases)
    return module


def _of_another(path: Path, folder: Path, method: str) -> bool:
    """Whether a file lies, below the folder, in one named like another method."""
    parts = path.relative_to(folder).parts[:-1]
    return method not in parts and any(part in METHODS.names() for part in parts)
