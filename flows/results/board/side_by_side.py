"""Published figures and ours in one table a data set and protocol; knows no file and no store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flows.repetition import Repetition
from flows.results.board.published import Protocol, Published, fitting
from flows.results.wording import counted
from pipeline.corpus.importers.published import MISSING
from trainers.measure.evaluated import Metrics
from trainers.measure.evaluated import Protocol as OurProtocol
from trainers.measure.metric_table import METRICS

OURS = "ours"
ORIGINS = {"paper": "paper", "repository": "repository", "secondary": "second hand", OURS: OURS}
NO_PROTOCOL = "no published protocol"


@dataclass(frozen=True)
class Line:
    """The figures of one system from one source. apart: why they are not comparable with the others of the table.

    repetition: figures of ours, of a run in which nothing is known that differs from a published experiment.
    """

    system: str
    origin: str
    source: str
    protocol: str
    figures: Mapping[str, Mapping[str, float]]  # direction, then metric
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    variant: str = ""
    backbone: str = ""
    note: str = ""
    apart: tuple[str, ...] = ()
    repetition: bool = False


@dataclass(frozen=True)
class Section:
    """A data set under a protocol."""

    dataset: str
    protocol: str
    lines: tuple[Line, ...]

    def metrics(self, direction: str) -> list[str]:
        """Those that any line has of a direction, in the usual order."""
        there = {name for line in self.lines for name in line.figures.get(direction, {})}
        return [metric.name for metric in METRICS if metric.name in there]


@dataclass(frozen=True)
class Ours:
    """An evaluated method of an experiment, and how it differs from the published experiment of its corpus."""

    method: str
    experiment: str
    measured: Metrics
    repetition: Repetition | None = None
    stale: str = ""  # which run this is, where it is not what today's settings would make


def sections(
    published: Mapping[str, Published], ours: Sequence[Ours], variants: bool = False
) -> list[Section]:
    """Every data set and protocol with its lines: published ones, then ours; what fits no published protocol is last.

    variants: with ablations and other settings than what is proposed.
    """
    tables: dict[tuple[str, str], list[Line]] = {}
    for one in published.values():
        for line, key in _published(one, variants):
            tables.setdefault(key, []).append(line)
    for own in ours:
        for key, line in _placed(published, own):
            tables.setdefault(key, []).append(line)
    return [
        Section(dataset, protocol, tuple(_merged(lines))) for (dataset, protocol), lines in tables.items()
    ]


def _published(one: Published, variants: bool) -> Iterator[tuple[Line, tuple[str, str]]]:
    for row in one.rows:
        if row.variant and not variants:
            continue
        protocol = one.protocols[row.protocol]
        line = Line(
            row.system, row.origin, f"{one.source}: {row.table}", protocol.words, dict(row.figures()),
            variant=row.variant, backbone=row.backbone, note=row.note,
            apart=(protocol.caution,) if protocol.caution else (),
        )  # fmt: skip
        yield line, (protocol.dataset, protocol.name)


def _merged(lines: Sequence[Line]) -> list[Line]:
    """The lines, those that say no more than an earlier one of the same system left out."""
    kept: list[Line] = []
    for line in lines:
        if line.origin == OURS or not any(_says_all(other, line) for other in kept):
            kept.append(line)
    return kept


def _says_all(one: Line, other: Line) -> bool:
    same = [(x.system, x.origin, x.variant, x.backbone) for x in (one, other)]
    return same[0] == same[1] and all(
        one.figures.get(d, {}).get(name) == value
        for d, side in other.figures.items()
        for name, value in side.items()
    )


def _placed(published: Mapping[str, Published], own: Ours) -> Iterator[tuple[tuple[str, str], Line]]:
    """Where a method of ours belongs: in every table whose protocol is that of its corpus, else apart from all."""
    measured = own.measured.protocol
    corpus = measured.corpus.as_json() if measured.corpus else {}
    places: dict[tuple[str, str], list[Protocol]] = {}
    for protocol in fitting(published, corpus):
        places.setdefault((protocol.dataset, protocol.name), []).append(protocol)
    if not places:
        name = corpus.get("name", "a corpus of one's own")
        reason = f"measured on {name}, under none of the published protocols: no published row applies"
        yield (own.experiment, NO_PROTOCOL), _line(own, (reason,))
    for key, protocols in places.items():
        yield key, _line(own, tuple(dict.fromkeys([*reasons(measured, protocols), *_beside(own)])))


def _note(own: Ours) -> str:
    """The verdict beside the published experiment, and which run it is if it is not today's."""
    verdict = own.repetition.verdict if own.repetition and own.repetition.row else ""
    return "; ".join(part for part in (verdict, own.stale) if part)


def _beside(own: Ours) -> tuple[str, ...]:
    """Why a run is not the published experiment of its corpus; where there is none, that."""
    found = own.repetition
    if found is None:
        return ()
    return found.every_reason if found.row else (found.verdict,)


def reasons(measured: OurProtocol, protocols: Sequence[Protocol]) -> Iterator[str]:
    """Why figures of ours are not comparable with those of a table, though the corpus has its protocol."""
    if measured.split != "test":
        yield f"measured on the split {measured.split}"
    if measured.dropped:
        yield f"{counted(measured.dropped, 'caption')} dropped, because items or captions failed"
    if measured.rerank:
        yield measured.rerank
    sentence = measured.corpus.sentence if measured.corpus else ""
    yield from (part for part in sentence.split("; ") if MISSING in part)
    if all(protocol.caution for protocol in protocols):
        yield from (protocol.caution for protocol in protocols)


def _line(own: Ours, apart: tuple[str, ...]) -> Line:
    figures, found = own.measured.estimates, own.repetition
    return Line(
        own.method, OURS, own.experiment, in_words(own.measured.protocol),
        {d: {name: f.value for name, f in named.items()} for d, named in figures.items()},
        {d: {name: (f.low, f.high) for name, f in named.items()} for d, named in figures.items()},
        apart=apart, note=_note(own),
        repetition=bool(found and found.exact and not apart),
    )  # fmt: skip


def in_words(measured: OurProtocol) -> str:
    """The protocol of an evaluation of ours: corpus, split, sizes, how items rank several captions, ties."""
    corpus = measured.corpus.sentence if measured.corpus else ""
    size = f"{counted(measured.items, 'item')}, {counted(measured.captions, 'caption')}"
    several = "v2t" in measured.directions and measured.captions_per_item.max > 1
    ranked = f"v2t: {measured.v2t_rank}" if several else ""
    return "; ".join(
        word for word in (corpus, f"split {measured.split}: {size}", ranked, measured.ties) if word
    )
