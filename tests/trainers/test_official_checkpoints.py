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


ODD = {
    "numbers for names": {1: torch.ones(2)},
    "a number for the tensors": {"state_dict": 3},
    "numbers for names of tensors": {"state_dict": {1: torch.ones(2)}},
    "a list": [torch.ones(2)],
    "words for numbers": {"state_dict": {"a": torch.ones(2)}, "epoch": "first", "model_val": 3, "config": 4},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_a_checkpoint_of_another_structure_is_one_sentence(tmp_path, method, content):
    path = tmp_path / "odd.pt"
    torch.save(content, path)
    official = importlib.import_module(f"trainers.{method}.official")
    try:
        read = official.read(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:  # H2ARN's checkpoints have their state dict under a key, which "words for numbers" has too
        assert method == "h2arn" and set(read) == {"a"}
