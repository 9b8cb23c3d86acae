"""An import over an earlier manifest: whose splits are kept, and which items would move between splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.corpus.importers.table import Imported
from pipeline.corpus.manifest import Caption, Corpus, Item, parse
from pipeline.errors import UserError

NAMED = 3  # examples in a sentence


@dataclass(frozen=True)
class Earlier:
    """The items of an earlier manifest, found again by their id or, where that is another, by their media file."""

    path: Path
    items: tuple[Item, ...]

    @classmethod
    def read(cls, path: Path) -> Earlier:
        """The items of a manifest that is valid. Raises UserError."""
        return cls(path, Corpus.read(path).items)

    @classmethod
    def at(cls, path: Path) -> Earlier | None:
        """What stands where a manifest is about to be written: None for nothing, lines that are wrong left out.

        Raises UserError for a file that is no manifest, so that a mistyped --out destroys nothing.
        """
        if not path.exists() or (path.is_file() and path.stat().st_size == 0):
            return None
        items, problems = parse(path)
        if problems and not items:
            raise UserError(
                f"{path} is there already and is no corpus manifest ({problems[0]}); remove it, or name another --out"
            )
        return cls(path, tuple(items))

    def find(self, items: Iterable[Item], folder: Path) -> dict[str, Item]:
        """By the id of each of these items the earlier one; `folder` is what their media are relative to."""
        by_id = {item.id: item for item in self.items}
        by_media = {
            str((self.path.parent / item.media).absolute().resolve()): item
            for item in self.items
            if item.media
        }
        found = {}
        for item in items:
            earlier = by_id.get(item.id)
            if earlier is None and item.media and by_media:
                earlier = by_media.get(str((folder / item.media).absolute().resolve()))
            if earlier is not None:
                found[item.id] = earlier
        return found


def keep_splits(found: Imported, earlier: Earlier, folder: Path) -> Imported:
    """The same with each item, and each caption of an item, in the split that an earlier manifest has it in.

    Notes say how many were kept against the source, and how many items are new.
    """
    before = earlier.find(found.items, folder)
    items = [_kept(item, before[item.id]) if item.id in before else item for item in found.items]
    changed = [old.id for old, new in zip(found.items, items, strict=True) if old != new]
    new = len(items) - len(before)
    notes = [f"{len(before)} items keep their split of {earlier.path}, {new} are new"]
    if changed:
        notes.append(
            f"{len(changed)} of them would be in another split by the source or the ratio: {_examples(changed)}"
        )
    gone = len(earlier.items) - len({item.id for item in before.values()})
    if gone:
        notes.append(f"{gone} items of {earlier.path} are not in the source")
    return replace(found, items=items, notes=notes + found.notes, dealt=min(found.dealt, new))


def _kept(item: Item, earlier: Item) -> Item:
    """An item in its earlier split, its captions in theirs; a caption that is new is in the split of the item."""
    splits = {_key(caption): caption.split for caption in earlier.captions}
    captions = tuple(replace(caption, split=splits.get(_key(caption))) for caption in item.captions)
    return replace(item, split=earlier.split, captions=captions)


def _key(caption: Caption) -> tuple[str, float | None, float | None]:
    return caption.text, caption.start, caption.end


def require_unmoved(items: Sequence[Item], earlier: Earlier, folder: Path) -> None:
    """Raise UserError where items, or captions of theirs, would change their split against an earlier manifest."""
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
    """From which split to which an item moves, or else a caption that both have; None where nothing moves."""
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
