"""Settings: TOML and --set become models, and what is wrong is one sentence with the nearest name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from pipeline.errors import UserError, is_full, nearest
from pipeline.settings import (
    DIGESTED,
    PACKS,
    PATH,
    SPEED,
    Faults,
    Options,
    Params,
    WrongSettings,
    apply_sets,
    fill,
    located,
    read_toml,
)


class Inner(Options):
    workers: int = Field(0, ge=0)


class Outer(Params):
    rate: float = 1.0
    name: str
    inner: Inner = Inner()
    block: Annotated[int, SPEED] = 64


class Deep(Options):
    depth: int = 0


class Several(Params):
    rate: float = 1.0
    inner: Deep = Deep()
    either: int | str = 1


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"name": "a", "raet": 2}, "unknown setting x.raet; did you mean 'rate'?"),
        ({"name": "a", "inner": {"worker": 2}}, "unknown setting x.inner.worker; did you mean 'workers'?"),
        ({}, "the setting x.name is required"),
        ({"name": "a", "rate": "fast"}, "x.rate = 'fast' is not possible: input should be a valid number"),
        ({"name": "a", "rate": float("nan")}, "x.rate = nan is not possible: input should be a finite number"),
        ({"name": "a", "inner": {"workers": -1}}, "x.inner.workers = -1 is not possible: .*greater than or equal"),
        ({"name": "a", "inner": 5}, "x.inner = 5 is not possible"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_sentence(tree: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        fill(Outer, tree, "x")


def test_all_wrong_settings_are_told_at_once_and_each_once() -> None:
    tree = {"rate": "x", "inner": {"worker": 2, "depth": []}, "either": {}}
    with pytest.raises(WrongSettings) as caught:
        fill(Several, tree, "x")
    begins = ["x.rate = 'x'", "x.inner.depth = []", "unknown setting x.inner.worker", "x.either.int = {}"]
    assert all(map(str.startswith, sorted(caught.value.sentences), sorted(begins)))
    first, *rest = str(caught.value).splitlines()
    assert first == "4 settings have to be changed:" and len(rest) == 4 and rest[1].startswith("  2. ")


def test_faults_of_several_tables_are_one_error_and_other_errors_pass() -> None:
    faults, made = Faults(), []
    for tree in ({"rate": "x"}, {"inner": {"depth": 2}}, {"rat": 1}):
        with faults:
            made.append(fill(Several, tree, "x"))
    assert [one.inner.depth for one in made] == [2]
    with pytest.raises(
        WrongSettings, match=r"(?s)^2 settings.*1\. x\.rate = 'x'.*2\. unknown setting x\.rat;"
    ):
        faults.require_none()
    with pytest.raises(UserError, match="another"), Faults():
        raise UserError("another")
    Faults().require_none()


def test_what_changes_only_speed_is_not_decisive() -> None:
    assert Outer(name="a", block=1).decisive() == Outer(name="a", block=2).decisive()
    assert Outer(name="a").decisive() != Outer(name="b").decisive()


def test_a_set_reaches_into_tables_and_makes_them() -> None:
    tree = {"run": {"workers": 1}, "name": "x"}
    out = apply_sets(
        tree, ["run.workers=2", "trainers.m.lr=1e-3", "name=plain words", 'extract=["a", "b"]', "flag=true"]
    )
    assert out == {
        "run": {"workers": 2}, "name": "plain words", "trainers": {"m": {"lr": 1e-3}},
        "extract": ["a", "b"], "flag": True,
    }  # fmt: skip
    assert tree == {"run": {"workers": 1}, "name": "x"}  # a copy was changed


@given(value=st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False))
def test_a_set_keeps_the_type_of_a_value(value: Any) -> None:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    assert apply_sets({}, [f"a.b={text}"]) == {"a": {"b": value}}


class Base(Params):
    size: Annotated[int, PACKS] = Field(3, ge=1)
    file: Annotated[str, PATH, DIGESTED] = "a"
    block: Annotated[int, SPEED] = 64
    rate: float = 1.0


class Derived(Base):
    size: int = Field(5, ge=2)  # another default, without the annotation
    more: Annotated[int, PACKS] = 1


def test_what_a_setting_does_is_read_off_its_annotation_also_where_a_subclass_declares_it_again() -> None:
    assert Base.marked(PACKS) == {"size"} and Derived.marked(PACKS) == {"size", "more"}
    assert Derived.marked(SPEED, DIGESTED) == {"block", "file"} and Derived.marked(PATH) == {"file"}
    assert Derived().decisive() == {"size": 5, "rate": 1.0, "more": 1}
    with pytest.raises(UserError, match=r"x\.size = 1 is not possible"):
        fill(Derived, {"size": 1}, "x")


class Weights(Params):
    weights: Annotated[str, PATH] = ""
    note: str = ""


@pytest.mark.parametrize(
    ("value", "there"),
    [
        ("model.t7", True),
        ("model_{area}.t7", True),
        ("area_{area}/model_{area}.t7", True),
        ("[odd]_{area}.t7", True),
        ("none_{area}.t7", False),
        ("model_?.t7", False),  # the braces alone stand for something
        ("model_{}.t7", False),
        ("seed:0", False),
        ("", False),
    ],
)
def test_a_file_beside_the_experiment_is_found_from_elsewhere(
    value: str, there: bool, tmp_path: Path
) -> None:
    (tmp_path / "area_6").mkdir()
    for name in ("model.t7", "model_6.t7", "area_6/model_6.t7", "[odd]_6.t7", "o_6.t7"):
        (tmp_path / name).touch()
    found = located({"weights": value, "note": "model.t7"}, Weights, tmp_path)
    assert found == {"weights": str(tmp_path / value) if there else value, "note": "model.t7"}


def test_a_folder_with_brackets_in_its_name_hides_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "[1]"
    folder.mkdir()
    (folder / "model_1.t7").touch()
    found = located({"weights": "model_{area}.t7"}, Weights, folder)
    assert found == {"weights": str(folder / "model_{area}.t7")}


@pytest.mark.parametrize("text", ["a", "=1", "a..b=1", ".a=1"])
def test_a_set_of_no_form_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not of the form"):
        apply_sets({}, [text])


def test_a_set_below_a_value_is_refused() -> None:
    with pytest.raises(UserError, match="'name' is a value, not a table"):
        apply_sets({"name": "x"}, ["name.first=1"])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "no experiment file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "is not UTF-8"),
        (lambda path: path.write_text("a = \n"), r"not valid TOML: .*line 1"),
        (lambda path: path.symlink_to(path), "cannot be read"),
    ],
)
def test_what_is_no_toml_is_one_sentence(make: Any, sentence: str, tmp_path: Path) -> None:
    make(tmp_path / "e.toml")
    with pytest.raises(UserError, match=sentence):
        read_toml(tmp_path / "e.toml")


def test_the_nearest_name_is_suggested_and_else_all_are() -> None:
    assert nearest("clpi", ["clip", "compress"]) == "did you mean 'clip'?"
    assert nearest("zzz", ["b", "a"]) == "possible: a, b"
    assert nearest("zzz", []) == "there is none"


def test_a_full_disk_is_known_by_number_and_by_words() -> None:
    assert is_full(OSError(28, "x")) and is_full(OSError(122, "x"))
    assert is_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert is_full("database or disk is full")
    assert not is_full(OSError(13, "Permission denied")) and not is_full(ValueError("full of errors"))
