"""The table behind the failure browser: its figures, filters and orders, and what it costs for 30,000 queries."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pytest

from flows.serve.ranks.choice import SORTS, Choice, chosen_rows, crossed
from flows.serve.ranks.confusions import confusions, hubs
from flows.serve.ranks.table import RankTable
from flows.serve.ranks.tables import Tables
from flows.serve.ranks.texts import Texts
from pipeline.errors import UserError

ITEMS, CAPTIONS = 12, 2
QUERIES = ITEMS * CAPTIONS


def lengths(keys: Collection[str]) -> np.ndarray:
    return np.arange(len(keys), dtype=np.float32) + 1


def tables_of(
    given: Any, usual: dict[str, str] | None = None, reasons: dict[str, str] | None = None
) -> Tables:
    return Tables(given.store, given.contents, usual or {}, lengths, reasons or {}, given.store.root.parent)


def drawn(seed: int) -> np.ndarray:
    """Scores (Q, V) that are good for half of the queries."""
    random = np.random.default_rng(seed)
    scores = random.normal(size=(QUERIES, ITEMS))
    own = np.repeat(np.arange(ITEMS), CAPTIONS)
    scores[np.arange(QUERIES), own] += random.integers(0, 2, QUERIES) * 3
    return scores


def ranks_of(scores: np.ndarray) -> np.ndarray:
    """The slow twin: each rank by counting."""
    own = np.repeat(np.arange(ITEMS), CAPTIONS)
    return np.array(
        [1 + sum(score > row[item] for score in row) for row, item in zip(scores, own, strict=True)]
    )


@pytest.fixture
def evaluated(given: Callable[..., Any]) -> tuple[Any, RankTable, list[np.ndarray]]:
    lab = given(ITEMS, CAPTIONS, {3: "A dog, and a very long caption with eleven words in it"})
    scores = [drawn(0), drawn(1), drawn(2)]
    lab.evaluate("one", scores[0], seed=0)
    lab.evaluate("two", scores[1])
    lab.evaluate("one", scores[2], made="b", seed=5, queries=slice(4, None))
    return lab, tables_of(lab).table("test"), [ranks_of(each) for each in scores]


def test_every_run_of_the_store_is_a_column_with_its_ranks_and_what_it_has_otherwise(
    evaluated: tuple[Any, RankTable, list[np.ndarray]],
) -> None:
    _, table, ranks = evaluated
    assert sorted(name.split("@")[0] for name in table.names) == ["one", "one", "two"]
    by_seed = {column.run.differs or column.run.name: column for column in table.columns}
    older = next(column for name, column in by_seed.items() if name == "seed 0 (5)")
    assert "@" in older.run.name and older.rank.tolist() == ranks[0].tolist()
    assert table.column("two").rank.tolist() == ranks[1].tolist()
    newest = table.column("one").rank
    assert np.isnan(newest[:4]).all() and newest[4:].tolist() == ranks[2][4:].tolist()


def test_the_usual_run_has_the_name_of_its_method(evaluated: tuple[Any, RankTable, list[np.ndarray]]) -> None:
    lab, table, ranks = evaluated
    older = next(column.run for column in table.columns if column.run.differs == "seed 0 (5)")
    again = tables_of(lab, {"one": older.fingerprint}).table("test")
    assert again.column("one").rank.tolist() == ranks[0].tolist() and again.names[0] == "one"
    assert next(c.run.differs for c in again.columns if c.run.name.startswith("one@")) == "seed 5 (0)"


@pytest.mark.parametrize("sort", SORTS)
def test_an_order_is_that_of_sorting_the_queries_one_by_one(
    evaluated: tuple[Any, RankTable, list[np.ndarray]], sort: str
) -> None:
    _, table, _ = evaluated
    pair = {"a": "one", "b": "two"}
    shown = chosen_rows(table, Choice(runs=("one", "two"), sort=sort, **pair)).tolist()
    a, b = (table.column(name).rank.astype(float) for name in ("one", "two"))

    def figure(row: int) -> float:
        words, seconds = len(table.rows.captions[row].split()), float(table.seconds[table.rows.item[row]])
        found = {
            "order": row, "worst": -np.fmin(a[row], b[row]), "best": np.fmin(a[row], b[row]),
            "disagreement": -abs(np.log2(a[row] / b[row])), "gain": -np.log2(b[row] / a[row]), "rank": -a[row],
            "words": -words, "seconds": -seconds,
        }  # fmt: skip
        return float(found[sort])

    figures = [figure(row) for row in shown]
    ranked = [each for each in figures if not np.isnan(each)]
    assert sorted(shown) == list(range(QUERIES)) and ranked == sorted(ranked)
    assert all(np.isnan(each) for each in figures[len(ranked) :]), "queries without the figure come last"


def test_filters_are_those_of_asking_each_query(evaluated: tuple[Any, RankTable, list[np.ndarray]]) -> None:
    _, table, _ = evaluated
    a, b, rows = table.column("one"), table.column("two"), table.rows
    first = a.first[:, 0]
    expected = {
        Choice(found=("one",), missed=("two",)): (a.rank <= 1) & (b.rank > 1),
        Choice(missed=("one", "two"), k=5): (a.rank > 5) & (b.rank > 5),
        Choice(words=(6, 20)): rows.words >= 6,
        Choice(seconds=(2, 4)): (rows.item >= 1) & (rows.item <= 3),
        Choice(runs=("one",), failed=True): np.arange(QUERIES) < 4,
        Choice(text="DOG"): np.arange(QUERIES) == 3,
        Choice(text="item1"): np.isin(rows.item, [1, 10, 11]),
        Choice(item=rows.keys[3].decode()): rows.item == 3,
        Choice(a="two", taken=rows.keys[5].decode()): b.first[:, 0] == 5,
        Choice(a="one", hub=True): (first >= 0) & a.hub[first],
    }
    for choice, mask in expected.items():
        assert chosen_rows(table, choice).tolist() == np.flatnonzero(mask).tolist(), choice
    assert all(mask.any() for mask in list(expected.values())[:-1])


def test_what_is_not_there_is_named(evaluated: tuple[Any, RankTable, list[np.ndarray]]) -> None:
    lab, table, _ = evaluated
    with pytest.raises(
        UserError, match="no run 'four' is evaluated on the split 'test'; these are: one, two"
    ):
        chosen_rows(table, Choice(runs=("four",)))
    with pytest.raises(UserError, match=r"sorted by 'worse'; .*worst"):
        chosen_rows(table, Choice(sort="worse"))
    with pytest.raises(UserError, match="no item of the split 'test' has that key"):
        chosen_rows(table, Choice(item="0" * 32))
    with pytest.raises(UserError, match="no split 'none'; it has test"):
        tables_of(lab).table("none")


def test_found_by_both_one_or_none_adds_up_to_the_queries_that_both_ranked(
    evaluated: tuple[Any, RankTable, list[np.ndarray]],
) -> None:
    _, table, ranks = evaluated
    counts = crossed(table, Choice(a="one", b="two", k=2))
    a, b = ranks[2][4:] <= 2, ranks[1][4:] <= 2
    assert counts == {"both": sum(a & b), "only_a": sum(a & ~b), "only_b": sum(~a & b), "none": sum(~a & ~b)}


def test_a_query_that_no_run_ranked_says_why(given: Callable[..., Any]) -> None:
    lab = given(4, 1)
    lab.evaluate("one", np.eye(4), queries=slice(0, 3))
    table = tables_of(lab, reasons={"item3": "compress: it is broken"}).table("test")
    assert table.failed == {3: "compress: it is broken"}


def test_items_that_are_taken_for_others_and_hubs_are_counted(given: Callable[..., Any]) -> None:
    lab = given(ITEMS, CAPTIONS)
    scores = np.tile(
        np.arange(ITEMS, 0, -1) / 100, (QUERIES, 1)
    )  # without a match, the first items are the best
    scores[:, 11] = 2.0  # the item that every query finds first
    scores[np.arange(QUERIES), np.repeat(np.arange(ITEMS), CAPTIONS)] += 1.0
    scores[0, 3] = 9.0  # and one query of the item 0 finds the item 3
    lab.evaluate("one", scores)
    table = tables_of(lab).table("test")
    pairs = [
        (each.right, each.taken, each.count, each.of, each.back)
        for each in confusions(table, table.columns[0], 99)
    ]
    assert pairs[0][1:] == (11, 2, 2, 0) and (0, 3, 1, 2, 0) in pairs and (0, 11, 1, 2, 0) in pairs
    assert sum(count for *_, count, _, _ in pairs) == QUERIES - 2
    found = hubs(table, table.columns[0], 5)
    counts = table.columns[0].times
    assert [hub.item for hub in found] == [
        item for item in np.argsort(-counts, kind="stable") if counts[item] > counts.mean() + 2 * counts.std()
    ]
    assert all(hub.times == counts[hub.item] and hub.own == CAPTIONS for hub in found)


def test_a_run_that_is_finished_or_removed_meanwhile_is_noticed(given: Callable[..., Any]) -> None:
    lab = given(ITEMS, CAPTIONS)
    lab.evaluate("one", drawn(0))
    tables = tables_of(lab)
    assert tables.table("test").names == ["one"]
    two = lab.evaluate("two", drawn(1))
    assert sorted(tables.table("test").names) == ["one", "two"]
    lab.evaluate("three", drawn(2))
    shutil.rmtree(two)
    assert sorted(tables.table("test").names) == ["one", "three"]


def test_a_damaged_evaluation_is_left_out_with_a_note(given: Callable[..., Any]) -> None:
    lab = given(ITEMS, CAPTIONS)
    lab.evaluate("one", drawn(0))
    folder = lab.evaluate("two", drawn(1))
    ranking = folder / "ranking.safetensors"
    ranking.write_bytes(bytes(ranking.stat().st_size))  # of the recorded size, so that only reading shows it
    table = tables_of(lab).table("test")
    assert table.names == ["one"]
    (note,) = table.notes
    assert (
        note.startswith("two is left out: ")
        and "is damaged" in note
        and str(lab.store.root.parent) not in note
    )


def test_texts_are_found_in_any_case_and_never_across_two_of_them() -> None:
    texts = Texts(["a Dog", "", "ÄPFEL and dogs", "do", "g"])
    assert [texts[n] for n in range(5)] == ["a Dog", "", "ÄPFEL and dogs", "do", "g"]
    assert texts.containing("dog").tolist() == [True, False, True, False, False]
    assert texts.containing("äpfel").tolist() == [False, False, True, False, False]
    assert texts.word_counts().tolist() == [2, 0, 3, 1, 1]


@pytest.mark.slow
def test_30000_queries_are_sorted_and_filtered_within_a_fifth_of_a_second(given: Callable[..., Any]) -> None:
    lab = given(300, 100)
    random = np.random.default_rng(0)
    for number in range(5):
        lab.evaluate(f"method{number}", random.random((30_000, 300), np.float32))
    tables = tables_of(lab)
    table = tables.table("test")
    slowest = 0.0
    for sort in SORTS:
        for choice in (
            Choice(sort=sort),
            Choice(sort=sort, text="item 7", found=("method0",), missed=("method1",), k=100),
        ):
            started = time.process_time()
            rows = chosen_rows(tables.table("test"), choice)
            slowest = max(slowest, time.process_time() - started)
            assert len(rows)
    # CPU seconds: on a busy machine the time on the clock says how busy it is
    print(f"slowest choice among {len(table.rows.captions):,} queries of 5 runs: {1000 * slowest:.0f} ms")
    assert slowest < 0.2
