"""One sentence searched for with several methods, each in the items of its kind, as one list of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flows.results.wording import NOUNS, listed
from flows.search.calibration import Calibration
from flows.search.hits import Hit
from flows.search.index import choose_method, trained_methods
from pipeline.corpus.manifest import Corpus
from pipeline.errors import UserError
from pipeline.run.plan import Stages

COMPARABLE = (
    "scores of different methods cannot be compared: the order is that of the standard score, which measures each by "
    "the best scores that captions of other items get with the same method"
)


@dataclass(frozen=True)
class JointHit:
    """A result of one method among those of several. Its `hit.place` is that in the ranking of its own method.

    kind: that of the items which the method ranks. standard: `Calibration.standard` of its score, by which the results
    are ordered. chance: `Calibration.share_above`, the share of captions of other items that reach the score.
    """

    place: int
    method: str
    kind: str
    standard: float
    chance: float
    hit: Hit

    def as_json(self) -> dict[str, Any]:
        """Plain data; the place in the ranking of its own method is `own_place`."""
        own = asdict(self.hit)
        joint = {name: value for name, value in vars(self).items() if name != "hit"}
        return {**own, "own_place": own["place"], **joint}


def join(
    found: Mapping[str, tuple[Sequence[Hit], Calibration]], kinds: Mapping[str, str], top: int
) -> list[JointHit]:
    """The `top` best results of several methods, by standard score; each method's own order is kept.

    found: by method, its ranking and the calibration of its gallery. Equal standard scores are in the order of the
    methods.
    """
    every = [
        (calibration.standard(hit.score), calibration.share_above(hit.score), method, hit)
        for method, (hits, calibration) in found.items()
        for hit in hits
    ]
    every.sort(key=lambda one: -one[0])
    return [
        JointHit(place, method, kinds[method], standard, chance, hit)
        for place, (standard, chance, method, hit) in enumerate(every[:top], start=1)
    ]


def joint_methods(
    stages: Stages, named: Sequence[str], corpus: Corpus | None = None, split: str = ""
) -> dict[str, str]:
    """The methods that answer one sentence together, with the kind of items that each ranks.

    They are those that are named or, if none is, all of an experiment that has one method for each of several kinds;
    else none. Of the latter, methods are left out of whose kind a split of the corpus has no items, unless it has none
    at all. Raises UserError for an unknown one, and where two of the named ones rank items of one kind.
    """
    kinds: dict[str, list[str]] = {}
    chosen = [choose_method(stages, name) for name in dict.fromkeys(named)]
    for method in chosen or trained_methods(stages):
        kinds.setdefault(stages[f"train-{method}"].kind, []).append(method)
    double = next((kind for kind, methods in kinds.items() if len(methods) > 1), None)
    if double is not None and len(chosen) > 1:
        raise UserError(
            f"{listed(kinds[double])} rank {NOUNS[double]}s both; name one method for each kind of items"
        )
    if double is not None or len(kinds) < 2:
        return {}
    if corpus is not None and split and not named:
        there = {item.kind for item in corpus.gallery(split)}
        kinds = {kind: methods for kind, methods in kinds.items() if kind in there} or kinds
    return {method: kind for kind, methods in kinds.items() for method in methods}
