"""`crossreel store push` and `pull`: what they say, how they end, and what a second store need not make again."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.store.fields import Field
from pipeline.store.fingerprint import Fingerprint
from pipeline.store.store import Store

FP = Fingerprint.of({"stage": "made", "version": 1})
FIELDS = {"row": Field("float32", (None, 3))}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one segment and one finished folder."""
    store = Store(tmp_path / "store")
    with store.writer("made", FP, FIELDS) as writer:
        writer.append("a" * 32, "one", {"row": np.ones((4, 3), np.float32)})
        kept, path = dict(writer.items), writer.finish()
    assert path is not None
    store.index.add_fingerprint(FP.hex, "made", FP.components)
    store.index.add_segment(path.stem, FP.hex, path.stat().st_size, kept)
    run = Fingerprint.of({"stage": "train-x"})
    store.work_folder("train-x", run.hex).mkdir(parents=True)
    (store.work_folder("train-x", run.hex) / "weights").write_bytes(b"w" * 1000)
    store.publish("train-x", run, 1.0, {})
    store.index.close()
    return store.root


def test_both_verbs_say_what_went_over_and_what_was_there(store, tmp_path, crossreel):
    shelf, other = tmp_path / "shelf", tmp_path / "other"
    dry = crossreel("store", "push", shelf, "--store", store, "--dry-run")
    assert "1 segments, 1 folders" in dry.out and "would be sent, 0 were there already" in dry.out
    assert not shelf.exists()
    sent = crossreel("store", "push", shelf, "--store", store)
    assert (sent.code, sent.out.replace("would be sent", "sent")) == (
        0,
        dry.out.replace("would be sent", "sent"),
    )
    assert (
        "0 segments, 0 folders, 0 B sent, 2 were there already"
        in crossreel("store", "push", shelf, "--store", store).out
    )
    told = crossreel("store", "pull", f"file://{shelf}", "--store", other, "--stage", "made", "--json")
    outcome = json.loads(told.out)
    assert (outcome["segments"], outcome["folders"], outcome["failed"]) == (1, 0, [])
    assert "0 segments, 1 folders" in crossreel("store", "pull", shelf, "--store", other).out
    assert crossreel("store", "verify", other).code == 0


def test_a_damaged_object_ends_with_3_and_its_name(store, tmp_path, crossreel):
    shelf, other = tmp_path / "shelf", tmp_path / "other"
    crossreel("store", "push", shelf, "--store", store)
    (weights,) = (path for path in shelf.glob("data/*/*") if path.stat().st_size == 1000)
    weights.write_bytes(b"v" * 1000)
    told = crossreel("store", "pull", shelf, "--store", other)
    assert told.code == 3 and f"{weights} does not have the digest" in told.out
    assert "1 segments, 0 folders" in told.out and "1 failed" in told.out
    told = crossreel("store", "pull", shelf, "--store", other, "--json")
    assert told.code == 3 and json.loads(told.out)["failed"][0]["name"].endswith("/weights")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["push", "{store}/work", "--store", "{store}"], "lies in the store itself"),
        (["push", "{shelf}", "--store", "{shelf}"], "is not a store"),
        (["push", "{shelf}", "--store", "{store}", "--stage", "maid"], "did you mean 'made'?"),
        (
            ["push", "{shelf}", "--store", "{store}", "--experiment", "a.toml"],
            "give --store or --experiment, not both",
        ),
        (
            ["push", "{shelf}", "--store", "{store}", "--endpoint-url", "http://127.0.0.1:1"],
            "is for s3:// URLs",
        ),
        (["pull", "{shelf}", "--store", "{store}"], "holds nothing that `crossreel store push` has written"),
        (["pull", "{shelf}", "--store", "{store}", "--stage", "made"], "has nothing of a stage 'made'"),
    ],
)
def test_mistakes_are_one_sentence_and_end_with_2(store, tmp_path, crossreel, arguments, said):
    told = crossreel("store", *(a.format(store=store, shelf=tmp_path / "shelf") for a in arguments))
    assert told.code == 2 and said in told.err and len(told.err.strip().splitlines()) == 1


# against an S3 server, and with real stages ---------------------------------------------------------------

missing = [name for name in ("s3fs", "moto", "flask") if importlib.util.find_spec(name) is None]
needs_s3 = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server on this machine with a bucket `shelf`, and credentials for it in the environment."""
    from moto.server import ThreadedMotoServer

    for name, value in (
        ("AWS_ACCESS_KEY_ID", "made"), ("AWS_SECRET_ACCESS_KEY", "up"), ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"), ("NO_PROXY", "127.0.0.1"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    import boto3

    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="shelf")
    yield f"http://{host}:{port}"
    server.stop()


def objects(endpoint: str) -> dict[str, int]:
    import boto3

    pages = (
        boto3.client("s3", endpoint_url=endpoint).get_paginator("list_objects_v2").paginate(Bucket="shelf")
    )
    return {one["Key"]: one["Size"] for page in pages for one in page.get("Contents", [])}


@needs_s3
@pytest.mark.slow
@pytest.mark.long
def test_what_one_store_pushed_to_s3_a_second_need_not_make(made, tmp_path, endpoint):
    """Killed in the middle on both ways; then a run in the second store runs no stage at all."""
    s3 = ("s3://shelf/lab", "--endpoint-url", endpoint)
    made.killed(
        lambda: bool(objects(endpoint)), "store", "push", *s3, "--experiment", made.toml, "--jobs", "1"
    )
    sent = made.run("store", "push", *s3, "--experiment", made.toml, "--json")
    assert sent.code == 0, sent.err
    there = made.run("store", "push", *s3, "--store", made.store)
    assert there.code == 0 and "0 B sent" in there.out

    second = type(made)(tmp_path / "second", made.mark)
    shutil.copytree(made.folder, second.folder, ignore=shutil.ignore_patterns("store", "second"))
    work = second.store / "work"
    second.killed(
        lambda: work.exists() and any(work.rglob("*.*")),
        "store",
        "pull",
        *s3,
        "--experiment",
        second.toml,
        "-j",
        "1",
    )
    fetched = second.run("store", "pull", *s3, "--experiment", second.toml, "--json")
    assert fetched.code == 0, fetched.err
    assert second.run("store", "verify", second.store).code == 0
    told = json.loads(second.run("stage", "evaluate", second.toml, "--json").out)
    names = {"compress", "clip", "clip_text", "train-hlformer", "evaluate-hlformer"}
    assert told["stages_ran"] == 0 and names <= {stage["stage"] for stage in told["stages"]}


@needs_s3
@pytest.mark.slow
def test_large_objects_go_in_parts_and_a_damaged_one_is_reported(tmp_path, endpoint, crossreel):
    store = Store(tmp_path / "store")
    run = Fingerprint.of({"stage": "train-x"})
    work = store.work_folder("train-x", run.hex)
    work.mkdir(parents=True)
    content = os.urandom(40_000_000)
    (work / "weights").write_bytes(content)
    store.publish("train-x", run, 1.0, {})
    store.index.close()
    s3 = ("s3://shelf/a b/c", "--endpoint-url", endpoint)
    told = crossreel("store", "push", *s3, "--store", store.root)
    assert told.code == 0 and "0 segments, 1 folders, 40.0 MB sent" in told.out, told
    assert crossreel("store", "pull", *s3, "--store", tmp_path / "other").code == 0
    assert (tmp_path / "other" / "runs" / "train-x" / run.hex / "weights").read_bytes() == content
    import boto3

    (key,) = (key for key, size in objects(endpoint).items() if size == len(content))
    boto3.client("s3", endpoint_url=endpoint).put_object(Bucket="shelf", Key=key, Body=content[:-1] + b"?")
    told = crossreel("store", "pull", *s3, "--store", tmp_path / "third")
    assert told.code == 3 and "does not have the digest that was announced" in told.out


@needs_s3
@pytest.mark.slow
@pytest.mark.parametrize("case", ["bucket", "server", "credentials"])
def test_an_s3_server_that_does_not_help_is_one_sentence(
    store, tmp_path, endpoint, crossreel, monkeypatch, case
):
    url = "s3://nowhere/x" if case == "bucket" else "s3://shelf/x"
    if case == "server":
        endpoint = "http://127.0.0.1:9"
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore waits longer before each of five
    if case == "credentials":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))
    told = crossreel("store", "pull", url, "--endpoint-url", endpoint, "--store", store)
    assert told.code == 2 and url in told.err and len(told.err.strip().splitlines()) == 1, told.err
