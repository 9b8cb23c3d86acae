"""Names of splits, ratios, and an id's split that depends on the id alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.splits import SPLITS, Shares, dealt, empty_splits, nearest_split, split_named
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["train", "Training", "TRN", "train set", "trainset", " train "]),
        ("val", ["val", "valid", "Validation", "validate", "dev", "dev-set", "dev_split", "development"]),
        ("test", ["test", "testing", "TEST", "tst", "testset"]),
    ],
)
def test_the_usual_names_mean_a_split(split, names):
    assert {split_named(name) for name in names} == {split}


@pytest.mark.parametrize("name", ["tset", "fold1", "eval", "", "test2", "trainval", "val_1"])
def test_other_names_mean_none(name):
    assert split_named(name) is None


def test_the_nearest_split_is_named():
    assert (
        nearest_split("Tets") == "did you mean 'test'?" and nearest_split("x") == "possible: test, train, val"
    )


@pytest.mark.parametrize(
    ("ratio", "shares"),
    [("70:15:15", (0.7, 0.15, 0.15)), ("0.8/0.1/0.1", (0.8, 0.1, 0.1)), ("1,0,1", (0.5, 0, 0.5)),
     ("1 0 0", (1, 0, 0)), (" 6:2:2 ", (0.6, 0.2, 0.2))],
)  # fmt: skip
def test_a_ratio_is_shares_that_add_up_to_one(ratio, shares):
    found = Shares.parse(ratio)
    assert (found.train, found.val, found.test) == pytest.approx(shares)


@pytest.mark.parametrize(
    "ratio", ["", "70:30", "0:1:1", "-1:1:1", "a:b:c", "nan:1:1", "1:1:1:1", "1e999:1:1"]
)
def test_a_ratio_that_is_none_is_one_sentence(ratio):
    with pytest.raises(UserError, match="three numbers for train, val and test are needed"):
        Shares.parse(ratio)


def test_ids_fall_into_the_splits_by_their_shares():
    counts = Counter(dealt(f"clip{n}") for n in range(10_000))
    for split, share in zip(SPLITS, (0.7, 0.15, 0.15), strict=True):
        assert abs(counts[split] / 10_000 - share) < 0.015  # 3 standard deviations of the largest


def test_the_split_of_an_id_is_the_same_for_ever():
    """These values are those of every corpus that was imported: another rule would move its items."""
    first = "val train train test train val train val train train test test"
    assert [dealt(f"clip{n}") for n in range(12)] == first.split()


@given(st.text(st.characters(exclude_categories=("Cs",))), st.floats(0, 0.3), st.floats(0, 0.3))
def test_a_larger_share_of_val_takes_nothing_from_test(name, val, more):
    before, after = (Shares(1 - 0.2 - v, v, 0.2) for v in (val, val + more))
    assert (dealt(name, before) == "test") == (dealt(name, after) == "test")


def test_a_split_without_items_is_said_unless_its_share_is_none():
    (sentence,) = empty_splits(5, {"train", "test"}, Shares())
    assert (
        sentence.startswith("no item fell into the split val: 5 items without a split")
        and "70:15:15" in sentence
    )
    assert (
        empty_splits(5, {"train", "test"}, Shares(0.5, 0, 0.5)) == empty_splits(0, {"train"}, Shares()) == []
    )
