"""Runs the recorded end-to-end cases of H2ARN: a small T3DR-HIT v2, from its files to features and link lists.

A case brings the data, a CLIP and a BERT as Hugging Face publishes them, and what the authors' scripts made of it.
Texts are embedded as the caption files give them, empty ones too, which a manifest of ours would not hold.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extractors.backbones import cloud_weights
from extractors.backbones.bert import BertBackbone
from extractors.backbones.dgcnn import Dgcnn
from pipeline.corpus.importers.published import Choice
from pipeline.corpus.importers.t3dr_hit import SUBSETS, Subset, read_t3dr_hit
from pipeline.corpus.manifest import Item
from pipeline.errors import ItemError, UserError
from pipeline.media.clouds import read as clouds
from pipeline.media.clouds.sampling import farthest_points, nine_columns
from trainers.h2arn.config import TOKENS
from trainers.verify.cases import Quantity, Recorded, compare, failure, same
from trainers.verify.tensors import array, read_tensors, tensor

Case = Mapping[str, Any]

EMB_DIMS = 1024  # the only one that fits the layer behind
ROUNDING = (
    2e-6  # of the greatest value of a cloud: tokens of unscaled colours reach 1600, and the small ones among
)
# them are what float32 left of sums that large; in float64 they are as far from what is recorded
DATA = "data"  # beside the case; the text encoders lie in folders called after them
TOLERANCE = re.compile(
    r"points9 abs (?P<points>[\d.e-]+); features abs (?P<abs>[\d.e-]+) \+ rel (?P<rel>[\d.e-]+)"
)
FILE = re.compile(r"(?P<file>\S+\.safetensors)\b.*")
AREAS = re.compile(r"\bareas? (?P<areas>\d+(?:(?:, and |, | and )\d+)*)")
SHIFT = re.compile(r"with (?P<shift>[-+]?\d[\d.e+-]*) added to (?P<name>[\w.]+)")
NO_OTHERS = re.compile(r"no weights for .*")


class Tolerance(NamedTuple):
    """Tolerances: of points, and of features absolute and relative."""

    points: float
    features: float
    relative: float


@dataclass(frozen=True)
class Model:
    """A folder with a network of the hub and its own weights."""

    model: str
    weights: str = "pretrained"
    download: bool = False


@dataclass
class Extracted:
    """The outputs for a split: sampled rows and nine columns by object, tokens (m, 100, 512), texts, links."""

    rows: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    points: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    tokens: list[Tensor] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    links: list[list[int]] = field(default_factory=list)  # text row, cloud row


def end_to_end(path: Path, case: Case) -> Iterator[Quantity]:
    """Every quantity of every split of both data sets, and a failure for each that is not understood."""
    recorded = Recorded(read_tensors(path.parent / case.get("tensors", "expected.safetensors")))
    yield same("emb_dims", case.get("emb_dims", EMB_DIMS), EMB_DIMS)
    allowed, networks = tolerance_of(case), networks_of(path.parent, case)
    links: Mapping[str, list[list[int]]] = case.get("links", {})
    compared: set[str] = set()
    encoders: dict[str, BertBackbone] = {}
    for subset in SUBSETS.values():
        names = [f"{name}." for name in (*recorded.names(""), *links) if name.startswith(f"{subset.name}.")]
        for split in sorted({name.split(".")[1] for name in names}):
            compared.add(f"{subset.name}.{split}")
            prefix = f"{subset.name}.{split}."
            computed = extract(path.parent / DATA, subset, split, case["num_points"], networks)
            yield from _clouds(computed, recorded, prefix, allowed)
            yield from _links(computed, recorded, prefix, links)
            for name in recorded.names(f"{prefix}txt."):
                if name not in encoders:
                    folder = (path.parent / name.lower()).absolute()
                    encoders[name] = BertBackbone(
                        Model(str(folder)), max_tokens=TOKENS, pad=True, precision="fp32"
                    )
                yield from _texts(computed.texts, encoders[name], name, recorded, prefix, allowed)
    for name in sorted(set(links) - compared):
        yield failure(f"links of {name}", "this quantity is not understood")
    yield from recorded.left()


KINDS: dict[str, Callable[[Path, Case], Iterator[Quantity]]] = {"feature_extraction_end_to_end": end_to_end}
"""Kind of a case -> the function that runs it."""


def extract(
    data: Path, subset: Subset, split: str, num_points: int, networks: Mapping[str, Dgcnn]
) -> Extracted:
    """The features of a split without those of its texts; what the importer or the encoder skips has no row."""
    captions = captions_of(data, subset, split)
    out = Extracted()
    for item in read_t3dr_hit(subset.name, data, data, Choice(splits=(split,), val="0")).items:
        network = networks.get(str(item.meta.get("area", "")) if subset.areas else "")
        read = None if network is None else _points(data, item, 0 if subset.areas else num_points)
        if network is None or read is None or len(read[1]) < network.k:
            continue
        out.rows[item.id], out.points[item.id] = read
        for text in captions[item.id]:
            out.links.append([len(out.texts), len(out.tokens)])
            out.texts.append(text)
        out.tokens.append(network(tensor(out.points[item.id])).tokens)
    return out


def captions_of(data: Path, subset: Subset, split: str) -> dict[str, list[str]]:
    """The texts of each object as its caption file has them."""
    path = data / subset.folder / subset.captions.format(split=split)
    result = json.loads(path.read_text(encoding="utf-8"))["result"]
    return {name: [text for text in texts if isinstance(text, str)] for name, texts in result.items()}


def _points(data: Path, item: Item, most: int) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    """The rows of a cloud that are used, in order, and their nine columns (N, 9); None if it cannot be read."""
    assert item.media is not None  # the importer names a file for each item
    try:
        cloud = clouds.read(data / item.media)
    except ItemError:
        return None
    rows = np.arange(len(cloud.xyz))
    if 0 < most < len(rows):
        rows = farthest_points(cloud.xyz, most)
    return rows, nine_columns(cloud.rows[rows])


def networks_of(folder: Path, case: Case) -> dict[str, Dgcnn]:
    """DGCNN by the area of a scene, under "" that of objects. Raises UserError for weights that are not understood."""
    first, *clauses = (clause.strip() for clause in case["dgcnn_weights"].split(";"))
    file = FILE.fullmatch(first)
    if file is None:
        raise _not_understood(first)
    tensors = read_tensors(folder / file["file"])
    state = {k.removeprefix("state."): v.float() for k, v in tensors.items() if k.startswith("state.")}
    out: dict[str, Dgcnn] = {}
    for clause in clauses:
        areas, shift = AREAS.search(clause), SHIFT.search(clause)
        reference = [""] if "Elephant" in clause else []
        reference += re.findall(r"\d+", areas["areas"]) if areas else []
        if NO_OTHERS.fullmatch(clause):
            continue
        if not reference or ("same weights" in clause) != bool(shift):
            raise _not_understood(clause)
        put = (shift["name"], float(shift["shift"])) if shift else ("", 0.0)
        out |= dict.fromkeys(reference, _network(case["k"], state, *put))
    return out


def _network(k: int, state: Mapping[str, Tensor], name: str = "", shift: float = 0.0) -> Dgcnn:
    """A network with these weights, one of which is shifted."""
    network = Dgcnn(k)
    cloud_weights.put(network, state, "the case's weights do not fit")
    if name:
        start = next((alias for alias in network.aliases if name.startswith(alias)), "")
        network.state_dict()[network.aliases.get(start, "") + name.removeprefix(start)].add_(shift)
    return network.eval()


def tolerance_of(case: Case) -> Tolerance:
    """The tolerances of a case. Raises UserError if they cannot be read."""
    computed = TOLERANCE.search(case["tolerance"])
    if computed is None:
        raise _not_understood(case["tolerance"])
    return Tolerance(float(computed["points"]), float(computed["abs"]), float(computed["rel"]))


def _not_understood(words: str) -> UserError:
    return UserError(f"{words!r} is not understood")


def _clouds(
    computed: Extracted, recorded: Recorded[Tensor], prefix: str, allowed: Tolerance
) -> Iterator[Quantity]:
    """Tokens of the clouds; of the objects that are recorded, the sampled rows and the nine columns."""
    expected = recorded.get(f"{prefix}pc")
    if expected is not None:
        tokens = (
            torch.stack(computed.tokens) if computed.tokens else expected.new_empty(0, *expected.shape[1:])
        )
        yield _close(f"{prefix}pc", tokens, expected, allowed)
    for name, rows in computed.rows.items():
        sampled = recorded.get(f"{prefix}{name}.fps")
        if sampled is not None:
            yield same(f"{prefix}{name}.fps", rows.tolist(), sampled.tolist())
        points = recorded.get(f"{prefix}{name}.points9")
        if points is not None:
            yield compare(f"{prefix}{name}.points9", computed.points[name], array(points), allowed.points)


def _links(
    computed: Extracted, recorded: Recorded[Tensor], prefix: str, settings: Mapping[str, list[list[int]]]
) -> Iterator[Quantity]:
    """Text and cloud rows that belong together, as tensor and as list."""
    expected = recorded.get(f"{prefix}link")
    if expected is not None:
        yield same(f"{prefix}link", computed.links, expected.tolist())
    name = prefix.rstrip(".")
    if name in settings:
        yield same(f"links of {name}", computed.links, settings[name])


def _texts(
    texts: list[str],
    encoder: BertBackbone,
    name: str,
    recorded: Recorded[Tensor],
    prefix: str,
    allowed: Tolerance,
) -> Iterator[Quantity]:
    """Tokens and mask where they are recorded, and the states of all positions."""
    batch = encoder.tokenized(texts)
    for what, key in (("ids", "input_ids"), ("mask", "attention_mask")):
        expected = recorded.get(f"{prefix}{name.lower()}_{what}")
        if expected is not None:
            yield same(f"{prefix}{name.lower()}_{what}", batch[key].tolist(), expected.tolist())
    states = tensor(np.stack([tokens.states for tokens in encoder.tokens(texts)]))
    yield _close(f"{prefix}txt.{name}", states, recorded[f"{prefix}txt.{name}"], allowed)


def _close(name: str, computed: Tensor, expected: Tensor, allowed: Tolerance) -> Quantity:
    """Every value of (rows, tokens, D) within its own tolerance; the error is in shares of it."""
    if computed.shape != expected.shape:
        return compare(name, computed, expected, allowed.features)
    if not expected.numel():
        return compare(name, computed, expected, allowed.features)
    rounding = ROUNDING * expected.abs().amax((1, 2), keepdim=True)
    share = (computed - expected).abs() / (allowed.features + allowed.relative * expected.abs() + rounding)
    worst = float(share.max())
    note = f"in shares of {allowed.features:g} + {allowed.relative:g} of the value, and rounding"
    return Quantity(name, worst if math.isfinite(worst) else math.inf, 1.0, note)
