"""Time and disk that missing work will take, from what earlier runs on this store took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flows.project import Project
from pipeline.run.plan import State
from pipeline.store.store import Store, tree_bytes

RUNS_READ = 50


@dataclass(frozen=True)
class Expected:
    """Seconds and bytes to expect; None where this stage never ran here."""

    seconds: float | None = None
    bytes: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def estimate(project: Project, states: Mapping[str, State]) -> dict[str, Expected]:
    """What each stage's missing units will take."""
    store = project.store
    seconds, units = _rates(store)
    out = {}
    for name, state in states.items():
        todo = len(state.missing)
        if not todo:
            out[name] = Expected(0.0, 0.0)
            continue
        each = seconds[name] / units[name] if units.get(name) else None
        size = _bytes_each(store, name, state)
        out[name] = Expected(None if each is None else each * todo, None if size is None else size * todo)
    return out


def _rates(store: Store) -> tuple[dict[str, float], dict[str, int]]:
    seconds: dict[str, float] = {}
    units: dict[str, int] = {}
    for run in store.index.runs(RUNS_READ):
        for report in run["summary"].get("reports", []):
            if report["ran"] and not report.get("shared_with"):  # its time is that of another stage's pass
                seconds[report["stage"]] = seconds.get(report["stage"], 0.0) + report["seconds"]
                units[report["stage"]] = units.get(report["stage"], 0) + report["ran"]
    return seconds, units


def _bytes_each(store: Store, name: str, state: State) -> float | None:
    """Mean bytes of a unit over everything this stage made in the store."""
    if state.stage.over == "corpus":
        sizes = [tree_bytes(folder) for folder in (store.root / "runs" / name).glob("*")]
        return sum(sizes) / len(sizes) if sizes else None
    items, size = store.index.stage_totals(name)
    return size / items if items else None
