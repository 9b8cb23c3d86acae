"""Tensor files of somebody else: whatever they hold, they are read as tensors or refused in one sentence."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
import torch

from extractors.backbones import clip_weights, tensor_files, weights
from extractors.backbones.tensor_files import NotTensors, read
from pipeline.errors import UserError


def test_what_torch_wrote_comes_back(tmp_path):
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "steps": 3, "inner": [torch.ones(2)]}
    torch.save(state, tmp_path / "a.pt")
    for mapped in (False, True):
        found = read(tmp_path / "a.pt", mapped)
        torch.testing.assert_close(found["a.weight"], state["a.weight"])
        assert found["steps"] == 3
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.testing.assert_close(read(tmp_path / "old.pt", mapped=True)["inner"][0], torch.ones(2))


@pytest.mark.parametrize("name", ["absurd.safetensors", "absurd.pt", "short.pt", "text.pt", "archive.pt"])
def test_what_is_something_else_is_one_sentence(tmp_path, name):
    path = tmp_path / name
    if name == "archive.pt":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "no tensors")
    else:
        path.write_bytes(
            {"absurd": struct.pack("<Q", 2**62) + b"{}", "short": b"\x80\x02", "text": b"hello"}[path.stem]
        )
    with pytest.raises(NotTensors) as error:
        read(path)
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


def test_an_archive_with_compressed_parts_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as source, zipfile.ZipFile(tmp_path / "b.pt", "w") as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part), zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(torch, "load", lambda *args, **rest: pytest.fail("it was unpacked"))
    with pytest.raises(NotTensors, match=r"a/data\.pkl is compressed, which torch never writes"):
        read(tmp_path / "b.pt")


def test_a_tensor_of_more_numbers_than_are_stored_is_refused(tmp_path, monkeypatch):
    torch.save(
        {"inner": {"w": torch.ones(1, 8).expand(2**20, 8)}, "mask": torch.ones(1).expand(77)},
        tmp_path / "a.pt",
    )
    assert read(tmp_path / "a.pt")["mask"].shape == (77,)  # 32 MiB are small
    monkeypatch.setattr(tensor_files, "SMALL_BYTES", 2**20)
    with pytest.raises(
        NotTensors, match=r"the tensor inner\.w of shape \(1048576, 8\) takes 33554432 bytes, 32 are stored"
    ):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize("load", [weights.read_state, clip_weights.read], ids=["vgg16 and clouds", "clip"])
def test_weights_with_more_numbers_than_are_stored_are_refused_for_every_network(tmp_path, monkeypatch, load):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(1, 8).expand(2**20, 8)}, path)
    monkeypatch.setattr(tensor_files, "SMALL_BYTES", 2**20)
    with (
        pytest.raises(UserError, match=r"a\.pt cannot be read as weights of a network: .* 32 are stored"),
        weights.fitting(path, "a network"),
    ):
        load(path)


def test_a_missing_file_is_the_systems_own_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.pt")
