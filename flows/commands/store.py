"""store ls, du, verify, gc, push, pull: list, measure, check and clean a store, and copy it elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.terms import (
    FAILED_ITEMS,
    AsJson,
    human_bytes,
    out,
    print_json,
    print_table,
    store_setting,
)
from flows.console import StageDisplay
from flows.project import Project, open_project
from flows.search.index import with_index
from flows.trained.naming import named_digest
from flows.trained.recorded import prints_of
from flows.trained.runs import find_run, last_run
from pipeline.errors import UserError, nearest
from pipeline.run.execute import Progress
from pipeline.run.plan import State
from pipeline.store.store import Store, tree_bytes
from pipeline.store.transfer.pull import pull as fetch
from pipeline.store.transfer.push import push as publish
from pipeline.store.transfer.remote import Remote
from pipeline.store.transfer.work import How, OnMoved, Outcome, Selection

StoreFolder = Annotated[
    Path | None,
    typer.Argument(metavar="STORE", help="The store's folder; by default `store`.", show_default=False),
]
DEFAULT_STORE = Path("store")
YOUNG_SECONDS = 3600.0  # age below which gc keeps a folder: a run may not have locked it yet
SHOWN = 20
DAMAGES_SHOWN = 10
MB = 10**6

Url = Annotated[str, typer.Argument(metavar="URL", help="s3://BUCKET/PATH, gs://..., file:// or a folder.")]
OfStore = Annotated[
    Path | None, typer.Option("--store", metavar="PATH", help="The store's folder; by default `store`.")
]
OfExperiment = Annotated[
    Path | None,
    typer.Option(
        "--experiment", "-e", help="Use the store of this experiment, and only the artifacts that it needs."
    ),
]
OfStages = Annotated[
    list[str], typer.Option("--stage", metavar="STAGE", help="Only artifacts of this stage; repeatable.")
]
Jobs = Annotated[
    int, typer.Option("--jobs", "-j", min=1, max=64, help="Number of files transferred at once.")
]
EndpointUrl = Annotated[str | None, typer.Option(help="The URL of your own S3 server (s3:// only).")]

app = typer.Typer(help="List, measure, check, clean and copy a store.", no_args_is_help=True)


def _open(folder: Path | None, option: Path | None = None) -> Store:
    """The store that the argument or the option --store names. Raises UserError where both do, or neither is one."""
    if folder is not None and option is not None:
        raise UserError(f"{folder} and --store {option} both name a store; name one")
    folder = folder or option or DEFAULT_STORE
    if not (folder / "index.sqlite").exists() and not (folder / "segments").is_dir():
        raise UserError(f"{folder} is not a store; an experiment file names its store as `store`")
    return Store(folder)


@app.command()
def ls(folder: StoreFolder = None, option: OfStore = None, as_json: AsJson = False) -> None:
    """List every fingerprint in the store with its stage, its number of items, and its size."""
    store = _open(folder, option)
    rows: list[tuple[str, str, int, int]] = []
    for fp, (stage, _) in sorted(store.index.fingerprints().items(), key=lambda entry: entry[1][0]):
        items, size = len(store.index.places(fp)), _bytes(store, stage, fp)
        if size:
            rows.append((stage, fp, items, size))
    if as_json:
        print_json([{"stage": s, "fingerprint": f, "items": i, "bytes": b} for s, f, i, b in rows])
    else:
        lines = [[stage, fp, str(items or ""), human_bytes(size)] for stage, fp, items, size in rows]
        print_table("", ["stage", "fingerprint", "items", "size"], lines)


@app.command()
def du(folder: StoreFolder = None, option: OfStore = None, as_json: AsJson = False) -> None:
    """Print the size of the artifacts of each stage."""
    store = _open(folder, option)
    sizes: dict[str, int] = {}
    for fp, (stage, _) in store.index.fingerprints().items():
        sizes[stage] = sizes.get(stage, 0) + _bytes(store, stage, fp)
    if as_json:
        print_json(sizes)
    else:
        rows = [
            [stage, human_bytes(size)] for stage, size in sorted(sizes.items(), key=lambda e: -e[1]) if size
        ]
        print_table("", ["stage", "size"], [*rows, ["all", human_bytes(tree_bytes(store.root))]])


def _bytes(store: Store, stage: str, fp: str) -> int:
    return sum(
        tree_bytes(path)
        for kind in ("segments", "files", "runs")
        if (path := store.root / kind / stage / fp).exists()
    )


@app.command()
def verify(
    folder: StoreFolder = None,
    option: OfStore = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop damaged artifacts; the next run makes them again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read every artifact and compare it with its checksum, and compare the index with the artifacts.

    Prints a summary and the first ten damaged artifacts; --json prints all of them.
    """
    store = _open(folder, option)
    count = [0]
    with StageDisplay(quiet=as_json) as display:

        def seen(done: int, total: int) -> None:
            count[0] = done
            display.progress(Progress("verify", done, total))

        damage = store.verify(repair, seen)
    if as_json:
        print_json({
            "read": count[0], "repaired": repair,
            "damaged": [{"path": str(one.path), "sentence": one.sentence} for one in damage],
        })  # fmt: skip
    else:
        mended = ", mended or dropped" if damage and repair else ""
        out.print(f"{count[0]} segments and folders read, {len(damage)} damaged{mended}")
        for one in damage[:DAMAGES_SHOWN]:
            out.print(f"damaged: {one.sentence}", markup=False)
        if len(damage) > DAMAGES_SHOWN:
            out.print(f"... and {len(damage) - DAMAGES_SHOWN} more: --json lists all")
    if damage and not repair:
        raise typer.Exit(1)


@app.command()
def gc(
    experiments: Annotated[
        list[Path], typer.Argument(metavar="EXPERIMENT...", help="Experiments whose artifacts are kept.")
    ],
    keep_runs: Annotated[
        list[str], typer.Option("--keep-run", metavar="RUN", help="METHOD@DIGEST of a trained run to keep.")
    ] = [],  # noqa: B006
    packs: Annotated[
        bool,
        typer.Option(
            "--packs",
            help="Also remove the packed inputs of these experiments. A run that needs them makes them again from the "
            "features; nothing is trained or evaluated again.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
    young_seconds: Annotated[
        float, typer.Option(help="Keep files that are younger than this.")
    ] = YOUNG_SECONDS,
    option: Annotated[
        Path | None,
        typer.Option("--store", metavar="PATH", help="Clean this store instead of the experiments'."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove artifacts that none of the experiments needs, segments without references, and abandoned work files.

    Where a method is not trained as its experiment says today, its last trained run is kept: search and serve use it.
    """
    with StageDisplay(quiet=as_json) as display:
        settings = [store_setting(option)] if option else []
        projects = [open_project(path, settings) for path in experiments]
        store = projects[0].store
        if any(project.store.root != store.root for project in projects):
            raise UserError("the experiments named have different stores; name those of one store at a time")
        display.progress(Progress("gc", 0, 1, doing="looking up what the experiments need"))
        keep = {fp for project in projects for fp in _kept(project)}
        for word in keep_runs:
            method, digest = named_digest(word, "")
            keep |= prints_of(find_run(store, method, digest), projects[0].stages)
        again = {fp for project in projects for fp in _made_again(project)} if packs else set[str]()
        removed = store.gc(
            keep,
            dry_run,
            young_seconds,
            again,
            lambda done, total: display.progress(Progress("gc", done, total)),
        )
    if as_json:
        paths = [{"path": str(path.relative_to(store.root)), "bytes": size} for path, size in removed]
        print_json({"dry_run": dry_run, "removed": paths, "bytes": sum(size for _, size in removed)})
        return
    for path, size in removed:
        out.print(f"{human_bytes(size):>10}  {path.relative_to(store.root)}", markup=False)
    total = human_bytes(sum(size for _, size in removed))
    out.print(f"{len(removed)} {'would go' if dry_run else 'removed'}, {total}")


def _kept(project: Project) -> set[str]:
    """Fingerprints that an experiment needs, with the search indexes of its splits and its last trained runs."""
    corpus, tables = project.contents.corpus, [project.stages]
    for method in project.experiment.methods:
        searched = [split for split in corpus.splits if next(corpus.captions(split), None) is not None]
        tables += [with_index(project.stages, method, split) for split in searched]
    states = (replace(project, stages=stages).survey() for stages in tables)
    found = [state for survey in states for state in survey.values()]
    needed = {fp for state in found for fp in _prints(state)}
    today = project.states()
    for method in project.experiment.methods:
        run = (
            None
            if today[f"train-{method}"].complete
            else last_run(project.store, project.experiment.name, method)
        )
        needed |= prints_of(run, project.stages) if run else set()
    return needed


def _prints(state: State) -> Iterator[str]:
    """Yield the fingerprint of a state, and that of the rows that the stage keeps beside its artifact."""
    yield state.fingerprint.hex
    if kept := state.stage.keeps(state.fingerprint):
        yield kept[1].hex


def _made_again(project: Project) -> Iterator[str]:
    """Yield the fingerprints of packed inputs whose features are all there, and of their rows."""
    states = project.survey()
    for state in states.values():
        if state.stage.on_demand and all(states[need].complete for need in state.stage.needs):
            yield from _prints(state)


@app.command()
def push(
    url: Url,
    folder: OfStore = None,
    experiment: OfExperiment = None,
    stages: OfStages = [],  # noqa: B006
    jobs: Jobs = 4,
    endpoint_url: EndpointUrl = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="Upload published files again, to replace copies that were damaged there."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be sent.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish segments, items' files and finished folders below a URL, for other stores to pull.

    Published artifacts are skipped, and the same command resumes an interrupted push. Failures of items are not
    published: they belong to this store only.
    """
    store, selection = _chosen(folder, experiment)
    remote = _remote(url, endpoint_url, store)
    known = {stage for stage, _ in store.index.fingerprints().values()}
    _require_stages(stages, known, store.root)
    with StageDisplay() as display:
        outcome = publish(
            store, remote, stages, selection, How(jobs, dry_run, again), _moving(display, "push")
        )
    _print_outcome(outcome, "would be sent" if dry_run else "sent", as_json)


@app.command()
def pull(
    url: Url,
    folder: OfStore = None,
    experiment: OfExperiment = None,
    stages: OfStages = [],  # noqa: B006
    jobs: Jobs = 4,
    endpoint_url: EndpointUrl = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be fetched.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch the artifacts that were published below a URL and are not in this store, check and record them.

    With an experiment, only artifacts that it needs. The same command resumes an interrupted pull, inside the file that
    it had reached.
    """
    store, selection = _chosen(folder, experiment, make=True)
    remote = _remote(url, endpoint_url, store)
    _require_stages(stages, {where.stage for where in remote.entries()} if stages else set(), url)
    with StageDisplay() as display:
        moving = _moving(display, "pull")
        outcome = fetch(store, remote, stages, selection, How(jobs, dry_run), moving, display.say)
    _print_outcome(outcome, "would be fetched" if dry_run else "fetched", as_json)


def _chosen(
    folder: Path | None, experiment: Path | None, make: bool = False
) -> tuple[Store, Selection | None]:
    """The store, and the units of every fingerprint that an experiment needs; None for all without an experiment."""
    if experiment is None:
        place = folder or DEFAULT_STORE
        return (Store(place) if make else _open(place)), None
    if folder is not None:
        raise UserError(f"{experiment} names its store; give --store or --experiment, not both")
    project = open_project(experiment)
    return project.store, _selection(project)


def _selection(project: Project) -> Selection:
    """The units of every fingerprint that an experiment needs; of rows that packing keeps, all items and captions."""
    states, contents = project.survey(), project.contents
    chosen = {state.fingerprint.hex: frozenset(state.keys) for state in states.values()}
    units = frozenset([*contents.items(), *contents.captions()])
    for state in states.values():
        if kept := state.stage.keeps(state.fingerprint):
            chosen[kept[1].hex] = units
    return chosen


def _remote(url: str, endpoint_url: str | None, store: Store) -> Remote:
    """The remote side at a URL. Raises UserError if it lies inside the store."""
    remote = Remote.open(url, endpoint_url)
    if remote.protocol == "file" and Path(remote.root).resolve().is_relative_to(store.root.resolve()):
        raise UserError(f"{url} lies in the store itself; name a place outside of {store.root}")
    return remote


def _require_stages(stages: list[str], known: set[str], where: Path | str) -> None:
    for stage in stages:
        if stage not in known:
            raise UserError(f"{where} has nothing of a stage {stage!r}; {nearest(stage, known)}")


def _moving(display: StageDisplay, verb: str) -> OnMoved:
    return lambda moved, total: display.progress(Progress(f"{verb}, MB", moved // MB, -(-total // MB)))


def _print_outcome(outcome: Outcome, verb: str, as_json: bool) -> None:
    """Print the numbers of artifacts transferred, already there, and failed."""
    if as_json:
        print_json(outcome.as_json())
    else:
        for name, reason in outcome.failed[:SHOWN]:
            out.print(f"failed: {name}: {reason}", markup=False)
        if len(outcome.failed) > SHOWN:
            out.print(f"... and {len(outcome.failed) - SHOWN} more")
        whole = f"{outcome.segments} segments, {outcome.folders} folders, {human_bytes(outcome.bytes)} {verb}"
        failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
        out.print(f"{whole}, {outcome.already} were there already{failed}")
    if outcome.failed:
        raise typer.Exit(FAILED_ITEMS)
