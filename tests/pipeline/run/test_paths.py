"""Paths of the coordinator are translated on a node that mounts the shared folders elsewhere."""

from __future__ import annotations

import json

import pytest

from pipeline.errors import UserError
from pipeline.run.engines.paths import VARIABLE, PathMap

REQUEST = {
    "store": "/data/store",
    "units": [{"key": "k", "name": "/data", "text": "/data/x", "media": "/data/clips/a.mp4",
               "rows": {"compress": ["/data/store/x", 3]}}],
    "options": "{}",
    "stages": [{"entry": "a:b", "params": '{"weights": "/data/w", "size": 3}', "keys": ["/datax/k"]}],
}  # fmt: skip


def test_paths_are_replaced_wherever_they_stand(monkeypatch):
    monkeypatch.setenv(VARIABLE, "/data=/mnt/nfs:/data/store=/fast/")
    translated = PathMap.from_environment().applied(REQUEST)
    assert translated["store"] == "/fast"
    (unit,) = translated["units"]
    assert unit["name"] == "/data" and unit["text"] == "/data/x"
    assert unit["media"] == "/mnt/nfs/clips/a.mp4" and unit["rows"] == {"compress": ["/fast/x", 3]}
    (stage,) = translated["stages"]
    assert json.loads(stage["params"]) == {"weights": "/mnt/nfs/w", "size": 3}
    assert stage["keys"] == ["/datax/k"] and stage["entry"] == "a:b"


def test_without_the_variable_nothing_changes(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert PathMap.from_environment().applied(REQUEST) is REQUEST


@pytest.mark.parametrize("text", ["/data", "data=/mnt", "/data=mnt"])
def test_what_is_not_a_pair_of_paths_is_refused(monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UserError, match=f"{VARIABLE} holds '{text}'"):
        PathMap.from_environment()
