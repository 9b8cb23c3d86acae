"""search: the items that match a sentence best, or the captions that match a media file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.experiments import opened
from flows.commands.terms import (
    DEFAULT_EXPERIMENT,
    METHOD_OPTION,
    AsJson,
    GalleryCorpus,
    RunOption,
    Sets,
    human_seconds,
    method_names,
    out,
    print_json,
)
from flows.console import StageDisplay
from flows.project import Project
from flows.results.wording import listed
from flows.search.calibration import Calibration
from flows.search.hits import CaptionHit, Hit, Moment
from flows.search.joint import COMPARABLE, JointHit, join, joint_methods
from flows.search.query import require_text, require_top
from flows.search.searched import chosen_gallery
from flows.search.searcher import Searcher
from flows.terminal import in_one_line
from pipeline.errors import UserError


def search(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[TEXT] [EXPERIMENT]", help="The sentence to search for, and the experiment file.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    method: Annotated[str, typer.Option(
            *METHOD_OPTION, autocompletion=method_names,
            help="A trained method of the experiment; or one for each kind of items, with a comma.",
        ),
    ] = "",
    split: Annotated[str, typer.Option("--split", help="The split to search; else the evaluated one.")] = "",
    top: Annotated[int, typer.Option("--top", help="How many results.")] = 10,
    caption: Annotated[
        str, typer.Option("--caption", metavar="ID", help="Search for a caption of the split instead.")
    ] = "",
    media: Annotated[
        Path | None,
        typer.Option("--media", "--video", metavar="FILE", help="Search captions by a video or point cloud."),
    ] = None,
    run: RunOption = "",
    corpus: GalleryCorpus = None,
    sets: Sets = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """List the items that match a sentence best; with --media, the captions that match a file best.

    What is finished is searched: where the experiment or its corpus has changed since, its last run answers, and one
    line says so. The first search of a split encodes and stores all of it.

    An experiment with one method for videos and one for point clouds is searched with both, in one list. Scores of
    different methods cannot be compared, so the list is ordered by the standard score: how far a score lies above the
    best scores that captions of other items get with the same method.
    """
    text, experiment = _query(words, caption, media)
    require_top(top)
    methods = method.replace(",", " ").split()
    if len(methods) > 1 and not (text and not run):
        raise UserError(
            f"--run, --caption and --media search with one method; --method names {listed(methods)}"
        )
    with StageDisplay(quiet=as_json) as display:
        project = opened(experiment, sets, [], display)
        own = project.contents.corpus if corpus is None else None
        if joint := joint_methods(project.stages, methods, own, split) if text and not run else {}:
            _search_jointly(project, joint, text, top, split, corpus, display, as_json)
            return
        searched = chosen_gallery(project, method, split, run, corpus)
        with Searcher(searched, say=display.say, on_progress=display.progress) as searcher:
            display.idle()
            started = time.monotonic()
            hits: list[Hit] | list[CaptionHit]
            if media is not None:
                hits = searcher.search_media(media, top)
            else:
                hits = searcher.search_caption(caption, top) if caption else searcher.search(text, top)
            took = human_seconds(time.monotonic() - started)
            display.say(
                f"searched {searcher.split!r} with {searcher.method} in {took}, networks loaded included"
            )
    if as_json:
        rows = [hit.as_json() for hit in hits]
        print_json({
            "method": searcher.method, "split": searcher.split, "run": searched.run, "note": searched.note,
            "hits": rows,
        })  # fmt: skip
    else:
        _show(hits)


def _search_jointly(
    project: Project, kinds: Mapping[str, str], text: str, top: int, split: str, corpus: Path | None,
    display: StageDisplay, as_json: bool,
) -> None:  # fmt: skip
    """Search with each method, one after the other, so that one of them is in memory at a time; show one list."""
    found: dict[str, tuple[list[Hit], Calibration]] = {}
    methods = []
    galleries = {method: chosen_gallery(project, method, split, "", corpus) for method in kinds}
    for method, kind in kinds.items():
        searched = galleries[method]
        with Searcher(searched, say=display.say, on_progress=display.progress) as searcher:
            display.idle()
            found[method] = searcher.search(text, top), searcher.calibrate()
        about = {"method": method, "kind": kind, "split": searched.split}
        methods.append(about | {"run": searched.run, "note": searched.note})
    hits = join(found, kinds, top)
    if as_json:
        print_json({"methods": methods, "comparable": COMPARABLE, "hits": [hit.as_json() for hit in hits]})
        return
    _show([one.hit for one in hits], hits)
    out.print(COMPARABLE, markup=False, style="dim")


def _query(words: list[str], caption: str, media: Path | None) -> tuple[str, Path]:
    """The sentence to search for ("" with --caption or --media), and the experiment file."""
    if caption and media is not None:
        raise UserError("--caption and --media exclude each other")
    other = bool(caption) or media is not None
    if len(words) > (1 if other else 2):
        raise UserError(f"{words[-1]!r} is one argument too many; put the sentence in quotes")
    if other:
        return "", Path(words[0]) if words else DEFAULT_EXPERIMENT
    if not words:
        raise UserError(
            'say what to search for: crossreel search "a sentence", or --caption ID, or --media FILE'
        )
    return require_text(words[0]), Path(words[1]) if len(words) > 1 else DEFAULT_EXPERIMENT


def _show(hits: list[Hit] | list[CaptionHit], joint: Sequence[JointHit] = ()) -> None:
    """The table of results: its caption is the first one of the item, or the caption found, cut to fit a line.

    joint: what a search with several methods says of each of the hits.
    """
    columns = ["place", "score", "item", "moment", "caption"]
    rows = [[str(hit.place), f"{hit.score:.3f}", hit.item, _seconds(hit.moment), _text(hit)] for hit in hits]
    if not any(hit.moment for hit in hits):
        columns.remove("moment")
        rows = [[*row[:3], row[4]] for row in rows]
    if joint:
        columns[:2] = ["place", "standard", "method", "score"]
        rows = [
            [str(one.place), f"{one.standard:+.2f}", one.method, *row[1:]]
            for one, row in zip(joint, rows, strict=True)
        ]
    rows = [[*map(in_one_line, row)] for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    before = 0  # characters
    for name, cells in zip(columns[:-1], zip(*rows, strict=True), strict=False):
        before += 1 + max(len(cell) for cell in (name, *cells))
        table.add_column(name, justify="left" if name in ("item", "method") else "right", no_wrap=True)
    room = max(len(columns[-1]), out.width - before)
    table.add_column(columns[-1], no_wrap=True, overflow="ellipsis", max_width=room)
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def _text(hit: Hit | CaptionHit) -> str:
    return hit.text if isinstance(hit, CaptionHit) else next(iter(hit.captions), "")


def _seconds(moment: Moment | None) -> str:
    return "" if moment is None else f"{moment[0]:.1f}-{moment[1]:.1f} s"
