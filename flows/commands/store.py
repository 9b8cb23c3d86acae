"""store ls, du, verify, gc: what is in a store, how large it is, whether it is whole, what can go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.terms import AsJson, human_bytes, out, print_json, print_table
from flows.project import open_project
from pipeline.errors import UserError
from pipeline.store import Store, tree_bytes

StoreFolder = Annotated[Path, typer.Argument(metavar="STORE", help="The store's folder.")]
DEFAULT_STORE = Path("store")
YOUNG_SECONDS = 3600.0  # what is younger may belong to a run that has not locked it yet

app = typer.Typer(help="Look after a store.", no_args_is_help=True)


def _open(folder: Path) -> Store:
    if not (folder / "index.sqlite").exists() and not (folder / "segments").is_dir():
        raise UserError(f"{folder} is not a store; an experiment file names its store as `store`")
    return Store(folder)


@app.command()
def ls(folder: StoreFolder = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Every fingerprint in the store: its stage, its items or folder, its size."""
    store = _open(folder)
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
def du(folder: StoreFolder = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Bytes by stage."""
    store = _open(folder)
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
    folder: StoreFolder = DEFAULT_STORE,
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop what is damaged; the next run makes it again.")
    ] = False,
) -> None:
    """Read everything and compare it with its checksum."""
    store = _open(folder)
    count = [0]

    def seen() -> None:
        count[0] += 1

    damage = store.verify(repair, seen)
    for found in damage:
        out.print(f"damaged: {found.sentence}", markup=False)
    out.print(
        f"{count[0]} segments and folders read, {len(damage)} damaged{', dropped' if damage and repair else ''}"
    )
    if damage and not repair:
        raise typer.Exit(1)


@app.command()
def gc(
    experiments: Annotated[
        list[Path], typer.Argument(metavar="EXPERIMENT...", help="Experiments whose artifacts stay.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    young_seconds: Annotated[float, typer.Option(help="Keep what is younger than this.")] = YOUNG_SECONDS,
) -> None:
    """Remove what none of the named experiments needs, segments that nothing refers to, and abandoned work."""
    projects = [open_project(path) for path in experiments]
    store = projects[0].store
    if any(project.store.root != store.root for project in projects):
        raise UserError("the experiments named have different stores; name those of one store at a time")
    keep = {state.fingerprint.hex for project in projects for state in project.survey().values()}
    removed = store.gc(keep, dry_run, young_seconds)
    for path, size in removed:
        out.print(f"{human_bytes(size):>10}  {path.relative_to(store.root)}", markup=False)
    total = human_bytes(sum(size for _, size in removed))
    out.print(f"{len(removed)} {'would go' if dry_run else 'removed'}, {total}")
