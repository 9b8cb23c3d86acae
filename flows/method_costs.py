"""CPU seconds and bytes of packing, training and evaluating a method, where nothing was measured on the store yet.

Constants are those of published sizes, on one core; another width costs its square. What is the same for every
method (a process that imports torch, the page of a report) stands beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from extractors.backbones import clip_configs
from flows.costs import TOKENS_A_WORD, Facts, UnitCost, text_operations, vision_operations
from pipeline.corpus.contents import Contents
from pipeline.run.stage import Stage
from trainers.config import MethodConfig
from trainers.layers.pair_config import ClipPairConfig
from trainers.stages import Evaluate, Pack, Train

START_SECONDS = 5.0  # of a process that imports torch and loads a network
PACKED_BYTES_A_SECOND = 100e6
PACK_BYTES = 25e3  # of a pack of any size: its record and tables, and two segments of what it computes
PLACE_BYTES = 300.0  # of an item or caption in a pack, whose arrays refer to the store
COMPUTED = {
    ("hlformer", "video"): 2.7, ("lean", "token"): 0.4,
}  # bytes that packing computes, for each byte of an input  # fmt: skip
BACKWARD = 3.0  # a training step in forward passes
EVALUATED_BYTES = 4e3  # of a finished evaluation, besides
RANKING_BYTES = 250.0  # of a caption or item in it
WEIGHT_BYTES = 4


@dataclass(frozen=True)
class MethodCost:
    """What a method costs at the width `reference` of its setting `width`.

    pair: CPU seconds of a training pair in an epoch; scored: of a caption and an item in evaluation; floor: share of
    both that remains at the smallest width; parameters: of its weights, besides a CLIP network's.
    """

    width: str
    reference: float
    pair: float
    scored: float
    parameters: float
    floor: float = 0.1

    def share(self, config: MethodConfig) -> float:
        """The size of a network of these settings as a share of the published one's."""
        return float((getattr(config, self.width) / self.reference) ** 2) if self.width else 1.0


METHODS = {
    "hlformer": MethodCost("hidden_size", 384, 24e-3, 5e-6, 27e6),
    "neighborretr": MethodCost("", 0, 15e-3, 4e-6, 13e6),
    "gare": MethodCost("", 0, 9.4e-3, 2e-6, 13e6),
    "clip4clip": MethodCost("", 0, 5e-3, 1e-6, 13e6),
    "lean": MethodCost("hidden", 512, 10e-3, 200e-6, 10e6),
    "h2arn": MethodCost("d_model", 512, 250e-3, 14e-6, 40e6),
}


@dataclass(frozen=True)
class CorpusCost:
    """The cost of a stage over the corpus: CPU seconds, operations of networks, seconds before any work, bytes."""

    cpu: float
    flops: float
    start: float
    bytes: float


def corpus_cost(
    stage: Stage[Any], facts: Facts, contents: Contents, unit: Callable[[str], UnitCost | None]
) -> CorpusCost | None:
    """The cost of a stage over the corpus; None for a stage or method that is not known here.

    `unit` gives the cost of an item or caption of an extractor.
    """
    if isinstance(stage, Pack):
        return _pack(stage, facts, contents, unit)
    if stage.method not in METHODS:
        return CorpusCost(3.0, 0.0, 1.0, 2e6) if stage.name == "report" else None
    if isinstance(stage, Train):
        return _train(stage, facts, contents)
    if isinstance(stage, Evaluate):
        train = facts.stages[f"train-{stage.method}"].params
        return _evaluate(stage, train, facts, contents) if isinstance(train, MethodConfig) else None
    return None


def _pack(
    stage: Pack, facts: Facts, contents: Contents, unit: Callable[[str], UnitCost | None]
) -> CorpusCost | None:
    """It reads everything, and writes what it computes of it and a few numbers of each item and caption."""
    read, written = 0.0, PACK_BYTES
    for name, (need, output) in stage.params.inputs().items():
        each = unit(need)
        if each is None:
            return None
        of_captions = facts.stages[need].over == "captions"
        for split in stage.splits():
            count = sum(1 for _ in contents.queries(split)) if of_captions else len(contents.gallery(split))
            size = count * each.outputs.get(output, next(iter(each.outputs.values()), 0.0))
            read += size
            written += count * PLACE_BYTES + size * COMPUTED.get((stage.method, name), 0.0)
    return CorpusCost(read / PACKED_BYTES_A_SECOND, 0.0, 1.0, written)


def _train(stage: Train, facts: Facts, contents: Contents) -> CorpusCost:
    config, known = stage.params, METHODS[stage.method]
    pairs = sum(1 for _ in contents.queries("train"))
    share = known.share(config)
    networks, parameters = _clip(config, facts)
    return CorpusCost(
        known.pair * max(known.floor, share) * pairs * config.epochs,
        BACKWARD * networks * pairs * config.epochs,
        START_SECONDS,
        WEIGHT_BYTES * (known.parameters * share + parameters),
    )


def _evaluate(stage: Evaluate, config: MethodConfig, facts: Facts, contents: Contents) -> CorpusCost:
    known, split = METHODS[stage.method], stage.params.split
    queries, items = sum(1 for _ in contents.queries(split)), len(contents.gallery(split))
    networks, _ = _clip(config, facts)
    cpu = known.scored * queries * items + known.pair / BACKWARD * (queries + items) / 2
    size = EVALUATED_BYTES + RANKING_BYTES * (queries + items)
    share = max(known.floor, known.share(config))
    return CorpusCost(cpu * share, networks * max(queries, items), START_SECONDS, size)


def _clip(config: MethodConfig, facts: Facts) -> tuple[float, float]:
    """Operations for a pair, and parameters, of the CLIP network that a method fine-tunes; 0 where it does not."""
    if not isinstance(config, ClipPairConfig) or config.mode == "frozen":
        return 0.0, 0.0
    network = clip_configs.read(config.clip_model)
    vision, text = network["vision_cfg"], network["text_cfg"]
    frames = min(config.max_frames, max(1.0, facts.sample.seconds * config.video_framerate))
    tokens = min(facts.words * TOKENS_A_WORD, config.max_words)
    one = vision_operations(vision)
    parameters = (
        sum(
            12 * part["layers"] * part["width"] ** 2
            for part in (vision, text)
            if not isinstance(part["layers"], list)
        )
        + text["vocab_size"] * text["width"]
    )
    return frames * one + text_operations(text, tokens), parameters
