"""Who does what to whom: what LEAN's triples decide and a mean over the same features cannot.

Run `python benchmarks/lean_roles.py`. Every video shows three animals that act on each other, "the cat chases the dog
and the dog feeds the fox and the fox licks the cat". Twelve videos share these words: each animal acts once and suffers
once, each verb occurs once, and what differs is who does what to whom. A token's state holds its word and its part in
the sentence, as those of a contextual network do; a frame holds subject, verb and object of one event. So the mean of a
caption's tokens is the same for all twelve, and so is the mean of a video's frames, up to noise. Whatever ranks by
one such vector of a caption is left with chance among the twelve: an R@1 of 8.3 at best.

Four arms read these features through the product's own methods: LEAN; LEAN with the mean of all words as its one text
node (`nodes = "sentence"`); CLIP4Clip with a temporal transformer over the frames; CLIP4Clip's mean alone, which has
nothing to learn. The three that learn get the same CPU seconds, one thread. The learning rate of each is the one of
RATES with the best R@1 on the validation split with the first seed; of every training the epoch with the best R@1 on
validation is tested. `--seconds` sets the budget of a training, `--seeds` their number, `--arm` runs one of them.
Axes: Q captions, V videos, D features, m frames.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.contract import RetrievalMethod
from trainers.data import Split
from trainers.lean.nodes import sentence_node
from trainers.loop.engine import fit
from trainers.measure.metrics import metrics, text_ranks
from trainers.method import Encoded, Method, MethodData
from trainers.registry import METHODS

ANIMALS = ("cat", "dog", "fox", "hen", "cow")
VERBS = ("chases", "feeds", "licks", "carries")
WIDTH, NOISE = 64, 0.1
EVENTS = 3  # of a video; each has a frame
ALIKE = 12  # videos of the same words: two circles of three animals, six orders of three verbs
SHARES = {"train": 25, "val": 6, "test": 9}  # sets of words, of which no split shares one
RATES = (1e-3, 3e-3)
SMALL_LEAN = {
    "frames": EVENTS, "top": 2, "max_triples": EVENTS, "keyframes": "", "hidden": 64, "latent": 64,
    "attention_hidden": 16,
}  # fmt: skip
POOLED = {"mode": "frozen", "max_frames": EVENTS, "max_words": 3, "batch_size": 64}

Event = tuple[str, str, str]
Reader = Callable[[str], NDArray[Any]]


@dataclass(frozen=True)
class Arm:
    """A method with its settings; `learns` is false where no training can change a ranking."""

    title: str
    method: str
    settings: dict[str, Any]
    learns: bool = True


ARMS = (
    Arm("LEAN", "lean", SMALL_LEAN),
    Arm("LEAN, one node: the mean of all words", "lean", {**SMALL_LEAN, "nodes": "sentence"}),
    Arm(
        "CLIP4Clip, seqTransf over the frames", "clip4clip",
        {**POOLED, "sim_header": "seqTransf", "cross_num_hidden_layers": 1},
    ),
    Arm("CLIP4Clip, mean of the frames", "clip4clip", POOLED, learns=False),
)  # fmt: skip


class Corpus:
    """Videos of three events, those of the same words behind each other, and their features."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        words = (*ANIMALS, *VERBS, "the", "and")
        self.word = dict(zip(words, draw.normal(size=(len(words), WIDTH)), strict=True))
        turn = np.linalg.qr(draw.normal(size=(2, WIDTH, WIDTH)))[0]
        self.part = {"subject": turn[0], "object": turn[1]}
        sets = [(who, what) for who in combinations(ANIMALS, EVENTS) for what in combinations(VERBS, EVENTS)]
        self.videos = [
            tuple((circle[n], verbs[n], circle[(n + 1) % EVENTS]) for n in range(EVENTS))
            for number in draw.permutation(len(sets))
            for circle in ((sets[number][0]), sets[number][0][::-1])
            for verbs in permutations(sets[number][1])
        ]

    def splits(self) -> dict[str, Split]:
        """Galleries in which the videos of the same words are neighbours."""
        found: dict[str, Split] = {}
        start = 0
        for split, sets in SHARES.items():
            names = [str(number) for number in range(start, start + ALIKE * sets)]
            found[split] = names, [(f"{name}#", self.text(name), name) for name in names]
            start += ALIKE * sets
        return found

    def events(self, video: str) -> tuple[Event, ...]:
        """The events of a video, in the order in which it shows them or a caption names them."""
        return self.videos[int(video)]

    def text(self, video: str) -> str:
        """The caption of a video."""
        return " and ".join(f"the {a} {verb} the {b}" for a, verb, b in self.events(video))

    def frames(self, video: str) -> NDArray[np.float32]:
        """Frames (m, D), one an event, in an order that is chance."""
        draw = np.random.default_rng([1, int(video)])
        rows = np.stack([sum(self.states(event)) for event in self.events(video)])
        return (draw.permutation(rows) + NOISE * draw.normal(size=rows.shape)).astype(np.float32)

    def states(self, event: Event) -> tuple[NDArray, NDArray, NDArray]:
        """States (D,) of subject, verb and object."""
        a, verb, b = event
        return self.part["subject"] @ self.word[a], self.word[verb], self.part["object"] @ self.word[b]

    def tokens(self, caption: str) -> NDArray[np.float32]:
        """States (L, D) of the words of a caption."""
        found: list[NDArray] = []
        for number, event in enumerate(self.events(caption[:-1])):
            subject, verb, other = self.states(event)
            found += [self.word["and"]] * (number > 0) + [
                self.word["the"],
                subject,
                verb,
                self.word["the"],
                other,
            ]
        noise = np.random.default_rng([2, int(caption[:-1])]).normal(size=(len(found), WIDTH))
        return (np.stack(found) + NOISE * noise).astype(np.float32)

    def offsets(self, caption: str) -> NDArray[np.int32]:
        """Characters [start, end) of each word."""
        words = self.text(caption[:-1]).split()
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        return np.stack([ends - [len(word) for word in words], ends], 1).astype(np.int32)

    def spans(self, caption: str) -> NDArray[np.int32]:
        """Rows [triple, part, start, end) of the triples, as the stage `triples` writes them."""
        places = self.offsets(caption)
        members = [(n, part, 6 * n + word) for n in range(EVENTS) for part, word in enumerate((1, 2, 4))]
        return np.array([(triple, part, *places[word]) for triple, part, word in members], np.int32)

    def read(self, method: str) -> dict[str, Reader]:
        """The inputs of a method. CLIP4Clip's one vector of a caption is the mean that LEAN's one node is."""
        if method == "lean":
            return {"frame": self.frames, "token": self.tokens, "offset": self.offsets, "span": self.spans}
        return {"video": self.frames, "text": lambda key: sentence_node(self.tokens(key), self.offsets(key))}


@dataclass(frozen=True)
class Found:
    """Figures of a split, in %, and CPU seconds of the training."""

    first: float  # R@1
    fifth: float  # R@5
    alike: float  # R@1 among the videos of the same words
    seconds: float = 0.0


def scores(method: Method, data: MethodData, split: str) -> Tensor:
    """Scores (Q, V) of a split."""
    method.eval()
    with torch.inference_mode():
        texts = joined(method.encode_texts(batch) for batch in data.text_batches(split))
        return method.scores(texts, joined(method.encode_items(batch) for batch in data.item_batches(split)))


def joined(parts: Iterator[Encoded]) -> Encoded:
    """The batches of what a method encoded, end to end."""
    every = list(parts)
    return {name: torch.cat([part[name] for part in every]) for name in every[0]}


def figures(method: Method, data: MethodData, split: str, seconds: float = 0.0) -> Found:
    """The figures of a split under the mean rank of ties."""
    found = scores(method, data, split).double()
    right = torch.arange(len(found))
    recalls = metrics(text_ranks(found.numpy(), right.numpy()).mean)
    of_others = right[:, None] // ALIKE != right // ALIKE
    alike = found.masked_fill(of_others, found.min() - 1)
    among = metrics(text_ranks(alike.numpy(), right.numpy()).mean)
    return Found(recalls["R@1"], recalls["R@5"], among["R@1"], seconds)


def trained(arm: Arm, data: MethodData, seed: int, lr: float, seconds: float) -> tuple[Found, Found]:
    """Figures of the validation and of the test split after a training of so many CPU seconds."""
    declared: RetrievalMethod[Any] = METHODS.find(arm.method)
    config = declared.config(**arm.settings, lr=lr, seed=seed, patience=10**6)

    def run(epochs: int) -> tuple[Method, float]:
        torch.manual_seed(seed)
        method = declared.build(config, data)
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            fit(
                method, data, config.model_copy(update={"epochs": epochs}),
                declared.optimizer(config, method, epochs * data.train_steps()),
                validate=lambda now: {"R@1": figures(now, data, "val").first}, figure="R@1", folder=Path(folder),
                device=torch.device("cpu"),
            )  # fmt: skip
        return method, time.process_time() - began

    _, once = run(1)
    method, spent = run(max(1, int(seconds / once)))
    return figures(method, data, "val"), figures(method, data, "test", spent)


def row(arm: Arm, folder: Path, corpus: Corpus, seeds: int, seconds: float) -> None:
    """Print the figures of an arm."""
    declared: RetrievalMethod[Any] = METHODS.find(arm.method)
    config = declared.config(**arm.settings)
    declared.pack(folder, config, corpus.splits(), corpus.read(arm.method))
    data = declared.open_data(folder, config)
    if not arm.learns:
        show(arm.title, "", [figures(declared.build(config, data), data, "test")])
        return
    train = partial(trained, arm, data, seconds=seconds)
    chosen = {lr: train(0, lr) for lr in RATES}
    lr = max(chosen, key=lambda rate: chosen[rate][0].first)
    tests = [chosen[lr][1], *(train(seed, lr)[1] for seed in range(1, seeds))]
    validated = ", ".join(f"{rate:g}: {found[0].first:.1f}" for rate, found in chosen.items())
    show(arm.title, f"lr {lr:g} (validation R@1 {validated})", tests)


def show(title: str, note: str, found: list[Found]) -> None:
    """Print the mean of each figure over the seeds, with the least and the greatest."""

    def spread(name: str) -> str:
        values = [getattr(each, name) for each in found]
        return f"{statistics.mean(values):5.1f} ({min(values):.1f}-{max(values):.1f})"

    print(
        f"{title:40} R@1 {spread('first')}  R@5 {spread('fifth')}  among the {ALIKE} {spread('alike')}  "
        f"{statistics.mean(each.seconds for each in found):.0f} CPU s  {note}",
        flush=True,
    )


def main() -> None:
    """Print a row an arm."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seconds", type=float, default=20.0, help="CPU seconds of a training")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument(
        "--arm", type=int, choices=range(len(ARMS)), help="one arm alone, by its number from 0"
    )
    given = options.parse_args()
    torch.set_num_threads(1)
    corpus = Corpus()
    gallery = ALIKE * SHARES["test"]
    print(
        f"{gallery} captions and videos to test. Chance: R@1 {100 / gallery:.1f}, R@1 among the {ALIKE} videos of the "
        f"same words {100 / ALIKE:.1f}"
    )
    for number, arm in enumerate(ARMS):
        if given.arm in (None, number):
            with tempfile.TemporaryDirectory() as folder:
                row(arm, Path(folder), corpus, given.seeds, given.seconds)


if __name__ == "__main__":
    main()
