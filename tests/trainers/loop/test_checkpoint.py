from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import UserError
from trainers.loop import checkpoint
from trainers.loop.optim import BertAdam
from trainers.loop.snapshots import Snapshots

TENSORS = {
    "half": torch.randn(3, 2).to(torch.bfloat16),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False]),
}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def updated(optimizer: torch.optim.Optimizer, model: nn.Module, updates: int) -> None:
    torch.manual_seed(1)
    for _ in range(updates):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()


def test_what_is_saved_comes_back_with_every_type_and_bit(tmp_path: Path) -> None:
    meta = {"text": "é", "number": 0.1 + 0.2, "nothing": None, "list": [1, 2.5]}
    checkpoint.save(tmp_path / "a", TENSORS, meta)
    tensors, found = checkpoint.load(tmp_path / "a")
    assert equal(tensors, TENSORS) and found == meta


def test_tied_weights_and_views_of_one_buffer_are_saved_each_whole(tmp_path: Path) -> None:
    buffer = torch.arange(6.0)
    tensors = {"a": buffer[:3], "b": buffer[2:], "c": buffer, "d": buffer.reshape(2, 3).T}
    checkpoint.save(tmp_path / "a", tensors, {})
    assert equal(checkpoint.load(tmp_path / "a")[0], tensors)


def test_a_changed_byte_anywhere_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "a"
    checkpoint.save(path, TENSORS, {"epoch": 3})
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            tensors, meta = checkpoint.load(path)
        except checkpoint.DamagedCheckpoint as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert equal(tensors, TENSORS) and meta == {"epoch": 3}
    assert refused > 0.9 * len(whole)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_file_cut_short_is_refused_by_name(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a"
    checkpoint.save(path, TENSORS, {})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(checkpoint.DamagedCheckpoint, match="a is damaged: "):
        checkpoint.load(path)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    checkpoint.save(path, TENSORS, {"epoch": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, TENSORS, {"epoch": 2})
    assert checkpoint.load(path)[1] == {"epoch": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: BertAdam(p, lr=0.01, total_steps=20),
        lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    ],
)
def test_an_optimizer_restored_from_disk_goes_on_with_the_same_bits(tmp_path: Path, make) -> None:
    model = nn.Linear(3, 2)
    optimizer = make(model.parameters())
    updated(optimizer, model, 3)
    tree, tensors = checkpoint.flatten(optimizer.state_dict(), "optimizer")
    checkpoint.save(tmp_path / "a", tensors, {"tree": tree})
    twin = nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    fresh = make(twin.parameters())
    tensors, meta = checkpoint.load(tmp_path / "a")
    state = checkpoint.unflatten(meta["tree"], tensors)
    assert state["param_groups"] == optimizer.state_dict()["param_groups"]  # tuples stay tuples
    fresh.load_state_dict(state)
    updated(optimizer, model, 3)
    updated(fresh, twin, 3)
    assert equal(twin.state_dict(), model.state_dict())


def test_a_state_that_is_no_number_text_or_tensor_is_refused_by_its_place() -> None:
    with pytest.raises(TypeError, match=r"optimizer\.groups\.0\.schedule is a function"):
        checkpoint.flatten({"groups": [{"schedule": lambda x: x}]}, "optimizer")


def test_weights_of_a_method_come_back_with_what_was_said_of_them(tmp_path: Path) -> None:
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    checkpoint.save_weights(tmp_path / "w", model, {"epoch": 4})
    assert checkpoint.load_weights(tmp_path / "w", twin) == {"epoch": 4}
    assert equal(twin.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (
            {"weight": torch.zeros(2, 3), "biases": torch.zeros(2)},
            "the tensor bias is missing; did you mean 'biases'",
        ),
        (
            {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)},
            r"the tensor weight is \(2, 4\), \(2, 3\) is needed",
        ),
        (
            {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "scale": torch.zeros(1)},
            "the tensor scale is not known",
        ),
    ],
)
def test_weights_that_do_not_fit_change_nothing_and_name_the_first_misfit(
    tmp_path: Path, tensors: dict[str, torch.Tensor], sentence: str
) -> None:
    model = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint.save(tmp_path / "w", tensors, {})
    with pytest.raises(UserError, match=sentence):
        checkpoint.load_weights(tmp_path / "w", model)
    assert equal(dict(model.state_dict()), before)


def test_missing_and_damaged_weights_are_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights at"):
        checkpoint.load_weights(tmp_path / "w", nn.Linear(3, 2))
    (tmp_path / "w").write_bytes(b"no weights at all")
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load_weights(tmp_path / "w", nn.Linear(3, 2))


def test_best_weights_stay_as_long_as_a_checkpoint_speaks_of_them(tmp_path: Path) -> None:
    snapshots, model = Snapshots(tmp_path), nn.Linear(3, 2)
    for epoch in (1, 2, 3):
        snapshots.save_best(model, epoch, {"figure": float(epoch)})
        snapshots.save(TENSORS, {}, epoch)
    kept = sorted(path.name for path in tmp_path.glob("best-*"))
    assert kept == ["best-0002.safetensors", "best-0003.safetensors"]
    snapshots.save(TENSORS, {}, 3)
    assert [path.name for path in tmp_path.glob("best-*")] == ["best-0003.safetensors"]


def test_what_only_a_run_under_way_needs_is_not_taken_from_another_run(tmp_path: Path) -> None:
    class Queue(nn.Module):
        passing = True

        def __init__(self, length: int) -> None:
            super().__init__()
            self.register_buffer("rows", torch.arange(length))

    def made(length: int) -> nn.ModuleDict:
        return nn.ModuleDict({"linear": nn.Linear(2, 2), "queue": Queue(length)})

    trained, fresh = made(5), made(3)
    checkpoint.save_weights(tmp_path / "weights.safetensors", trained, {})
    checkpoint.load_weights(tmp_path / "weights.safetensors", fresh)
    assert torch.equal(fresh["linear"].weight, trained["linear"].weight)
    assert fresh["queue"].rows.tolist() == [0, 1, 2]
