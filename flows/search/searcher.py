"""The front of a search: makes the index if it is missing, and sends requests to a process that holds the networks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from flows.project import Project
from flows.search.briefing import SearchBriefing, placed
from flows.search.calibration import Calibration
from flows.search.hits import CaptionHit, Hit, Ranked, Scale
from flows.search.index import NAMES
from flows.search.names import Names, frame_times
from flows.search.query import require_media, require_text, require_top
from flows.search.searched import Searched, find_searched
from pipeline.child import Child, ChildDied, ChildTimeout
from pipeline.errors import UserError, nearest
from pipeline.run.execute import OnProgress
from pipeline.store.fingerprint import digest_file, digest_text

Arrays = dict[str, NDArray[Any]]
Request = dict[str, Any]
Say = Callable[[str], None]
T = TypeVar("T")
TRAIN = "train"
WARMING = "something that is not there"  # the sentence that is searched for while networks load
ANCHORS, FEWEST_ANCHORS = 128, 8  # captions that a gallery is calibrated with
MOST_PAIRS = 2**23  # scores of a calibration that are kept: 32 MB


class Searcher:
    """Searches the gallery of a split with a trained method. Once it is open, calls may come from any thread.

    Of an experiment, today's training answers where it is finished, else the last one (`find_searched`, whose result is
    taken instead of an experiment, too). method: "" stands for the experiment's only method. split: "" stands for the
    evaluated split. run: the digest of the run that is asked for. say: called with a sentence before work that takes
    long, and where what answers is stale. on_progress: called while an index is made. One process answers all requests
    one after the other; it loads networks when the first request needs them and keeps them, and is started again once
    if it dies. Usable as `with Searcher(project, "hlformer") as searcher:`, which opens and closes it.
    """

    def __init__(
        self, target: Project | Searched, method: str = "", split: str = "", say: Say = lambda sentence: None,
        run: str = "", on_progress: OnProgress = lambda progress: None,
    ) -> None:  # fmt: skip
        searched = target if isinstance(target, Searched) else find_searched(target, method, split, run)
        self.searched, self._project, self._say = searched, searched.project, say
        self._on_progress = on_progress
        self.method, self.split = searched.method, searched.split
        self._closing = threading.Event()
        # One thread of our own starts the process: the kernel ends the process with the thread that started it, and
        # a web server's threads come and go.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._child: Child | None = None

    def open(self) -> None:
        """Make the index where it is missing."""
        if self.searched.note:
            self._say(self.searched.note)
        self.searched.make_index(self._say, self._on_progress)
        self._briefing = SearchBriefing(self.searched)
        contents = json.loads((self.searched.folder / NAMES).read_text(encoding="utf-8"))
        times = frame_times(self._project, self.searched.states)
        self._names = Names(self._project, self.split, contents, times, self.searched.captioned)
        device, env = placed(self._project.experiment.run.device)
        self._about = self._briefing.about(contents, device)
        self._child = Child("flows.search.worker:serve", env=env)

    def search(self, text: str, top: int = 10) -> list[Hit]:
        """The best items for a sentence, best first, equal scores in gallery order.

        A sentence that is a caption of the split has the ranking of its evaluation. Raises UserError for an empty
        or too long sentence.
        """
        request = self._text_request(text) | {"top": require_top(top)}
        return self._run(lambda: self._names.hits(self._ask("search", request)))

    def rank(self, text: str, top: int = 10, first: int = 1, item: str = "") -> Ranked:
        """The ranking of a sentence from the place `first`, with the scale of its scores and the right items.

        The right items are those that the sentence is a caption of, wherever they stand. item: the digest or id of one
        more item whose place is asked for. Raises UserError for an empty or too long sentence, or an unknown item.
        """
        request = self._text_request(text)
        right = self._names.positives(digest_text(require_text(text)))
        also = list(right)
        if item:
            also.append(self._known_item(item))
        request |= {"top": require_top(top), "first": first, "also": also}
        return self._run(lambda: self._ranked(self._ask("rank", request), len(right), bool(item)))

    def _ranked(self, found: Arrays, right: int, asked: bool) -> Ranked:
        hits = self._names.hits(found)
        shown = len(hits) - right - asked
        counts = tuple(int(count) for count in found["counts"])
        scale = Scale(float(found["low"]), float(found["high"]), float(found["median"]), counts)
        following = float(found["following"][0]) if len(found["following"]) else None
        return Ranked(
            tuple(hits[:shown]), tuple(hits[shown : shown + right]), hits[-1] if asked else None, sum(counts), scale,
            following,
        )  # fmt: skip

    def warm(self) -> None:
        """Load the networks, those that encode a new sentence too, if there are any; a search is then quick."""
        try:
            self.rank(WARMING, 1)
        except UserError:  # text features were imported: only captions of the split can be searched for
            self._run(lambda: self._ask("rank", {"place": 0, "top": 1, "first": 1, "also": []}))

    @property
    def pid(self) -> int | None:
        """The process that answers, None while none runs."""
        return self._child.pid if self._child is not None else None

    def calibrate(self, most: int = ANCHORS) -> Calibration:
        """The scores of up to `most` captions with every item of the gallery; see `Calibration`.

        They are captions of the split train. Where train itself is searched, or has no stored features, they are
        captions of the searched split, and each is compared only with items that it does not describe.
        """
        most = max(FEWEST_ANCHORS, min(most, MOST_PAIRS // max(1, len(self._names.items))))
        sample = None if self.split == TRAIN else self._briefing.sample(TRAIN, most)
        if sample is not None:
            digests = [key for key, _ in sample["captions"]]
            return self._calibration(TRAIN, sample, digests)
        if not self.searched.captioned:
            raise UserError("neither the gallery nor a training split has captions to compare its items by")
        captions = [*self._names.captions.items()]
        chosen = captions[:: max(1, len(captions) // most)][:most]
        places = {"places": [place for _, place in chosen]}
        return self._calibration(self.split, places, [digest for digest, _ in chosen])

    def _calibration(self, split: str, request: Request, digests: Sequence[str]) -> Calibration:
        """The calibration by captions; a sentence may stand in both splits, and is right for some items then."""
        scores = self._run(lambda: self._ask("profile", request))["score"]
        others = scores.copy()
        for row, digest in enumerate(digests):
            others[row, self._names.positives(digest)] = -np.inf
        best = others.max(1)
        return Calibration(split, scores, np.sort(best[np.isfinite(best)]))

    def own_captions(self, item: str) -> list[CaptionHit]:
        """The captions of an item of the split, each at its place among all captions of the split for this item.

        Best first. item: its digest or id. Raises UserError for an item that the index does not have.
        """
        place = self._known_item(item)
        captions = self._names.captions_of(place)
        found = self._run(lambda: self._ask("own", {"place": place, "also": captions})) if captions else {}
        results = found | {"position": np.array(captions, np.int64)}
        return sorted(self._names.caption_hits(results), key=lambda hit: hit.place)

    @property
    def item_keys(self) -> list[str]:
        """The digests of the gallery's items, in the order of the columns of `Calibration.scores`."""
        return [*self._names.items]

    @property
    def caption_count(self) -> int:
        """Number of captions with different texts that the index has."""
        return len(self._names.captions)

    def _known_item(self, item: str) -> int:
        place = self._names.item_place(item)
        if place is None:
            raise UserError(f"no item of the split {self.split!r} has the id or digest {item!r}")
        return place

    def search_caption(self, caption: str, top: int = 10) -> list[Hit]:
        """The best items for a caption of the split by its id. Uses stored features only."""
        request = {"place": self._names.caption_place(caption), "top": require_top(top)}
        return self._run(lambda: self._names.hits(self._ask("search", request)))

    def search_media(self, path: Path, top: int = 10) -> list[CaptionHit]:
        """The best captions of the split for a media file (a video, or a point cloud), best first.

        A copy of an item of the split has the ranking of that item. Raises UserError if the file is missing, ItemError
        if it cannot be read.
        """
        if not self.searched.captioned:
            raise UserError(f"the items of {self._project.contents.corpus.path} have no captions to be found")
        request = self._item_request(path) | {"top": require_top(top)}
        return self._run(lambda: self._names.caption_hits(self._ask("media", request)))

    def explain(self, text: str, items: Sequence[str]) -> Arrays:
        """The method's explanation of the match of a sentence with each of K items: arrays (K, ...).

        Empty if the method has no explanation. HLFormer: `clip_scores` (K, T), one a stretch of equal length, and
        `frame_scores`. items: ids of the split, or digests (`Hit.key`). Raises UserError for one that is not
        in the split.
        """
        places = [self._names.item_place(item) for item in items]
        for item, place in zip(items, places, strict=True):
            if place is None:
                raise UserError(f"no item of the split {self.split!r} has the id or digest {item!r}")
        request = self._text_request(text) | {"positions": places}
        return self._run(lambda: self._ask("explain", request)) if items else {}

    def encode_texts(self, texts: Sequence[str]) -> Arrays:
        """The method's encodings of sentences, in order: named arrays (N, ...).

        They are what the method scores, not necessarily one vector: `scores` says how alike a text and an item are.
        """
        return self._encode("texts", [self._text_request(text) for text in texts])

    def encode_items(self, items: Sequence[str | Path]) -> Arrays:
        """The method's encodings of items, in order: named arrays (N, ...); each an item's id, or a media file."""
        return self._encode("items", [self._item_request(item) for item in items])

    def scores(self, texts: Sequence[str], items: Sequence[str | Path]) -> NDArray[np.float32]:
        """The scores (Q, V) of sentences and items; higher is more alike."""
        if not texts or not items:
            return np.zeros((len(texts), len(items)), np.float32)
        request = {
            "texts": [self._text_request(text) for text in texts],
            "items": [self._item_request(item) for item in items],
        }
        scores: NDArray[np.float32] = self._run(lambda: self._ask("scores", request))["score"]
        return scores

    def _encode(self, kind: str, queries: list[Request]) -> Arrays:
        if not queries:
            raise UserError(f"no {kind} are given, so there is nothing to encode")
        return self._run(lambda: self._ask("encode", {kind: queries}))

    def close(self) -> None:
        """End the process. A running search ends with an error, and later ones raise."""
        self._closing.set()
        if self._child is not None:
            self._child.kill()  # ends the search that waits for it
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._child is not None:
            self._child.kill()  # the process may just have been started

    def __enter__(self) -> Searcher:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _text_request(self, text: str) -> Request:
        """The request for a sentence: its position if it is a caption of the index, else the text to encode."""
        text = require_text(text)
        key = digest_text(text)
        if key in self._names.captions:
            return {"place": self._names.captions[key]}
        self._briefing.require_chain("captions")
        return {"key": key, "text": text}

    def _item_request(self, item: str | Path) -> Request:
        """The request for an item: its position if the index has it, by its id or its file, else the file to encode."""
        if isinstance(item, str) and (place := self._names.item_place(item)) is not None:
            return {"place": place}
        if isinstance(item, str) and not Path(item).is_file():
            raise UserError(
                f"{item!r} is neither an item of the split {self.split!r} nor a file; "
                f"{nearest(item, self._names.item_ids)}"
            )
        path = require_media(Path(item))
        key = digest_file(path)
        if key in self._names.items:
            return {"place": self._names.items[key]}
        self._briefing.require_chain("items")
        return {"key": key, "name": path.name, "media": str(path.absolute())}

    def _run(self, call: Callable[[], T]) -> T:
        return self._thread.submit(call).result()

    def _ask(self, ask: str, arguments: Request) -> Arrays:
        """The arrays of the reply; a process that died is started once more."""
        request = {"ask": ask, "about": self._about, **arguments}
        try:
            return self._reply(request)
        except ChildTimeout:
            raise
        except ChildDied as death:
            if self._closing.is_set():
                raise
            self._say(f"the process that searches died ({death}); it is started again")
        try:
            return self._reply(request)
        except ChildDied as death:
            raise ChildDied(f"the process that searches died twice: {death}") from None

    def _reply(self, request: Request) -> Arrays:
        if self._child is None or self._closing.is_set():
            raise ValueError("this searcher is not open")
        reply: Arrays = {}
        if self._child.pid is None:
            self._say(f"loading the networks of {self.method}")
        for header, arrays in self._child.call(request, self._project.experiment.run.stall_seconds):
            if "say" in header:
                self._say(header["say"])
            reply.update(arrays)
        return reply
