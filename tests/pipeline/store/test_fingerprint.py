"""Fingerprints: equal where the components are, different where any differs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.fingerprint import Fingerprint, differences, digest_file, digest_of, digest_text

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
TABLES = st.dictionaries(st.text(max_size=3), PLAIN, max_size=4)


@given(table=TABLES)
def test_the_order_of_keys_does_not_count(table: dict[str, Any]) -> None:
    backwards = dict(reversed(table.items()))
    assert Fingerprint.of(backwards).hex == Fingerprint.of(table).hex


@given(table=TABLES, key=st.text(max_size=3), value=PLAIN)
def test_another_component_is_another_fingerprint_and_is_the_difference(
    table: dict[str, Any], key: str, value: Any
) -> None:
    other = table | {key: value}
    same = repr(sorted(other.items(), key=repr)) == repr(sorted(table.items(), key=repr))
    assert (Fingerprint.of(other).hex == Fingerprint.of(table).hex) or not same
    if not isinstance(value, dict) and table.get(key) != value:
        assert (key, table.get(key), value) in list(differences(table, other))
        assert Fingerprint.of(other).hex != Fingerprint.of(table).hex


def test_differences_descend_and_name_what_is_absent() -> None:
    mine = {"params": {"fps": 3.0, "crf": 23}, "version": 1, "weights": "a"}
    other = {"params": {"fps": 5.0, "crf": 23}, "version": 1, "ffmpeg": "7"}
    assert list(differences(mine, other)) == [
        ("ffmpeg", None, "7"), ("params.fps", 3.0, 5.0), ("weights", "a", None),
    ]  # fmt: skip
    assert list(differences(mine, mine)) == []


def test_a_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    (tmp_path / "b").write_bytes(b"x" * 100_000)
    expected = hashlib.blake2b(b"x" * 100_000, digest_size=16).hexdigest()
    assert digest_file(tmp_path / "a") == digest_file(tmp_path / "b") == expected


def test_a_text_is_known_by_its_characters() -> None:
    assert digest_text("é") != digest_text("e\u0301")
    assert len(digest_text("")) == 32


def test_what_is_not_a_number_has_no_digest() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_of({"lr": float("nan")})
