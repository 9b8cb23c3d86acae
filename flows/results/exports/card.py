"""A model card of a trained method, as the Hugging Face hub reads it: Markdown under a header of YAML.

It says what the store and the corpus know, and what they do not know is left open by name; nothing is guessed. The hub
has no task for text-video or text-3D retrieval, so no `pipeline_tag` is set; a tag says it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from flows.reporting import differences
from flows.results.exports.evaluated import Evaluated
from flows.results.report.environment import environment
from flows.results.report.leaderboard import label, printed, protocols, shown_metrics
from flows.results.report.wording import NOUNS, counted, kind_of, plain, titles, without_places
from pipeline.run.plan import ancestors, order

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


def export_card(one: Evaluated, target: Path, license_name: str = "") -> Path:
    """Write FOLDER/README.md; `license_name` is that of the weights, as the hub spells it (apache-2.0, cc-by-4.0)."""
    target.mkdir(parents=True, exist_ok=True)
    path = target / CARD
    folder = one.project.experiment.path.absolute().parent
    body = without_places("\n".join(_body(one, license_name)), folder)
    ModelCard(f"---\n{header(one, license_name).to_yaml()}\n---\n\n{body}\n").save(path)
    return path


def header(one: Evaluated, license_name: str = "") -> ModelCardData:
    """The card's metadata: what the hub searches by, and the figures as its model index has them."""
    kind, sides = kind_of(one.measured["protocol"]), one.measured["protocol"]["directions"]
    return ModelCardData(
        model_name=f"crossreel-{one.method}",
        license=license_name or UNKNOWN,
        library_name="crossreel",
        tags=["retrieval", "cross-modal-retrieval", one.method, *(TASKS[kind, way] for way in sides)],
        eval_results=list(_results(one)),
    )


def _results(one: Evaluated) -> Iterator[EvalResult]:
    """Every figure of a direction, with its interval in its name, as the index has no place for one."""
    protocol = one.measured["protocol"]
    corpus = one.project.contents.corpus.path.stem
    for direction, figures in _figures(one.measured).items():
        if direction not in protocol["directions"]:
            continue  # sums over both are of no task
        for name, figure in figures.items():
            low, high = printed(name, figure["low"]), printed(name, figure["high"])
            yield EvalResult(
                task_type=TASKS[kind_of(protocol), direction],
                dataset_type=corpus,
                dataset_name=(protocol.get("corpus") or {}).get("name") or corpus,
                dataset_split=protocol["split"],
                dataset_revision=protocol["split_digest"],
                metric_type=_metric(name),
                metric_name=f"{name} (95 % interval {low} to {high})",
                metric_value=figure["value"],
            )


def _metric(name: str) -> str:
    """A metric's name as the hub spells its own: recall_at_10, mean_rank."""
    named = {"SumR": "sum_of_recalls", "MdR": "median_rank", "MnR": "mean_rank", "MRR": "mrr"}
    return named.get(name, name.replace("R@", "recall_at_"))


def _figures(block: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Those under the mean rank of ties where any answer is tied, as leaderboards show them."""
    return dict(block["mean_ties"] or block["metrics"])


def _body(one: Evaluated, license_name: str) -> Iterator[str]:
    kind = kind_of(one.measured["protocol"])
    yield f"# crossreel {one.method}\n"
    yield f"A retriever between texts and {NOUNS[kind]}s, trained by the method `{one.method}` of crossreel."
    yield f"Its training has the fingerprint `{one.training.fingerprint.hex}`.\n"
    license_text = license_name or (
        f"{UNKNOWN}. Whoever publishes these weights says so: `crossreel export card --license NAME`, under what the "
        "licences of the data and of the backbones below allow"
    )
    yield f"License of the weights: {license_text}.\n"
    for part in (_data, _protocol, _results_tables, _post_processed, _training, _backbones, _environment):
        yield from part(one)
    yield from _limitations(one)


def _data(one: Evaluated) -> Iterator[str]:
    corpus, split = one.project.contents.corpus, one.measured["protocol"]["split"]
    told = one.measured["protocol"].get("corpus") or {}
    yield "## Data\n"
    yield (
        f"Corpus: `{corpus.path.name}`. "
        + (told.get("sentence") or "No published protocol is known of it.")
        + "\n"
    )
    yield from _table(
        ("split", f"{NOUNS[kind_of(one.measured['protocol'])]}s", "captions", "digest", "use"),
        (
            (name, f"{row['gallery']:,}", f"{row['queries']:,}", f"`{row['digest']}`", _use(name, split))
            for name, row in corpus.describe().items()
        ),
    )


def _use(split: str, evaluated: str) -> str:
    uses = {"train": "training", "val": "choice of the epoch"}
    return ", ".join(
        [*([uses[split]] if split in uses else []), *(["evaluation"] if split == evaluated else [])]
    )


def _protocol(one: Evaluated) -> Iterator[str]:
    (told,) = protocols({one.method: one.measured})
    yield "## Protocol\n"
    yield from (f"- {term}: {text}" for term, text in told.terms)
    yield ""


def _results_tables(one: Evaluated) -> Iterator[str]:
    protocol = one.measured["protocol"]
    yield "## Figures\n"
    yield "With 95 % intervals, and chance where it is known.\n"
    yield from _figure_tables(_figures(one.measured), protocol)


def _figure_tables(figures: Mapping[str, Mapping[str, Any]], protocol: Mapping[str, Any]) -> Iterator[str]:
    kind = kind_of(protocol)
    for direction, found in figures.items():
        chance = protocol["directions"].get(direction, {}).get("chance", {})
        yield f"{titles(kind)[direction]}:\n"
        yield from _table(
            ("metric", "value", "95 % interval", "chance"),
            (
                (label(name, kind), printed(name, found[name]["value"]),
                 f"{printed(name, found[name]['low'])} to {printed(name, found[name]['high'])}",
                 printed(name, chance[name]) if name in chance else "")
                for name in shown_metrics(found, kind)
            ),
        )  # fmt: skip


def _post_processed(one: Evaluated) -> Iterator[str]:
    for name, block in one.measured.get("post_processed", {}).items():
        settings = ", ".join(f"{key} {plain(value)}" for key, value in block["params"].items())
        yield f"### After {name} ({settings})\n"
        yield f"This {block['note']}.\n"
        yield from _figure_tables(_figures(block), one.measured["protocol"])


def _training(one: Evaluated) -> Iterator[str]:
    summary = one.trained["summary"]
    yield "## Training\n"
    yield f"- parameters: {summary['parameters']:,}"
    yield f"- epochs: {summary['epochs']}, of which epoch {summary['best_epoch']} was the best by the split val"
    yield f"- time: {one.record(one.training)['seconds']:.0f} s"
    yield ""
    other = differences(one.training.stage.params)
    if not other:
        yield "All settings are the published ones.\n"
        return
    yield "Settings other than the published ones:\n"
    yield from _table(
        ("setting", "here", "published"),
        ((row["setting"], plain(row["here"]), plain(row["published"])) for row in other),
    )


def _backbones(one: Evaluated) -> Iterator[str]:
    rows = list(_weights(one))
    if not rows:
        return
    yield "## Backbones and features\n"
    yield "The stages that the training rests on, and what decides their networks: digests of weight files, or the seed"
    yield "that random weights were drawn from. Of imported features, the digest of their source.\n"
    yield from _table(("stage", "settings", "identity"), rows)


def _weights(one: Evaluated) -> Iterator[tuple[str, str, str]]:
    """Of each stage upstream that has a network or imported features, its settings and its identity."""
    stages = one.project.stages
    wanted = ancestors(stages, [one.training.stage.name])
    for name in order(stages):
        if name not in wanted:
            continue
        parts = one.states[name].fingerprint.components
        identity = {key: value for key, value in parts.items() if key not in COMMON and value}
        chosen = {key: parts["params"][key] for key in CHOSEN if parts["params"].get(key)}
        if identity or (chosen and name != one.training.stage.name):
            yield name, _pairs(chosen), _pairs(identity)


def _pairs(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{key}: {plain(value)}" for key, value in values.items())


def _environment(one: Evaluated) -> Iterator[str]:
    yield "## Environment\n"
    yield "Of the machine that wrote this card; the store does not know with what versions the training ran.\n"
    yield from (f"- {name}: {value}" for name, value in environment())
    yield ""


def _limitations(one: Evaluated) -> Iterator[str]:
    protocol, contents = one.measured["protocol"], one.project.contents
    kind, sides = kind_of(protocol), protocol["directions"]
    noun = NOUNS[kind]
    yield "## Limitations\n"
    asked = " and ".join(
        f"{counted(side['queries'], 'query')} ({titles(kind)[way].lower()})" for way, side in sides.items()
    )
    yield f"- Measured on one split of one corpus, with {asked}; nothing is known of other {noun}s or texts."
    yield "- The intervals are of the queries alone: they do not say how figures spread over trainings."
    yield f"- Every {noun} competes with those of the split alone; a larger gallery is harder."
    if protocol.get("dropped"):
        yield f"- {counted(protocol['dropped'], 'caption')} of the split could not be judged."
    if contents.unreadable:
        yield f"- {counted(len(contents.unreadable), noun)} of the corpus could not be read."
    if one.measured["mean_ties"]:
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
