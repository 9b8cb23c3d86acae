"""Sentences on what limits the figures of an experiment: size, failures, random weights, recipes, seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flows.circumstances import Circumstances, OfMethod
from flows.results.measured import Measured
from flows.results.wording import NOUNS, common_member, counted, listed
from trainers.measure.evaluated import EvaluatedFolder, Metrics
from trainers.measure.metric_table import DIRECTIONS, metric


def limits(
    runs: Sequence[Measured], evaluated: Mapping[str, EvaluatedFolder], limiting: Circumstances
) -> Iterator[str]:
    """Whole sentences, the size of the test first."""
    for kind in dict.fromkeys(run.protocol.kind for run in runs):
        yield _size([run for run in runs if run.protocol.kind == kind])
    yield _failed(runs, limiting)
    own = {run.name: limiting.methods[run.name] for run in runs if run.name in limiting.methods}
    yield from _weights(own)
    yield from _recipes(own)
    yield from _seeds(own, evaluated)


def _size(runs: Sequence[Measured]) -> str:
    protocol = max((run.protocol for run in runs), key=lambda protocol: protocol.captions)
    return (
        f"Tested on {counted(protocol.captions, 'caption')} of {counted(protocol.items, NOUNS[protocol.kind])}, "
        f"the split {protocol.split}."
    )


def _failed(runs: Sequence[Measured], limiting: Circumstances) -> str:
    noun = common_member(run.protocol.kind for run in runs)
    dropped = max(run.protocol.dropped for run in runs)
    parts = []
    if limiting.failed_items:
        parts.append(f"{counted(limiting.failed_items, noun)} of the corpus failed")
    if limiting.failed_captions:
        parts.append(f"{counted(limiting.failed_captions, 'caption')} failed")
    if dropped:
        parts.append(f"{counted(dropped, 'test caption')} {'was' if dropped == 1 else 'were'} dropped")
    if not parts:
        return "No item failed, and no caption was dropped."
    return f"{listed(parts)}; what is missing is in no figure."


def _weights(own: Mapping[str, OfMethod]) -> Iterator[str]:
    """A sentence on networks with random weights, or that there are none."""
    stages = list(dict.fromkeys(stage for one in own.values() for stage in one.random))
    if stages:
        verb = "has" if len(stages) == 1 else "have"
        of = [method for method, one in own.items() if one.random]
        whose = "" if len(of) == len(own) else f" (read by {listed(of)})"
        yield (
            f"{listed(stages)} {verb} random weights{whose}: the figures show that the pipeline works, not how good "
            "a method is."
        )
    elif own:
        yield "No network has random weights."


def _recipes(own: Mapping[str, OfMethod]) -> Iterator[str]:
    """How far the methods are from the published experiments."""
    if same := [method for method, one in own.items() if one.exact]:
        yield f"{listed(same)}: nothing is known in which it differs from the published experiment."
    far = {m: one.differences for m, one in own.items() if one.recipe and not one.exact}
    if far:
        told = [f"{method} in {counted(count, 'point')}" for method, count in far.items()]
        yield f"Not the published experiments: {listed(told)}."
    free = {m: one.differences for m, one in own.items() if not one.recipe}
    if free:
        told = [f"{method} {count}" for method, count in free.items() if count]
        beside = f"; settings other than the methods' defaults: {', '.join(told)}" if told else ""
        yield f"No experiment on this corpus is published{' for ' + listed(list(free)) if far else ''}{beside}."


def _seeds(own: Mapping[str, OfMethod], evaluated: Mapping[str, EvaluatedFolder]) -> Iterator[str]:
    """The spread over seeds where several were trained, else what one seed leaves open."""
    once = []
    for method, one in own.items():
        if one.seed is None:
            continue
        if not one.again:
            once.append((method, one.seed))
            continue
        values = [
            _figure(evaluated[method]),
            *(_figure(EvaluatedFolder(Path(r.evaluated))) for r in one.again),
        ]
        seeds = ", ".join(map(str, sorted([one.seed, *(r.seed for r in one.again)])))
        yield (
            f"{method} was trained with {len(values)} seeds ({seeds}): R@1 {min(values):.1f} to {max(values):.1f}, "
            f"standard deviation {metric('R@1').printed(statistics.stdev(values))}; the tests are of seed {one.seed}."
        )
    if once:
        different = list(dict.fromkeys(seed for _, seed in once))
        seeds = f"seed{'s' if len(different) > 1 else ''} {listed([str(seed) for seed in different])}"
        named = (
            "Each method"
            if len(once) == sum(one.seed is not None for one in own.values())
            else listed([m for m, _ in once])
        )
        yield f"{named} was trained once ({seeds}); another seed can differ by more than the intervals say."


def _figure(folder: EvaluatedFolder) -> float:
    return folder.metrics.estimates[first_direction(folder.metrics)]["R@1"].value


def first_direction(metrics: Metrics) -> str:
    """The direction that is spoken of where there is room for one: captions that look for items, if evaluated."""
    return next(direction for direction in DIRECTIONS if direction in metrics.estimates)
