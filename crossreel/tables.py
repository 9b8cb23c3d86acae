"""Rows of named values, which pandas and polars take as a frame where they are installed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas
    import polars


class Table(Sequence[dict[str, Any]]):
    """Rows as dictionaries with the same keys, in `columns`."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self._rows = [{name: row.get(name) for name in columns} for row in rows]

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # numbers and slices, as for a list
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def column(self, name: str) -> list[Any]:
        """The values of one column."""
        return [row[name] for row in self._rows]

    def where(self, **values: Any) -> Table:
        """The rows that have these values: `table.where(metric="R@1", direction="t2v")`."""
        for name in values:
            if name not in self.columns:
                raise UserError(f"the table has no column {name!r}; possible: {', '.join(self.columns)}")
        rows = (row for row in self._rows if all(row[name] == value for name, value in values.items()))
        return Table(rows, self.columns)

    def pandas(self) -> pandas.DataFrame:
        """The rows as a frame of pandas, which must be installed."""
        return _library("pandas").DataFrame(self._rows, columns=list(self.columns))

    def polars(self) -> polars.DataFrame:
        """The rows as a frame of polars, which must be installed."""
        return _library("polars").DataFrame({name: self.column(name) for name in self.columns})

    def __repr__(self) -> str:
        cells = [list(self.columns), *([_cell(row[name]) for name in self.columns] for row in self._rows)]
        widths = [max(len(row[place]) for row in cells) for place in range(len(self.columns))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells
        ]
        return "\n".join(line.rstrip() for line in lines)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(f"{name} is not installed; `pip install {name}` gives frames of it") from None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


METRIC_COLUMNS = (
    "run",
    "split",
    "direction",
    "metric",
    "value",
    "low",
    "high",
    "chance",
    "queries",
    "gallery",
)


def metric_rows(run: str, leaderboard: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield a row for each metric of leaderboard rows, with its 95 % interval and the value of chance."""
    for row in leaderboard:
        for name, figure in row["metrics"].items():
            yield {
                "run": run, "split": row["split"], "direction": row["direction"], "metric": name, **figure,
                "chance": row["chance"].get(name), "queries": row["queries"], "gallery": row["gallery"],
            }  # fmt: skip
