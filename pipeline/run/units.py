"""The data of each unit of a pass that a worker needs, made when its shard is handed out and then forgotten.

A pass of 200,000 captions held 120 MB of dictionaries before its first shard; now it holds the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import Caption, Item
from pipeline.errors import UserError
from pipeline.run.plan import State
from pipeline.run.stage import Stage
from pipeline.store.store import Store

Spec = dict[str, Any]


class UnitSpecs(Mapping[str, Spec]):
    """The items or captions with these keys as plain data: key, name, and text, or media and what earlier stages made.

    The states of the earlier stages (`upstream`) must not change while this is used. Threads may share it. Raises
    UserError at once if an item has no media and the stage reads nothing else.
    """

    def __init__(
        self, keys: Collection[str], stage: Stage[Any], contents: Contents, store: Store,
        upstream: Mapping[str, State],
    ) -> None:  # fmt: skip
        self._keys, self._stage, self._contents, self._store = keys, stage, contents, store
        self._upstream = {need: upstream[need] for need in stage.needs}
        self._of: Callable[[str], Spec]
        if stage.over == "captions":
            self._captions, self._of = contents.captions(), self._caption
            return
        self._items, self._of = contents.items(), self._item
        if not stage.needs:
            for key in keys:
                self._require_media(self._items[key])

    def __getitem__(self, key: str) -> Spec:
        return self._of(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def name(self, key: str) -> str:
        """The id of the item or caption."""
        return self._captions[key].id if self._stage.over == "captions" else self._items[key].id

    def _caption(self, key: str) -> Spec:
        caption: Caption = self._captions[key]
        return {"key": key, "name": caption.id, "text": caption.text}

    def _item(self, key: str) -> Spec:
        item = self._items[key]
        media = self._contents.corpus.media_path(item)
        spec: Spec = {"key": key, "name": item.id, "media": str(media) if media else None}
        if item.window:
            spec["window"] = list(item.window)
        files, rows = {}, {}
        for need, state in self._upstream.items():
            fp, place = state.fingerprint.hex, state.places[key]
            if state.stage.file_suffix:
                files[need] = str(self._store.item_file(need, fp, key, state.stage.file_suffix))
            rows[need] = [str(self._store.segment_path(need, fp, place.segment)), place.row]
        return spec | {"files": files, "rows": rows}

    def _require_media(self, item: Item) -> None:
        if item.media is None:
            raise UserError(
                f"{item.id} of {self._contents.corpus.path} has no media to make {self._stage.name} of; "
                "name the imported stage where trainers.<method> says which features it reads"
            )


class Lacking(Mapping[str, list[int]]):
    """For each key of a pass, the positions of the stages that lack it. `missing`: the keys that each stage lacks."""

    def __init__(self, keys: Collection[str], missing: Sequence[Collection[str]]) -> None:
        self._keys, self._missing = keys, missing

    def __getitem__(self, key: str) -> list[int]:
        return [number for number, keys in enumerate(self._missing) if key in keys]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
