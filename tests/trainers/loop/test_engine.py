from __future__ import annotations

import json
import logging
import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import TrainingError, UserError
from trainers import compiler
from trainers.config import Recipe
from trainers.loop import checkpoint, curves, distributed
from trainers.loop.engine import FitResult, fit
from trainers.loop.gradients import MeanGradients
from trainers.loop.optim import BertAdam
from trainers.loop.progress import Progress
from trainers.loop.seeds import seed_everything
from trainers.method import Batch, Method

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
UNTIMED = dict.fromkeys(
    ("waiting", "training_seconds", "validation_seconds")
)  # what two equal runs differ in
ITEMS = 44  # batches of 8: the last one is partial


class Towers(Method):
    """Two linear towers; draws from every generator of random numbers in every step."""

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__()
        self.text, self.item, self.noise = nn.Linear(6, 4), nn.Linear(5, 4), noise
        self.before: Callable[[Batch, int], None] = lambda batch, epoch: None

    def losses(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        self.before(batch, epoch)
        scores = self._embed("text", batch) @ self._embed("item", batch).T / 0.1
        drawn = random.random() + np.random.rand()
        size = sum(weight.square().mean() for weight in self.parameters())
        target = torch.arange(len(scores))
        return {"nce": F.cross_entropy(scores, target), "decay": 0.01 * (1 + self.noise * drawn) * size}

    def _embed(self, side: str, batch: Batch) -> Tensor:
        rows = F.dropout(batch[side], self.noise, self.training)
        embedded = F.normalize(getattr(self, side)(rows), dim=-1)
        return distributed.gather_with_grad(embedded)


class Pairs:
    """Made pairs; an epoch's order is a function of (seed, epoch)."""

    def __init__(self, batch_size: int = 8) -> None:
        draw = torch.Generator().manual_seed(3)
        hidden = torch.randn(ITEMS, 3, generator=draw)
        self.text = hidden @ torch.randn(3, 6, generator=draw)
        self.item = hidden @ torch.randn(3, 5, generator=draw)
        self.batch_size = batch_size

    def train_steps(self, world: int = 1) -> int:
        return math.ceil(ITEMS / self.batch_size)

    def train_batches(self, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        order = np.random.default_rng([seed, epoch]).permutation(ITEMS)
        for start in range(0, ITEMS, self.batch_size):
            rows = np.array_split(order[start : start + self.batch_size], world)[rank]
            yield {"text": self.text[rows], "item": self.item[rows]}


def train(folder: Path, **changes: Any) -> tuple[FitResult, Towers]:
    """A run of the towers; a change named like a setting of the recipe changes the recipe."""
    settings = {name: changes.pop(name) for name in list(changes) if name in Recipe.model_fields}
    recipe = Recipe(**{"epochs": 4, "batch_size": 8, "lr": 0.01, "seed": 5} | settings)
    seed_everything(recipe.seed)
    data = changes.pop("data", None) or Pairs(recipe.batch_size)
    method = changes.pop("method", None) or Towers()
    make = changes.pop("optimizer", None)
    optimizer = make(method) if make else BertAdam(method.parameters(), lr=recipe.lr, total_steps=40)
    changes = {"validate": top_one(data), "figure": "R@1", "folder": folder, "device": CPU} | changes
    return fit(method, data, recipe, optimizer, **changes), method


def top_one(data: Pairs) -> Callable[[Method], dict[str, float]]:
    def validate(method: Method) -> dict[str, float]:
        assert not method.training
        scores = F.normalize(method.text(data.text), dim=-1) @ F.normalize(method.item(data.item), dim=-1).T
        np.random.rand()  # a validation may draw; what follows must not depend on where a run was broken
        right = (scores.argmax(1) == torch.arange(ITEMS)).double().mean()
        return {"R@1": 100 * float(right), "margin": float(scores.diag().mean() - scores.mean())}

    return validate


def figures(*values: float) -> Callable[[Method], dict[str, float]]:
    """A validation that gives these values in turn."""
    left = iter(values)
    return lambda method: {"R@1": next(left)}


def outcome(folder: Path) -> dict[str, Any]:
    """Everything a finished run must have in common with its unbroken twin."""
    tensors, meta = checkpoint.load(folder / "last.safetensors")
    best = sorted(folder.glob("best-*"))[-1]
    found: dict[str, Any] = {name: tensor.tolist() for name, tensor in tensors.items()}
    found["best"] = {name: tensor.tolist() for name, tensor in checkpoint.load(best)[0].items()}
    found["state"] = meta["state"] | {"seconds": None, "points": None}  # both hold measured times
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    found["state"]["history"] = found["history"] = [row | UNTIMED for row in rows]
    assert [row | UNTIMED for row in meta["state"]["history"]] == found["history"]
    return found | {"points": points(folder)}


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every TensorBoard point but the measured speeds, whose steps alone repeat."""
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    return {
        tag: [(e.step, 0.0 if tag.startswith("speed/") else e.value) for e in board.Scalars(tag)]
        for tag in board.Tags()["scalars"]
    }


class SameOrder(Pairs):
    """Pairs in the same order in every epoch, so that two epochs differ by what the method draws alone."""

    def train_batches(self, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        return super().train_batches(0, seed, rank, world)


@pytest.mark.parametrize("generator", [random.random, np.random.rand, lambda: torch.rand(()).item()])
def test_what_a_method_draws_depends_on_seed_and_epoch(
    tmp_path: Path, generator: Callable[[], float]
) -> None:
    def drawn(name: str, **recipe: Any) -> list[float]:
        """What the first step of each epoch draws."""
        first: dict[int, float] = {}

        def draw(batch: Batch, epoch: int) -> None:
            first.setdefault(epoch, generator())

        method = Towers()
        method.before = draw
        train(tmp_path / name, method=method, data=SameOrder(), **recipe)
        return list(first.values())

    one = drawn("one", epochs=3)
    assert len(set(one)) == 3  # with a seed without the epoch each would draw the same
    assert drawn("again", epochs=3) == one
    assert not set(drawn("other seed", epochs=3, seed=6)) & set(one)


def in_child(body: Callable[[], object]) -> int:
    """Start a process that does this alone; its id."""
    child = os.fork()
    if child == 0:
        try:
            body()
            os._exit(0)
        except SystemExit as stop:
            os._exit(int(stop.code or 0))
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(99)
    return child


def status(child: int) -> int:
    """The exit status of a child, minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(moment: int) -> None:
    """Kill this process at the moment-th rename, flush to disk, validation or step."""
    left = [moment]

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **named)

        return call

    Path.replace = watched(Path.replace)  # type: ignore[method-assign]
    os.fsync = watched(os.fsync)
    Towers.losses = watched(Towers.losses)  # type: ignore[method-assign]
    Towers.eval = watched(Towers.eval)  # type: ignore[method-assign]
    curves.Curves.add = watched(curves.Curves.add)  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("unbroken")
    child = in_child(lambda: (torch.set_num_threads(1), train(folder, checkpoint_steps=2, accumulate=2)))
    assert status(child) == 0
    return outcome(folder)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [*range(1, 40, 3), 47, 58, 70, 83, 97])
def test_a_run_killed_at_any_moment_and_resumed_ends_with_the_same_bits(
    tmp_path: Path, unbroken: dict[str, Any], moment: int
) -> None:
    def broken() -> None:
        die_at(moment)
        train(tmp_path, checkpoint_steps=2, accumulate=2)

    assert status(in_child(broken)) == -signal.SIGKILL
    train(tmp_path, checkpoint_steps=2, accumulate=2)
    assert outcome(tmp_path) == unbroken


def test_a_run_killed_again_and_again_from_outside_ends_with_the_same_bits(
    tmp_path: Path, unbroken: dict[str, Any]
) -> None:
    def slow() -> None:
        method = Towers()
        method.before = lambda batch, epoch: time.sleep(0.01)
        train(tmp_path, method=method, checkpoint_steps=2, accumulate=2)

    kills = 0
    for wait in (0.08, 0.11, 0.13, 0.17, 0.19, 0.23, 60.0):
        child, end = in_child(lambda: (seed_everything(5), slow())), time.monotonic() + wait
        while (
            time.monotonic() < end
            and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        kills += status(child) == -signal.SIGKILL
    assert kills >= 2
    assert outcome(tmp_path) == unbroken


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
@pytest.mark.parametrize("where", ["step", "validation"])
def test_a_signal_ends_the_step_writes_last_and_raises(
    tmp_path: Path, unbroken: dict[str, Any], number: int, error: type[BaseException], where: str
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    calls = []

    def send(*_: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        return {"R@1": 1.0}

    seed_everything(5)
    method, change = Towers(), {}
    if where == "step":
        method.before = send
    else:
        honest = top_one(Pairs())
        change = {"validate": lambda method: send() | honest(method)}
    with pytest.raises(error) as raised:
        train(tmp_path, method=method, accumulate=2, checkpoint_steps=2, **change)
    if error is SystemExit:
        assert raised.value.code == 143
    state = checkpoint.load(tmp_path / "last.safetensors")[1]["state"]
    assert (state["epoch"], state["step"]) == ((0, 2) if where == "step" else (1, 6))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    train(tmp_path, accumulate=2, checkpoint_steps=2)
    assert outcome(tmp_path) == unbroken


def test_a_damaged_last_checkpoint_is_refused_by_name_and_the_previous_one_used(
    tmp_path: Path, unbroken: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, checkpoint_steps=2, accumulate=2)
    last = tmp_path / "last.safetensors"
    data = bytearray(last.read_bytes())
    data[-5] ^= 255
    last.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        train(tmp_path, checkpoint_steps=2, accumulate=2)
    assert "last.safetensors is damaged: its content does not match its checksum" in caplog.text
    assert outcome(tmp_path) == unbroken


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, method = train(tmp_path)
    written = (tmp_path / "last.safetensors").stat().st_mtime_ns
    again, twin = train(tmp_path, validate=figures())
    assert again == first
    assert (tmp_path / "last.safetensors").stat().st_mtime_ns == written
    assert torch.equal(twin.text.weight, method.text.weight)


def test_a_run_with_other_settings_is_not_taken_up(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(UserError, match=r"holds a run with lr = 0\.01, not 0\.02"):
        train(tmp_path, lr=0.02)


def test_a_run_from_before_a_setting_existed_is_taken_up_with_what_it_was(tmp_path: Path) -> None:
    first, _ = train(tmp_path)
    for name in ("last", "previous"):
        tensors, meta = checkpoint.load(tmp_path / f"{name}.safetensors")
        del meta["settings"]["compile"]
        checkpoint.save(tmp_path / f"{name}.safetensors", tensors, meta)
    assert train(tmp_path)[0] == first
    with pytest.raises(UserError, match=r"holds a run with compile = False, not True"):
        train(tmp_path, compile=True)


class StillTowers(Towers):
    """Draws nothing: what Python draws in a step would be new code in every step."""

    def losses(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        text, item = (F.normalize(getattr(self, side)(batch[side]), dim=-1) for side in ("text", "item"))
        return {"nce": F.cross_entropy(text @ item.T / 0.1, torch.arange(len(text)))}


@pytest.mark.slow
@pytest.mark.skipif(bool(compiler.lack("cpu")), reason="needs a C++ compiler")
def test_compiled_losses_train_as_plain_ones_do(tmp_path: Path) -> None:
    one = StillTowers()
    other = deepcopy(one)
    plain, _ = train(tmp_path / "plain", method=one, epochs=2)
    compiled, _ = train(tmp_path / "compiled", method=other, epochs=2, compile=True)
    for mine, theirs in zip(compiled.history, plain.history, strict=True):
        assert mine["terms"] == pytest.approx(theirs["terms"], rel=1e-4)
    for mine, theirs in zip(other.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_only_the_setting_compiles_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda function: asked.append(function.__name__) or function)
    plain, _ = train(tmp_path / "plain")
    assert asked == []
    compiled, _ = train(tmp_path / "compiled", compile=True)
    assert asked == ["losses"]
    assert [row | UNTIMED for row in compiled.history] == [row | UNTIMED for row in plain.history]


@pytest.mark.parametrize(
    ("patience", "values", "epochs", "best"),
    [
        (0, [5, 5, 9], 2, 1),  # an equal figure is no better one
        (1, [5, 4, 6, 6, 6, 9], 5, 3),
        (2, [5, 4, 3, 6, 1, 1, 1, 9], 7, 4),
        (9, [1, 2, 3, 3], 4, 3),  # the epochs end first
    ],
)
def test_training_stops_after_more_than_patience_epochs_without_a_larger_figure(
    tmp_path: Path, patience: int, values: list[float], epochs: int, best: int
) -> None:
    total = len(values)
    result, method = train(tmp_path, patience=patience, epochs=total, validate=figures(*values))
    assert (result.epochs, result.best_epoch, result.stopped_early) == (epochs, best, epochs < total)
    assert result.validation == {"R@1": values[best - 1]}
    assert [row["best"] for row in result.history].count(True) == len(
        {*np.maximum.accumulate(values[:epochs])}
    )
    twin = Towers()
    assert checkpoint.load_weights(result.weights, twin)["epoch"] == best
    assert all(torch.equal(a, b) for a, b in zip(method.parameters(), twin.parameters(), strict=True))


def test_the_count_of_epochs_without_a_better_figure_survives_a_resumption(tmp_path: Path) -> None:
    def breaks(method: Method) -> dict[str, float]:
        raise KeyboardInterrupt

    given = [figures(5.0), figures(4.0)]
    for epoch_figures in given:
        todo = iter([epoch_figures, breaks])
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, patience=1, epochs=9, validate=lambda method, todo=todo: next(todo)(method))
    result, _ = train(tmp_path, patience=1, epochs=9, validate=figures(3.0))
    assert (result.epochs, result.best_epoch) == (3, 1)


def test_accumulated_small_batches_train_like_one_large_batch(tmp_path: Path) -> None:
    class Mean(Towers):  # of a loss that is a mean over the pairs, unlike one that contrasts them
        def losses(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
            return {"pull": (self.text(batch["text"]) - self.item(batch["item"])).square().mean()}

    def sgd(method: Method) -> torch.optim.Optimizer:
        return torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)

    weights = []
    for name, size, accumulate in (("small", 11, 2), ("large", 22, 1)):
        seed_everything(1)
        method = Mean()
        train(tmp_path / name, method=method, batch_size=size, accumulate=accumulate, optimizer=sgd)
        weights.append(checkpoint.load(tmp_path / name / "last.safetensors")[0]["model.text.weight"])
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


def test_the_last_update_of_an_epoch_is_the_mean_of_the_batches_left(tmp_path: Path) -> None:
    weights = []
    for name, accumulate in (("all", 6), ("more", 60)):  # six batches: both make one update an epoch
        train(tmp_path / name, accumulate=accumulate)
        weights.append(checkpoint.load(tmp_path / name / "last.safetensors")[0]["model.text.weight"])
    assert torch.equal(*weights)


def test_the_global_norm_of_the_gradients_is_bounded(tmp_path: Path) -> None:
    moved = []

    class Steps(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            grads = [p.grad for group in self.param_groups for p in group["params"]]
            moved.append(float(torch.cat([g.flatten() for g in grads]).norm()))

    for clip in (None, 0.05):
        train(
            tmp_path / str(clip), epochs=1, clip_norm=clip, optimizer=lambda m: Steps(m.parameters(), lr=1.0)
        )
    assert all(norm > 0.06 for norm in moved[:6])
    assert moved[6:] == pytest.approx([0.05] * 6, rel=1e-4)


def test_bf16_computes_in_bfloat16_and_keeps_float32_weights(tmp_path: Path) -> None:
    seen = []
    method = Towers()
    method.text.register_forward_hook(
        lambda module, inputs, output: seen.append((method.training, output.dtype))
    )
    result, _ = train(tmp_path, method=method, precision="bf16")
    assert {dtype for training, dtype in seen if training} == {torch.bfloat16}
    tensors, _ = checkpoint.load(tmp_path / "last.safetensors")
    assert {t.dtype for name, t in tensors.items() if name[0] in "mo"} == {torch.float32}
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_training_learns_the_made_pairs(tmp_path: Path) -> None:
    result, _ = train(tmp_path, epochs=8)
    assert result.validation["R@1"] > 5 * 100 / ITEMS  # five times chance
    assert result.history[-1]["terms"]["nce"] < 0.7 * result.history[0]["terms"]["nce"]


def poisoned(step: int, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Towers:
    """Towers whose losses are changed from the step-th on, counted from 1 over the whole run."""

    class Poisoned(Towers):
        done = 0

        def losses(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
            self.done += 1
            terms = super().losses(batch, epoch)
            return change(terms) if self.done >= step else terms

    return Poisoned()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_epoch_step_and_first_term(tmp_path: Path, value: float) -> None:
    method = poisoned(
        9, lambda terms: {"fine": terms["decay"], "bad": terms["nce"] * value, "worse": terms["nce"] * value}
    )
    with pytest.raises(TrainingError, match=rf"epoch 2, step 3: the loss term 'bad' is {value}"):
        train(tmp_path, method=method, accumulate=2)
    tensors, meta = checkpoint.load(tmp_path / "last.safetensors")
    assert meta["state"]["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_gradient_that_is_not_finite_names_its_parameter(tmp_path: Path) -> None:
    def slope(terms: dict[str, Tensor]) -> dict[str, Tensor]:
        return terms | {"root": (method.item.bias * 0).sum().sqrt()}  # 0, with an infinite slope

    method = poisoned(4, slope)
    with pytest.raises(TrainingError, match=r"epoch 1, step 4: the gradient of 'item\.bias' is not finite"):
        train(tmp_path, method=method, clip_norm=1.0)


def test_weights_that_are_not_finite_never_reach_a_checkpoint(tmp_path: Path) -> None:
    class Breaks(torch.optim.SGD):
        updates = 0

        def step(self, closure: Any = None) -> None:
            Breaks.updates += 1
            if Breaks.updates == 12:  # the last one of the second epoch
                self.param_groups[0]["params"][0].data[0, 0] = math.inf

    with pytest.raises(TrainingError, match=r"epoch 2, step 6: the weight 'text\.weight' is not finite"):
        train(tmp_path, optimizer=lambda m: Breaks(m.parameters(), lr=0.1))
    assert checkpoint.load(tmp_path / "last.safetensors")[1]["state"]["epoch"] == 1


def test_a_validation_figure_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="epoch 2: the validation figure 'R@1' is nan"):
        train(tmp_path, validate=figures(1.0, math.nan))


def test_data_with_fewer_batches_than_announced_is_an_error(tmp_path: Path) -> None:
    data = Pairs()
    data.train_steps = lambda world=1: 7  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="epoch 1 has 6 batches, 7 were announced"):
        train(tmp_path, data=data)


def test_curves_hold_every_term_rate_and_figure_once(unbroken: dict[str, Any]) -> None:
    found = unbroken["points"]
    updates = [6 * epoch + step for epoch in range(4) for step in (2, 4, 6)]
    for tag in ("loss/nce", "loss/decay", "loss/total", "optimizer/lr"):
        assert [step for step, _ in found[tag]] == updates
    for tag in ("validation/R@1", "validation/margin", "speed/steps_per_second"):
        assert [step for step, _ in found[tag]] == [6, 12, 18, 24]
    assert found["optimizer/lr"][0][1] == 0 and found["optimizer/lr"][1][1] > 0


def test_history_is_a_line_an_epoch_with_the_mean_of_each_term(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    method = poisoned(1, lambda terms: seen.append({k: v.item() for k, v in terms.items()}) or terms)
    result, _ = train(tmp_path, method=method)
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert rows == result.history and [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[1]["terms"]["nce"] == pytest.approx(np.mean([terms["nce"] for terms in seen[6:12]]))
    assert rows[1]["loss"] == pytest.approx(sum(rows[1]["terms"].values()))


def test_history_tells_the_seconds_of_the_steps_from_those_of_the_validation(tmp_path: Path) -> None:
    method = Towers()
    method.before = lambda batch, epoch: time.sleep(0.01)

    def slow(method: Method) -> dict[str, float]:
        time.sleep(0.2)
        return {"SumR": 1.0}

    result, _ = train(tmp_path, method=method, epochs=2, validate=slow, figure="SumR")
    for row in result.history:
        assert row["validation_seconds"] >= 0.2 and row["training_seconds"] >= 6 * 0.01
        assert row["training_seconds"] < result.seconds - 2 * 0.2


@pytest.mark.slow
def test_progress_is_reported_at_most_twice_a_second_and_at_the_end(tmp_path: Path) -> None:
    told: list[tuple[float, Progress]] = []
    method = Towers()
    method.before = lambda batch, epoch: time.sleep(0.06)
    train(tmp_path, method=method, on_progress=lambda progress: told.append((time.monotonic(), progress)))
    times = [at for at, _ in told]
    assert all(later - sooner >= 0.49 for sooner, later in pairwise(times[:-1]))
    first, last = told[0][1], told[-1][1]
    assert (first.epoch, first.step, first.steps, first.validation) == (1, 1, 6, {})
    assert (last.epoch, last.epochs, last.step, last.eta_seconds) == (4, 4, 6, 0.0)
    assert last.validation.keys() == {"R@1", "margin"} and last.loss == sum(last.terms.values())
    assert 0.5 * 8 / 0.06 < last.items_per_second < 8 / 0.06
    assert len(told) >= 3 and told[1][1].eta_seconds > 0.3


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, epochs=1)
    assert capfd.readouterr() == ("", "")


def test_gathered_rows_carry_the_gradient_of_the_joint_batch(
    from_processes: Callable[..., list[Any]],
) -> None:
    torch.manual_seed(0)
    rows, model = torch.randn(8, 5), nn.Linear(5, 4)
    unused = nn.Parameter(torch.zeros(2))

    def gradient(own: Tensor) -> None:
        joint = distributed.gather_with_grad(model(own))
        (joint @ joint.T).logsumexp(1).mean().backward()  # every row meets every other
        MeanGradients([*model.parameters(), unused]).finish()

    def body(rank: int) -> dict[str, Tensor | None]:
        gradient(rows[:3] if rank == 0 else rows[3:])  # unequal shares
        assert unused.grad is None
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    shared = from_processes(2, body)
    gradient(rows)
    for found in shared:
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-6)


def test_gradients_are_sent_while_others_are_computed_and_an_unused_one_counts_as_zero(
    from_processes: Callable[..., list[Any]],
) -> None:
    def body(rank: int) -> dict[str, Any]:
        torch.manual_seed(0)
        layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
        one_sided, nobodys = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        twin = deepcopy(layers)
        gradients = MeanGradients(
            [nobodys, *layers.parameters(), one_sided], bucket_bytes=80
        )  # about a layer
        sent: list[int] = []
        layers[0].weight.register_hook(lambda _: sent.append(gradients.sent))
        batch = torch.arange(8.0).view(2, 4)
        for _ in range(2):
            layers.zero_grad()
            one_sided.grad = None
            layers(batch + rank).square().mean().backward()  # the first of two accumulated batches
            with gradients.last_backward():
                loss = layers(batch + rank).square().mean()
                (loss + one_sided.sum() if rank == 0 else loss).backward()
            gradients.finish()
            assert gradients.sent == 0  # ready for the next update
        sum(
            twin(batch + other).square().mean() for other in (0, 1)
        ).backward()  # two batches of each of two halves
        for found, expected in zip(layers.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad)
        return {"sent": sent[1::2], "one": one_sided.grad, "none": nobodys.grad}

    for rank, found in enumerate(from_processes(2, body)):
        assert found["one"].tolist() == [0.5, 0.5] and found["none"] is None
        # in the second update buckets go in the order in which the first process's gradients came
        assert found["sent"][1] >= (3 if rank == 0 else 0)


def test_two_processes_train_like_one_and_agree_on_stopping(
    tmp_path: Path, on_processes: Callable[..., list[int]]
) -> None:
    given = [5.0, 6.0, 6.0, 6.0, 7.0]

    def body(rank: int) -> None:
        torch.manual_seed(rank)  # the first process's weights count
        method = Towers(noise=0.0)
        if rank == 0:
            method.load_state_dict(start)
        values = given if rank == 0 else [9 - value for value in given]  # alone, it would stop elsewhere
        result, _ = train(tmp_path / "two", method=method, validate=figures(*values), patience=1, epochs=5)
        checkpoint.save_weights(
            tmp_path / str(rank), method, {"epochs": result.epochs, "best": result.best_epoch}
        )

    start = Towers().state_dict()
    assert on_processes(2, body) == [0, 0]
    alone = Towers(noise=0.0)
    alone.load_state_dict(start)
    result, _ = train(tmp_path / "one", method=alone, validate=figures(*given), patience=1, epochs=5)
    assert (result.epochs, result.best_epoch) == (4, 2)
    for rank in (0, 1):
        twin = Towers()
        assert checkpoint.load_weights(tmp_path / str(rank), twin) == {"epochs": 4, "best": 2}
        for found, wanted in zip(twin.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(
    tmp_path: Path, on_processes: Callable[..., list[int]]
) -> None:
    def body(rank: int) -> None:
        method, calls = Towers(), []

        def send(batch: Batch, epoch: int) -> None:
            calls.append(1)
            if rank == 1 and len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        method.before = send
        train(tmp_path, method=method)

    assert on_processes(2, body) == [143, 143]
    tensors, meta = checkpoint.load(tmp_path / "last.safetensors")
    assert (meta["state"]["epoch"], meta["state"]["step"]) == (0, 3)
    assert {"random.0", "random.1"} <= tensors.keys()
    assert not torch.equal(tensors["random.0"], tensors["random.1"])
