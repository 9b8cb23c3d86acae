"""Hubness: how unevenly the top places of all rankings fall on the gallery, one row a method and direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.report.leaderboard import DIRECTIONS
from flows.report.wording import kind_of, titles


@dataclass(frozen=True)
class HubnessRow:
    """The figures of one method in one direction, as printed. N_k: in how many top k a member stands."""

    method: str
    title: str
    skewness: str
    anti_hubs: str  # of the members, those without a place
    most: str  # the largest N_k, and the mean
    hubs: str  # of the places, those held by hubs


@dataclass(frozen=True)
class HubnessTable:
    """All methods under one k."""

    k: int
    rows: tuple[HubnessRow, ...]


def hubness_tables(measured: Mapping[str, Mapping[str, Any]]) -> list[HubnessTable]:
    """A table for each k there is, directions one after the other; measured: metrics.json by method."""
    found = [
        (method, titles(kind_of(report["protocol"]))[direction], report["hubness"][direction])
        for direction in DIRECTIONS
        for method, report in measured.items()
        if direction in report.get("hubness", {})
    ]
    return [
        HubnessTable(k, tuple(_row(method, title, told) for method, title, told in found if told["k"] == k))
        for k in sorted({told["k"] for _, _, told in found}, reverse=True)
    ]  # fmt: skip


def _row(method: str, title: str, told: Mapping[str, float]) -> HubnessRow:
    return HubnessRow(
        method,
        title,
        skewness=f"{told['skewness']:.2f}",
        anti_hubs=f"{100 * told['anti_hub_share']:.1f} %",
        most=f"{told['most']:,} (mean {told['mean']:.1f})",
        hubs=f"{100 * told['hub_share']:.1f} %",
    )
