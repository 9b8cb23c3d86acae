"""An import over an earlier manifest: whose splits are kept, and which items would move between splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.corpus.importers.table import Imported
from pipeline.corpus.manifest import Caption, Corpus, Item, read_lines
from pipeline.errors import UserError

NAMED = 3  # examples in a sentence


@dataclass(frozen=True)
class Earlier:
    """Items of an earlier manifest, matched by id or, if the id differs, by media file."""

    path: Path
    items: tuple[Item, ...]

    @classmethod
    def read(cls, path: Path) -> Earlier:
        """Items of a valid manifest. Raises UserError for any other."""
        return cls(path, Corpus.read(path).items)

    @classmethod
    def at(cls, path: Path) -> Earlier | None:
        """The manifest at the path of a new one, without its invalid lines; None if there is no file.

        Raises UserError for a file that is not a manifest, so that a mistyped --out destroys nothing.
        """
        if not path.exists() or (path.is_file() and path.stat().st_size == 0):
            return None
        items, problems = read_lines(path)
        if problems and not items:
            raise UserError(
                f"{path} is there already and is no corpus manifest ({problems[0]}); remove it, or name another --out"
            )
        return cls(path, tuple(items))

    def find(self, items: Iterable[Item], folder: Path) -> dict[str, Item]:
        """The earlier item for the id of each item that has one; media paths are relative to `folder`."""
        by_id = {item.id: item for item in self.items}
        by_media = {
            str((self.path.parent / item.media).absolute().resolve()): item
            for item in self.items
            if item.media
        }
        matches = {}
        for item in items:
            earlier = by_id.get(item.id)
            if earlier is None and item.media and by_media:
                earlier = by_media.get(str((folder / item.media).absolute().resolve()))
            if earlier is not None:
                matches[item.id] = earlier
        return matches


def keep_splits(imported: Imported, earlier: Earlier, folder: Path) -> Imported:
    """The import with each item and caption in its split of an earlier manifest.

    The notes count the items whose split differs from the source's, and the new items.
    """
    before = earlier.find(imported.items, folder)
    items = [_kept(item, before[item.id]) if item.id in before else item for item in imported.items]
    changed = [old.id for old, new in zip(imported.items, items, strict=True) if old != new]
    new = len(items) - len(before)
    notes = [f"{len(before)} items keep their split of {earlier.path}, {new} are new"]
    if changed:
        notes.append(
            f"{len(changed)} of them would be in another split by the source or the ratio: {_examples(changed)}"
        )
    gone = len(earlier.items) - len({item.id for item in before.values()})
    if gone:
        notes.append(f"{gone} items of {earlier.path} are not in the source")
    return replace(imported, items=items, notes=notes + imported.notes, dealt=min(imported.dealt, new))


def _kept(item: Item, earlier: Item) -> Item:
    """The item with its earlier split and those of its captions; a new caption takes the item's split."""
    splits = {_key(caption): caption.split for caption in earlier.captions}
    captions = tuple(replace(caption, split=splits.get(_key(caption))) for caption in item.captions)
    return replace(item, split=earlier.split, captions=captions)


def _key(caption: Caption) -> tuple[str, float | None, float | None]:
    return caption.text, caption.start, caption.end


def require_unmoved(items: Sequence[Item], earlier: Earlier, folder: Path) -> None:
    """Raise UserError if items or their captions would be in another split than in an earlier manifest."""
    before = earlier.find(items, folder)
    moves = [(item, move) for item in items if item.id in before and (move := _move(before[item.id], item))]
    if not moves:
        return
    kinds = Counter(move for _, move in moves).most_common(NAMED)
    words = ", ".join(f"{times} from {old} to {new}" for (old, new), times in kinds)
    raise UserError(
        f"{earlier.path} is there already, and {len(moves)} of its {len(earlier.items)} items would move to another "
        f"split ({words}; {_examples([item.id for item, _ in moves])}), so that figures of models trained before mean "
        f"nothing; --keep-splits {earlier.path} leaves them where they are, --move-splits moves them"
    )


def _move(before: Item, after: Item) -> tuple[str, str] | None:
    """Old and new split of an item that moves, or of a caption of both that does; None if nothing moves."""
    if before.split != after.split:
        return before.split, after.split
    of: dict[tuple[str, float | None, float | None], set[str]] = {}
    for caption in before.captions:
        of.setdefault(_key(caption), set()).add(caption.split or before.split)
    for caption in after.captions:
        split, earlier = caption.split or after.split, of.get(_key(caption))
        if earlier and split not in earlier:
            return min(earlier), split
    return None


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")
