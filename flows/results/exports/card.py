"""A model card of a trained method, as the Hugging Face hub reads it: Markdown under a header of YAML.

It says what the store and the corpus know, and what they do not know is left open by name; nothing is guessed. The hub
has no task for text-video or text-3D retrieval, so no `pipeline_tag` is set; a tag says it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from flows.results.judged import verdict_of
from flows.results.method_results import MethodResults
from flows.results.report.environment import environment
from flows.results.report.leaderboard import protocols
from flows.results.wording import NOUNS, counted, duration, listed, plain, titles, without_places
from pipeline.run.plan import ancestors, order
from trainers.measure.evaluated import Estimates, Protocol
from trainers.measure.metric_table import metric, shown_metrics

CARD = "README.md"  # what the hub shows of a model
UNKNOWN = "unknown"
TASKS = {  # by kind and direction
    ("video", "t2v"): "text-to-video-retrieval",
    ("video", "v2t"): "video-to-text-retrieval",
    ("pointcloud", "t2v"): "text-to-3d-retrieval",
    ("pointcloud", "v2t"): "3d-to-text-retrieval",
}
COMMON = {
    "stage",
    "version",
    "params",
    "needs",
    "corpus",
    "left_out",
}  # of every stage; the rest is its identity
CHOSEN = ("model", "weights", "package", "source")  # the settings that name a network or a source


def export_card(one: MethodResults, target: Path, license_name: str = "") -> Path:
    """Write FOLDER/README.md; `license_name` is that of the weights, as the hub spells it (apache-2.0, cc-by-4.0)."""
    target.mkdir(parents=True, exist_ok=True)
    path = target / CARD
    folder = one.project.experiment.path.absolute().parent
    body = without_places("\n".join(_body(one, license_name)), folder)
    ModelCard(f"---\n{header(one, license_name).to_yaml()}\n---\n\n{body}\n").save(path)
    return path


def header(one: MethodResults, license_name: str = "") -> ModelCardData:
    """The card's metadata: what the hub searches by, and the figures as its model index has them."""
    protocol = one.evaluated.metrics.protocol
    tasks = (TASKS[protocol.kind, direction] for direction in protocol.directions)
    return ModelCardData(
        model_name=f"crossreel-{one.method}",
        license=license_name or UNKNOWN,
        library_name="crossreel",
        tags=["retrieval", "cross-modal-retrieval", one.method, *tasks],
        eval_results=list(_results(one)),
    )


def _results(one: MethodResults) -> Iterator[EvalResult]:
    """Every estimate of a direction, with its interval in its name, as the index has no place for one."""
    protocol = one.evaluated.metrics.protocol
    corpus = one.project.contents.corpus.path.stem
    published = protocol.corpus.name if protocol.corpus else ""
    for direction, estimates in one.evaluated.metrics.estimates.items():
        if direction not in protocol.directions:
            continue  # sums over both are of no task
        for name, estimate in estimates.items():
            facts = metric(name)
            low, high = facts.printed(estimate.low), facts.printed(estimate.high)
            yield EvalResult(
                task_type=TASKS[protocol.kind, direction],
                dataset_type=corpus,
                dataset_name=published or corpus,
                dataset_split=protocol.split,
                dataset_revision=protocol.split_digest,
                metric_type=facts.hub_name,
                metric_name=f"{name} (95 % interval {low} to {high})",
                metric_value=estimate.value,
            )


def _body(one: MethodResults, license_name: str) -> Iterator[str]:
    kind = one.evaluated.metrics.protocol.kind
    yield f"# crossreel {one.method}\n"
    yield f"A retriever between texts and {NOUNS[kind]}s, trained by the method `{one.method}` of crossreel."
    yield f"Its training has the fingerprint `{one.training.fingerprint.hex}`.\n"
    if one.note:
        yield f"{one.note}.\n"
    license_text = license_name or (
        f"{UNKNOWN}. Whoever publishes these weights says so: `crossreel export card --license NAME`, under what the "
        "licences of the data and of the backbones below allow"
    )
    yield f"License of the weights: {license_text}.\n"
    for part in (
        _verdict,
        _data,
        _protocol,
        _results_tables,
        _post_processed,
        _training,
        _backbones,
        _environment,
    ):
        yield from part(one)
    yield from _limitations(one)


def _verdict(one: MethodResults) -> Iterator[str]:
    """Who is ahead among the methods of the experiment, and what that rests on."""
    verdict = verdict_of(one.project, one.states)
    if verdict is None:
        return
    others = [method for method in verdict.order if method != one.method]
    yield "## Verdict\n"
    if others:
        yield f"Of the methods of its experiment: {listed(verdict.order)}.\n"
    yield " ".join(verdict.sentences) + "\n"
    yield from (f"- {sentence}" for sentence in verdict.basis)
    yield ""


def _data(one: MethodResults) -> Iterator[str]:
    corpus, protocol = one.project.contents.corpus, one.evaluated.metrics.protocol
    published = protocol.corpus.sentence if protocol.corpus else ""
    yield "## Data\n"
    yield (f"Corpus: `{corpus.path.name}`. " + (published or "No published protocol is known of it.") + "\n")
    if one.note:
        yield "The splits of the corpus as it is now:\n"
    yield from _table(
        ("split", f"{NOUNS[protocol.kind]}s", "captions", "digest", "use"),
        (
            (
                name,
                f"{row['gallery']:,}",
                f"{row['queries']:,}",
                f"`{row['digest']}`",
                _use(name, protocol.split),
            )
            for name, row in corpus.describe().items()
        ),
    )


def _use(split: str, evaluated: str) -> str:
    uses = {"train": "training", "val": "choice of the epoch"}
    return ", ".join(
        [*([uses[split]] if split in uses else []), *(["evaluation"] if split == evaluated else [])]
    )


def _protocol(one: MethodResults) -> Iterator[str]:
    (protocol,) = protocols({one.method: one.evaluated.metrics})
    yield "## Protocol\n"
    yield from (f"- {term}: {text}" for term, text in protocol.terms)
    yield ""


def _results_tables(one: MethodResults) -> Iterator[str]:
    metrics = one.evaluated.metrics
    yield "## Figures\n"
    yield "With 95 % intervals, and chance where it is known.\n"
    yield from _tables(metrics.estimates, metrics.protocol)


def _tables(estimates: Estimates, protocol: Protocol) -> Iterator[str]:
    """A table of each direction."""
    for direction, found in estimates.items():
        chance = protocol.chance(direction)
        yield f"{titles(protocol.kind)[direction]}:\n"
        rows = []
        for name in shown_metrics(found, protocol.kind):
            facts, estimate = metric(name), found[name]
            interval = f"{facts.printed(estimate.low)} to {facts.printed(estimate.high)}"
            luck = facts.printed(chance[name]) if name in chance else ""
            rows.append((facts.name, facts.printed(estimate.value), interval, luck))
        yield from _table(("metric", "value", "95 % interval", "chance"), rows)


def _post_processed(one: MethodResults) -> Iterator[str]:
    metrics = one.evaluated.metrics
    for name, block in metrics.post_processed.items():
        settings = ", ".join(f"{key} {plain(value)}" for key, value in block.params.items())
        yield f"### After {name} ({settings})\n"
        yield f"This {block.note}.\n"
        yield from _tables(block.estimates, metrics.protocol)


def _training(one: MethodResults) -> Iterator[str]:
    summary = one.trained.summary
    yield "## Training\n"
    yield f"- parameters: {summary.parameters:,}"
    if summary.epochs:
        yield f"- epochs: {summary.epochs}, of which epoch {summary.best_epoch} was the best by the split val"
        yield f"- time: {duration(one.record(one.training)['seconds'])}"
    else:
        yield f"- epochs: none; {_start(one)}"
    yield ""
    yield from _beside_published(one)


def _beside_published(one: MethodResults) -> Iterator[str]:
    """Whether the run is the published experiment of its corpus, and everything in which it is not."""
    found = one.project.beside_published(one.method, one.evaluated.metrics.protocol)
    yield "## Beside the published experiment\n"
    yield f"{found.verdict}.\n"
    yield from (f"- {reason}" for reason in found.reasons)
    if found.reasons:
        yield ""
    if not found.settings:
        yield (
            "All settings are the published ones.\n"
            if found.row
            else "All settings are the method's defaults.\n"
        )
        return
    yield (
        "Settings other than the published ones:\n" if found.row else "Settings other than the defaults:\n"
    )
    yield from _table(
        ("setting", "here", "published" if found.row else "default"),
        (
            (
                row.setting,
                plain(row.here),
                plain(row.published) + ("" if row.stated or not found.row else " (usual)"),
            )
            for row in found.settings
        ),
    )


def _start(one: MethodResults) -> str:
    """Where the weights of a training of no epochs come from."""
    digest = one.training.fingerprint.components.get("start")
    if not digest:
        return "the weights are the random ones that training would have begun with"
    return f"the weights are those of a checkpoint that was imported, with the digest `{digest}`"


def _backbones(one: MethodResults) -> Iterator[str]:
    rows = list(_weights(one))
    if not rows:
        return
    yield "## Backbones and features\n"
    yield "The stages that the training rests on, and what decides their networks: digests of weight files, or the seed"
    yield "that random weights were drawn from. Of imported features, the digest of their source.\n"
    yield from _table(("stage", "settings", "identity"), rows)


def _weights(one: MethodResults) -> Iterator[tuple[str, str, str]]:
    """Of each stage upstream that has a network or imported features, its settings and its identity."""
    stages = one.project.stages
    needed = ancestors(stages, [one.training.stage.name])
    for name in order(stages):
        if name not in needed:
            continue
        parts = one.states[name].fingerprint.components
        identity = {key: value for key, value in parts.items() if key not in COMMON and value}
        chosen = {key: parts["params"][key] for key in CHOSEN if parts["params"].get(key)}
        if identity or (chosen and name != one.training.stage.name):
            yield name, _pairs(chosen), _pairs(identity)


def _pairs(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{key}: {plain(value)}" for key, value in values.items())


def _environment(one: MethodResults) -> Iterator[str]:
    yield "## Environment\n"
    yield "Of the machine that wrote this card; the store does not know with what versions the training ran.\n"
    yield from (f"- {name}: {value}" for name, value in environment())
    yield ""


def _limitations(one: MethodResults) -> Iterator[str]:
    metrics, contents = one.evaluated.metrics, one.project.contents
    protocol, kind = metrics.protocol, metrics.protocol.kind
    noun = NOUNS[kind]
    yield "## Limitations\n"
    asked = " and ".join(
        f"{counted(side.queries, 'query')} ({titles(kind)[direction].lower()})"
        for direction, side in protocol.directions.items()
    )
    yield f"- Measured on one split of one corpus, with {asked}; nothing is known of other {noun}s or texts."
    yield "- The intervals are of the queries alone: they do not say how figures spread over trainings."
    yield f"- Every {noun} competes with those of the split alone; a larger gallery is harder."
    if protocol.dropped:
        yield f"- {counted(protocol.dropped, 'caption')} of the split could not be judged."
    if contents.unreadable:
        yield f"- {counted(len(contents.unreadable), noun)} of the corpus could not be read."
    if metrics.tied:
        yield "- Some right answers are tied with others; the figures take the mean rank of the ties."
    if any("seed:" in identity or "seed:" in settings for _, settings, identity in _weights(one)):
        yield "- A backbone has random weights: this is a model to try the program with, none to use."


def _table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown, with an empty line behind."""
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""
