"""The experiment file for a corpus of one's own: the settings that we recommend, each written out with its meaning.

No published experiment is repeated, so no recipe is named: the settings are the `stable` ones of a published row of the
method, with batches that fit the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flows.drafting.explanations import explanations
from flows.drafting.lines import Line, Table, text
from flows.drafting.published import evaluation, settings_of
from pipeline.corpus.manifest import Corpus
from pipeline.errors import UserError
from pipeline.settings import Tree
from trainers.recipes import NONE, STABLE, PublishedRecipe, find, recipes
from trainers.registry import METHODS

NEAREST = {  # the published row whose settings a method begins with on data of one's own
    "clip4clip": "msrvtt-zero-shot",
    "neighborretr": "msrvtt",
    "gare": "msrvtt",
    "hlformer": "activitynet",
    "lean": "msrvtt",
    "h2arn": "t3dr-hit-elephant",
}
NEEDED = ("train", "val", "test")
OF_A_PAPER = {"patience", "select_by"}  # how a published run chose its epoch, of which no other run need know


def written(corpus: Corpus, methods: Sequence[str], target: Path, manifest: str, store: str = "store") -> str:
    """The experiment file that trains methods on a corpus.

    Raises UserError for a method that is not there or ranks items of another kind, and for a corpus without a split.
    """
    rows = [_row(corpus, name) for name in methods]
    corpora = [corpus.of_kind(METHODS.find(name).config.kind) for name in methods]
    for part in corpora:
        for split in NEEDED:
            part.require_queries(split)
    head = [
        f"{', '.join(methods)} on {manifest}: a corpus of our own, with the settings that we recommend.",
        "Validation items choose the epoch, and the test split is looked at once, at the end.",
        "",
        f"  crossreel corpus check {manifest}   opens every file before hours are spent",
        f"  crossreel plan {target.name}   says what a run would do, and what this machine lacks",
        f"  crossreel run {target.name}",
        "All other settings have the defaults of docs/methods/ and docs/stages.md.",
    ]
    top = Table(lines=[
        Line("corpus", manifest, "the manifest; its splits train, val and test are used"),
        Line("store", store, "the folder of all that is made; experiments share what is the same in them"),
        Line("methods", list(methods), "trained, evaluated and compared in this order"),
    ])  # fmt: skip
    tables = [_table(*each) for each in zip(methods, rows, corpora, strict=True)]
    return text(head, [top, *tables, evaluation()])


def _row(corpus: Corpus, method: str) -> PublishedRecipe | None:
    declared = METHODS.find(method)
    if declared.config.kind not in corpus.kinds:
        raise UserError(
            f"--methods {method}: it ranks items of kind {declared.config.kind}, and {corpus.path} holds items of kind "
            f"{corpus.kinds[0]}"
        )
    if method in NEAREST:
        return find(method, NEAREST[method])
    return next(iter(recipes(method, declared.recipes)), None)  # a method of an installed package


def _table(method: str, row: PublishedRecipe | None, corpus: Corpus) -> Table:
    """The settings of a method, those of features left to their defaults; the corpus has items of its kind alone."""
    model = METHODS.find(method).config
    there = {"captions": sum(1 for _ in corpus.captions("train")), "items": len(corpus.gallery("train"))}
    count = there[model.batch_of]
    words = explanations(model)
    table = Table(f"trainers.{method}", "zero-shot: nothing is trained, and its figure is looked at first"
                  if row is not None and not row.trained else "")  # fmt: skip
    table.lines.append(Line("recipe", NONE, "no published experiment: the corpus is another one"))
    settings: Tree = settings_of(row, STABLE) if row else {}
    usual = model()
    for key, value in model.fitted(settings, count).items():
        if key in OF_A_PAPER:
            continue
        published = settings.get(key, value)
        why = "" if value == published else f"; published {published}, and there are {count} {model.batch_of}"
        table.lines.append(Line(key, value, f"{words.get(key, '')}{why}"))
    if row is not None and row.trained:
        table.lines += [
            Line("patience", usual.patience, words["patience"]),
            Line("select_by", usual.select_by, words["select_by"]),
        ]
    return table
