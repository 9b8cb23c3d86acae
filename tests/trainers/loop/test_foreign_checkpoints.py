"""Somebody else's checkpoint that is none, or was shaped to do harm, is one sentence for every method."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

import pytest

from pipeline.child import resolve
from pipeline.errors import UserError

METHODS = ("hlformer", "neighborretr", "gare", "h2arn")


def _zip(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, content)
    return out.getvalue()


FILES = {
    "absurd header": struct.pack("<Q", 2**62) + b"{}",
    "header beyond the end": struct.pack("<Q", 10**6) + b"{}",
    "header that is no JSON": struct.pack("<Q", 2) + b"[[",
    "nothing": b"",
    "text": b"hello\n",
    "pickle of a list": pickle.dumps([1, 2]),
    "pickle of a call": b"cposix\nsystem\n(S'true'\ntR.",
    "pickle cut short": pickle.dumps({"state_dict": list(range(99))})[:40],
    "pickle of an absurd size": b"\x80\x02\x8e" + struct.pack("<Q", 2**62),
    "archive without data": _zip("x", b""),
    "archive of garbage": _zip("archive/data.pkl", b"\x80\x02garbage"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("name", FILES)
def test_whatever_the_file_is_the_error_is_one_sentence_that_names_it(tmp_path, name, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(FILES[name])
    for method in METHODS:
        with pytest.raises(UserError) as error:
            resolve(f"trainers.{method}.official:read")(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_folder_or_missing_file_is_named(tmp_path):
    for method in METHODS:
        read = resolve(f"trainers.{method}.official:read")
        with pytest.raises(UserError, match="there is no checkpoint"):
            read(tmp_path / "gone.ckpt")
        with pytest.raises(UserError, match="is not a checkpoint that can be read"):
            read(tmp_path)
