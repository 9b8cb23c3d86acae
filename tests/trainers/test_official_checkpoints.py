"""What is no checkpoint of a method's authors is one sentence, whatever the file holds, for every method."""

from __future__ import annotations

import importlib
import struct

import pytest
import torch

from pipeline.errors import UserError

METHODS = ("clip4clip", "gare", "h2arn", "hlformer", "neighborretr")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "name", ["absurd.safetensors", "absurd.pt", "short.pt", "folder.pt", "none.pt", "wide.pt"]
)
def test_a_file_that_is_no_checkpoint_is_one_sentence(tmp_path, method, name, monkeypatch):
    path = tmp_path / name
    if name == "folder.pt":
        path.mkdir()
    elif name == "wide.pt":
        monkeypatch.setattr("extractors.backbones.tensor_files.SMALL_BYTES", 2**20)
        torch.save({"state_dict": {"a": torch.ones(1).expand(2**20)}}, path)
    elif name != "none.pt":
        path.write_bytes({"absurd": struct.pack("<Q", 2**62) + b"{}", "short": b"\x80\x02"}[path.stem])
    official = importlib.import_module(f"trainers.{method}.official")
    with pytest.raises(UserError) as error:
        official.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
