"""Places of units as arrays: the same answers as a table of them, for digests and for any other keys."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.places import NOWHERE, Place, Places, TablePlaces, Units, place_table

DIGESTS = st.integers(0, 40).map(lambda n: hashlib.blake2b(b"%d" % n, digest_size=16).hexdigest())
NAMES = st.one_of(DIGESTS, st.text(min_size=1, max_size=4))
ROWS = st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.one_of(st.none(), st.integers(0, 2**40)))


@given(st.lists(DIGESTS, unique=True), st.lists(DIGESTS))
def test_positions_of_digests_are_those_of_a_table(keys: list[str], asked: list[str]) -> None:
    units = Units(keys)
    assert units.positions(asked).tolist() == [keys.index(k) if k in keys else NOWHERE for k in asked]


@given(st.lists(NAMES, unique=True), st.lists(NAMES))
def test_other_keys_than_digests_are_found_too(keys: list[str], asked: list[str]) -> None:
    units = Units(keys)
    assert units.positions(asked).tolist() == [keys.index(k) if k in keys else NOWHERE for k in asked]


def test_digests_that_share_half_of_their_digits_are_distinguished() -> None:
    half = "0123456789abcdef"
    keys = [half + "f" * 16, half + "0" * 16, "f" * 32]
    units = Units(keys)
    assert units.positions([keys[1], keys[2], keys[0], half + "1" * 16]).tolist() == [1, 2, 0, NOWHERE]


def test_upper_case_is_another_key() -> None:
    assert Units(["a" * 32]).positions(["A" * 32]).tolist() == [NOWHERE]


@given(st.lists(DIGESTS, unique=True, min_size=1), st.dictionaries(DIGESTS, ROWS))
def test_places_answer_as_a_table_of_them(
    keys: list[str], rows: dict[str, tuple[str, int, int | None]]
) -> None:
    units = Units(keys)
    places = Places.of(units, ((key, *row) for key, row in rows.items()))
    table = {key: Place(*rows[key]) for key in keys if key in rows}
    assert dict(places) == table and len(places) == len(table)
    assert [key in places for key in keys] == [key in table for key in keys]
    assert units.chosen(~places.there) == [key for key in keys if key not in table]
    assert dict(places.without(["a"])) == {k: p for k, p in table.items() if p.segment != "a"}
    kept = places.with_files(lambda key: 7)
    assert dict(kept) == {k: p for k, p in table.items() if p.file_bytes == 7}


@given(st.lists(DIGESTS), st.dictionaries(DIGESTS, ROWS))
def test_a_table_of_places_holds_those_of_the_keys_and_each_path_once(
    keys: list[str], rows: dict[str, tuple[str, int, int | None]]
) -> None:
    places = Places.of(Units(rows), ((key, *row) for key, row in rows.items()))
    table = json.loads(json.dumps(place_table(places, keys, lambda segment: f"/store/{segment}.h5")))
    found = TablePlaces(table)
    assert found == {key: (f"/store/{rows[key][0]}.h5", rows[key][1]) for key in keys if key in rows}
    assert [key in found for key in keys] == [key in rows for key in keys]
    assert list(found) == [key for key in dict.fromkeys(keys) if key in rows]
    assert (
        len(table["segments"])
        == len({*table["segments"]})
        == len({rows[key][0] for key in keys if key in rows})
    )


def test_no_units_have_no_places() -> None:
    places = Places.of(Units([]), [("a" * 32, "s", 0, None)])
    assert not places and not places.there.any() and np.size(Units([]).positions(["a" * 32])) == 1
