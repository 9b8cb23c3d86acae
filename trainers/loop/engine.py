"""The training loop that every method shares: reproducible, resumable at any moment, stopped by validation.

What a folder holds while a run goes on: `last` and `previous` (everything to go on from), `best-<epoch>`
(the weights of the epoch with the largest validation figure), `history.jsonl`, `tensorboard/`. The
engine knows neither the method's terms nor what its data are, and prints nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import TrainingError, UserError
from trainers.config import Recipe
from trainers.loop import checkpoint, distributed
from trainers.loop.curves import Curves, HistoryRow
from trainers.loop.gradients import MeanGradients
from trainers.loop.interrupts import Interrupts
from trainers.loop.loading import Loader, deaths_named
from trainers.loop.precision import computing_in
from trainers.loop.progress import Meter, Progress
from trainers.loop.seeds import random_state, restore_random_state, seed_everything
from trainers.loop.snapshots import NAMES, Snapshots
from trainers.method import Batch, Method, MethodData

Validate = Callable[[Method], dict[str, float]]
LATER = {"compile": False}  # settings that checkpoints from before them lack, with what they were


@dataclass(frozen=True)
class FitResult:
    """How a run ended. Epochs count from 1."""

    weights: Path  # of the best epoch
    best_epoch: int
    validation: dict[str, float]  # the figures of the best epoch
    epochs: int  # trained
    stopped_early: bool
    seconds: float  # over all resumptions
    history: list[HistoryRow]


@dataclass
class _State:
    """Where a run stands. It travels in every checkpoint."""

    epoch: int = 0  # epochs finished, validation included
    step: int = 0  # steps done in the epoch under way
    sums: dict[str, float] = field(default_factory=dict)  # of each term over those steps
    best: float | None = None
    best_epoch: int = 0
    stale: int = 0  # epochs since the best one
    history: list[HistoryRow] = field(default_factory=list)
    seconds: float = 0.0
    points: dict[str, dict[str, float]] = field(default_factory=dict)  # curves' newest, by group


def fit(
    method: Method,
    data: MethodData,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    *,
    validate: Validate,
    figure: str,
    folder: Path,
    device: torch.device,
    on_progress: Callable[[Progress], None] | None = None,
    checkpoint_minutes: float = 5.0,
    checkpoint_steps: int | None = None,
    loader_workers: int = 0,
    validation_captions: int = 0,
) -> FitResult:
    """Train a method, or go on with the run that `folder` holds; on return it has its best weights.

    `validate` is called after every epoch on every process, the method in evaluation mode; the run keeps
    the weights with the strictly largest `figure` and ends after more than `recipe.patience` epochs
    in a row without a larger one. A checkpoint is written then, every `checkpoint_minutes`, and, where it is
    given, every `checkpoint_steps` steps. `recipe.clip_norm` bounds the global norm of the gradients; an optimizer
    that clips for itself wants None. On the CPU a resumed run ends with the very bits of an unbroken one,
    unless losses are compiled, whose code depends on the shapes that came by before.
    `loader_workers` processes make batches ahead of the steps, whatever their number the same ones.
    `validation_captions` is written into the history: how many captions `validate` judges, 0 for all.

    Raises TrainingError for a loss term, gradient, weight or figure that is not finite. Ctrl-C and SIGTERM
    let the update under way end, write `last` and raise KeyboardInterrupt or SystemExit(143).
    """
    with (
        Interrupts() as interrupts,
        distributed.process_group(device),
        computing_in(recipe.precision, device),
    ):
        run = _Run(
            method=method.to(device),
            data=data,
            recipe=recipe,
            optimizer=optimizer,
            validate=validate,
            figure=figure,
            device=device,
            checkpoint_minutes=checkpoint_minutes,
            checkpoint_steps=checkpoint_steps,
            loader_workers=loader_workers,
            validation_captions=validation_captions,
            interrupts=interrupts,
            snapshots=Snapshots(folder),
        )
        return run.fit(on_progress)


@dataclass
class _Run:
    """One process's part of a training run."""

    method: Method
    data: MethodData
    recipe: Recipe
    optimizer: torch.optim.Optimizer
    validate: Validate
    figure: str
    device: torch.device
    checkpoint_minutes: float
    checkpoint_steps: int | None
    loader_workers: int
    validation_captions: int
    interrupts: Interrupts
    snapshots: Snapshots
    state: _State = field(default_factory=_State)
    curves: Curves | None = None  # of the first process

    def __post_init__(self) -> None:
        self.rank, self.world = distributed.rank(), distributed.world()
        self.steps = self.data.train_steps(self.world)
        self.losses = torch.compile(self.method.losses) if self.recipe.compile else self.method.losses
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.saved_at, self.seconds_before = time.monotonic(), 0.0
        self.waiting = 0.0  # share of the epoch's steps, before their validation
        self.training_seconds = self.validation_seconds = 0.0  # of the epoch, in this process

    def fit(self, on_progress: Callable[[Progress], None] | None) -> FitResult:
        """Train to the end, from wherever the folder stands."""
        folder = self.snapshots.folder
        folder.mkdir(parents=True, exist_ok=True)
        random = self._resume()
        self.meter = Meter(self.recipe.batch_size, on_progress if self.rank == 0 else None)
        self.gradients = MeanGradients(self.parameters)
        self.loader = Loader(self.data, self.loader_workers, self.device, self.rank, self.world)
        if self.rank == 0:
            self.curves = Curves(folder, self._steps_done(), self.state.points)
            self.curves.write_history(self.state.history)
        try:
            while not self._finished():
                with deaths_named():
                    self._train_epoch(random)
                self._end_epoch(self._validate())
                random = None
        finally:
            self.loader.close()
            self.gradients.close()
            if self.curves is not None:
                self.curves.close()
        distributed.barrier()  # the best weights are on the disk before any process reads them
        return self._result()

    def _finished(self) -> bool:
        return self.state.epoch >= self.recipe.epochs or self.state.stale > self.recipe.patience

    def _steps_done(self) -> int:
        return self.state.epoch * self.steps + self.state.step

    def _result(self) -> FitResult:
        state = self.state
        weights = self.snapshots.best(state.best_epoch)
        checkpoint.load_weights(weights, self.method)
        return FitResult(
            weights=weights,
            best_epoch=state.best_epoch,
            validation=state.history[state.best_epoch - 1]["validation"],
            epochs=state.epoch,
            stopped_early=state.epoch < self.recipe.epochs,
            seconds=state.seconds,
            history=state.history,
        )

    # An epoch: its steps, its validation, what follows from it.

    def _train_epoch(self, random: Tensor | None) -> None:
        """The steps of an epoch that are still to do; `random`: the generators' state to go on with."""
        seed, state = self.recipe.seed, self.state
        seed_everything(seed, state.epoch, self.rank)
        batches = self.loader.epoch(state.epoch, seed, state.step)
        self.meter.begin_epoch()
        if random is not None:
            restore_random_state(random, self.device)
        self.method.train()
        self.optimizer.zero_grad(set_to_none=True)
        while state.step < self.steps:
            group = self._take(batches)
            rates = _learning_rates(self.optimizer)
            terms = self._update(group)
            state.step += len(group)
            for name, value in terms.items():
                state.sums[name] = state.sums.get(name, 0.0) + value * len(group)
            self.meter.steps += len(group)
            self._report_step(terms, rates[0])
            self._checkpoint_if_due(len(group))

    def _take(self, batches: Iterator[Batch]) -> list[Batch]:
        """The batches of one update: `accumulate`, or what is left of the epoch."""
        size = min(self.recipe.accumulate, self.steps - self.state.step)
        with self.meter.waiting_for_data():
            group = list(islice(batches, size))
        if len(group) < size:
            count = self.state.step + len(group)
            raise ValueError(f"epoch {self.state.epoch + 1} has {count} batches, {self.steps} were announced")
        return group

    def _update(self, group: list[Batch]) -> dict[str, float]:
        """Change the weights once; the mean of each loss term over the batches that went into it."""
        values: list[tuple[int, str, Tensor]] = []
        last = self.state.step + len(group)
        for number, batch in enumerate(group, self.state.step + 1):
            terms = self._losses(batch)
            loss = torch.stack(list(terms.values())).sum() / len(group)
            with self.gradients.last_backward() if number == last else nullcontext():
                loss.backward()
            values += [(number, name, term.detach()) for name, term in terms.items()]
        self.gradients.finish()
        norm = torch.nn.utils.get_total_norm(p.grad for p in self.parameters if p.grad is not None)
        means = self._finite_means(values, norm.to(self.device), len(group))
        if self.recipe.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.recipe.clip_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return means

    def _finite_means(
        self, terms: list[tuple[int, str, Tensor]], norm: Tensor, batches: int
    ) -> dict[str, float]:
        """The mean of each term over the batches of an update; TrainingError names the first bad number."""
        # The one look from the host in an update: a GPU is waited for once.
        *values, size = torch.stack([*(term for *_, term in terms), norm]).tolist()
        means: dict[str, float] = {}
        for (step, name, _), value in zip(terms, values, strict=True):
            if not math.isfinite(value):
                raise TrainingError(f"{self._at(step)}: the loss term {name!r} is {value}")
            means[name] = means.get(name, 0.0) + value / batches
        if not math.isfinite(size):
            raise TrainingError(f"{self._at(self.state.step + batches)}: {self._bad_gradient(size)}")
        return means

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            terms = self.losses(self.loader.finished(moved), self.state.epoch)
        return {name: term.float().reshape(()) for name, term in terms.items()}

    def _validate(self) -> dict[str, float]:
        """The figures of the epoch, those of the first process everywhere.

        A signal breaks it off at once, for it may take long: the epoch's steps are kept, and a
        resumed run begins with the validation.
        """
        self._refuse_bad_weights()
        self.waiting, self.training_seconds = self.meter.waiting, self.meter.epoch_seconds
        began, random = time.monotonic(), self._random_states()
        self.method.eval()
        try:
            with self.interrupts.at_once(), torch.no_grad():
                figures = self.validate(self.method)
        except (KeyboardInterrupt, SystemExit):
            self._save(random)
            raise
        self.validation_seconds = time.monotonic() - began
        self.meter.pause(self.validation_seconds)
        return dict(zip(figures, distributed.from_first(list(figures.values())), strict=True))

    def _end_epoch(self, figures: dict[str, float]) -> None:
        """Count the epoch, keep its weights if they are the best, write the checkpoint."""
        state, value = self.state, figures[self.figure]
        if not math.isfinite(value):
            raise TrainingError(f"epoch {state.epoch + 1}: the validation figure {self.figure!r} is {value}")
        better = state.best is None or value > state.best
        row = self._history_row(figures, better)
        state.history.append(row)
        state.epoch, state.step, state.sums = state.epoch + 1, 0, {}
        state.stale = 0 if better else state.stale + 1
        if better:
            state.best, state.best_epoch = value, state.epoch
        self._add_point("validation", figures)
        self._add_point(
            "speed", {"steps_per_second": self.meter.steps_per_second, "waiting_for_data": row["waiting"]}
        )
        if better and self.rank == 0:
            self.snapshots.save_best(self.method, state.epoch, figures)
        self._save(self._random_states())
        if self.curves is not None:
            self.curves.write_history(state.history)

    def _history_row(self, figures: dict[str, float], better: bool) -> HistoryRow:
        names = list(self.state.sums)
        measured = (self.waiting, self.training_seconds, self.validation_seconds)
        *means, waiting, training_seconds, validation_seconds = distributed.mean(
            [*(self.state.sums[name] / self.steps for name in names), *measured]
        )
        sample = {"validation_captions": self.validation_captions} if self.validation_captions else {}
        return {
            "epoch": self.state.epoch + 1,
            "steps": self._steps_done(),
            "lr": _learning_rates(self.optimizer)[0],
            "loss": sum(means),
            "terms": dict(zip(names, means, strict=True)),
            "validation": figures,
            "best": better,
            "waiting": waiting,
            "training_seconds": training_seconds,
            "validation_seconds": validation_seconds,
        } | sample

    def _report_step(self, terms: Mapping[str, float], lr: float) -> None:
        state = self.state
        state.points = {}
        self._add_point("loss", {**terms, "total": sum(terms.values())})
        self._add_point("optimizer", {"lr": lr})
        latest = state.history[-1]["validation"] if state.history else {}
        self.meter.show(
            epoch=state.epoch + 1,
            epochs=self.recipe.epochs,
            step=state.step,
            steps=self.steps,
            terms=terms,
            lr=lr,
            validation=latest,
        )

    def _add_point(self, group: str, values: dict[str, float]) -> None:
        self.state.points[group] = values
        if self.curves is not None:
            self.curves.add(group, values, self._steps_done())

    # Checkpoints: writing them, and resuming from them.

    def _checkpoint_if_due(self, steps: int) -> None:
        """Write `last` where time or steps ask for it or a signal came, and stop in the latter case.

        All processes must do it at the same step, whatever their clocks say and whoever got the signal.
        """
        due = time.monotonic() - self.saved_at >= 60 * self.checkpoint_minutes
        if every := self.checkpoint_steps:
            due |= self.state.step // every > (self.state.step - steps) // every
        number, due_anywhere = distributed.agree(self.interrupts.caught, due)
        if number or due_anywhere:
            self._refuse_bad_weights()
            self._save(self._random_states())
        if number:
            distributed.barrier()  # a rank that ended sooner would have torchrun end the one that still writes
            self.interrupts.stop(number)

    def _random_states(self) -> list[Tensor]:
        """The generators of every process."""
        state = random_state(self.device).to(self.device)
        return [part.cpu() for part in distributed.gather(state)]

    def _save(self, random: list[Tensor]) -> None:
        """Write `last`, keeping the one before as `previous`."""
        self.saved_at = time.monotonic()
        if self.rank != 0:
            return
        if self.curves is not None:
            self.curves.flush()  # no point up to here may be missing after a resumption
        self.state.seconds = self.seconds_before + self.meter.seconds
        tree, tensors = checkpoint.flatten(self.optimizer.state_dict(), "optimizer")
        tensors |= {f"model.{name}": tensor for name, tensor in self.method.state_dict().items()}
        tensors |= {f"random.{rank}": state for rank, state in enumerate(random)}
        meta = {
            "state": asdict(self.state),
            "optimizer": tree,
            "settings": self._settings(),
        }
        self.snapshots.save(tensors, meta, self.state.best_epoch)

    def _resume(self) -> Tensor | None:
        """Take up the newest whole checkpoint; the generators' state to go on with, None at a beginning."""
        path = self.snapshots.newest() if self.rank == 0 else None
        places = [self.snapshots.folder / name for name in NAMES]
        (index,) = distributed.from_first([places.index(path) if path else -1])
        if index < 0:
            distributed.share_module(self.method)
            return None
        tensors, meta = checkpoint.load(places[int(index)])
        self._refuse_other_settings(meta["settings"])
        weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        checkpoint.fill_weights(self.method, weights, str(places[int(index)]))
        self.optimizer.load_state_dict(checkpoint.unflatten(meta["optimizer"], tensors))
        self.state = _State(**meta["state"])
        self.seconds_before = self.state.seconds
        self.snapshots.resumed(self.state.best_epoch)
        return tensors[f"random.{self.rank}"] if self.state.step else None

    def _settings(self) -> dict[str, Any]:
        """The settings that a checkpoint must share with the run that resumes from it."""
        own = {
            "clip_norm": self.recipe.clip_norm,
            "figure": self.figure,
            "processes": self.world,
            "steps": self.steps,
        }
        return self.recipe.model_dump(mode="json") | own

    def _refuse_other_settings(self, saved: Mapping[str, Any]) -> None:
        for name, value in self._settings().items():
            there = saved.get(name, LATER.get(name))
            if there != value:
                raise UserError(
                    f"{self.snapshots.folder} holds a run with {name} = {there!r}, not {value!r}; "
                    "give that setting again or take another folder"
                )

    # Errors for numbers that are not finite.

    def _at(self, step: int) -> str:
        return f"epoch {self.state.epoch + 1}, step {step}"

    def _bad_gradient(self, norm: float) -> str:
        for name, parameter in self.method.named_parameters():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                return f"the gradient of {name!r} is not finite"
        return f"the norm of the gradients is {norm}"

    def _refuse_bad_weights(self) -> None:
        """Keep weights that are not finite out of a checkpoint: the one before stays the last good one."""
        if math.isfinite(torch.nn.utils.get_total_norm(p.detach() for p in self.method.parameters()).item()):
            return
        for name, parameter in self.method.named_parameters():
            if not parameter.isfinite().all():
                raise TrainingError(f"{self._at(self.state.step)}: the weight {name!r} is not finite")


def _learning_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The learning rate of each group's next update, from the optimizer where it carries its own schedule."""
    if hasattr(optimizer, "learning_rates"):
        return list(optimizer.learning_rates())
    return [float(group["lr"]) for group in optimizer.param_groups]
