"""Evaluation of many captions against many items in both directions: CPU seconds and anonymous memory of every method.

    python benchmarks/evaluation.py [--items 5000] [--captions 50000] [--methods gare hlformer] [--against FOLDER]

Inputs are random and networks are small, so that scoring, ranking and memory are what is measured; the memory limit is
`evaluate.memory_mb`'s default. Each method runs in a process of its own, whose anonymous memory (RssAnon) is looked at
fifty times a second. `--against` names another checkout of this repository: its code runs in turn with this one's.
LEAN scores a pair in a hundred times what the others take: by default it gets a twentieth of the captions.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.process_tree import anonymous_kib

HERE = Path(__file__).resolve().parent.parent
METHODS = ("clip4clip", "neighborretr", "gare", "hlformer", "h2arn", "lean")
LIMIT_MB = 1024
DIMS, BATCH = 64, 250
LEAN_SHARE = 20


class Made:
    """A split of random inputs that are made while they are read; a batch is the same every time."""

    def __init__(self, items: int, captions: int, item: Callable[..., Any], text: Callable[..., Any]) -> None:
        self.items, self.captions, self.item, self.text = items, captions, item, text

    def item_batches(self, split: str) -> Iterator[Any]:
        """The gallery."""
        for first, size in stretches(self.items):
            yield self.item(size, generator(first))

    def text_batches(self, split: str) -> Iterator[Any]:
        """The queries."""
        import torch

        for first, size in stretches(self.captions):
            yield {**self.text(size, generator(first + 1)), "index": torch.arange(first, first + size)}


def stretches(count: int) -> Iterator[tuple[int, int]]:
    """Start and size of each batch."""
    for first in range(0, count, BATCH):
        yield first, min(BATCH, count - first)


def generator(seed: int) -> Any:
    """A generator of random numbers."""
    import torch

    return torch.Generator().manual_seed(seed)


def pair_method(name: str) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """A method on stored features of CLIP, and its inputs: 12 frames, 12 words of 24 slots (GARE, CLIP4Clip: one)."""
    import torch

    from trainers.registry import METHODS as KNOWN

    config = KNOWN.find(name).config.model_validate({"mode": "frozen", "max_words": 24, "max_frames": 12})
    method = method_of(name, config)
    slots = 24 if name == "neighborretr" else 1

    def item(size: int, random: Any) -> dict[str, Any]:
        mask = torch.arange(12) < torch.randint(4, 13, (size, 1), generator=random)
        return {"frames": torch.randn(size, 12, DIMS, generator=random) * mask[..., None], "frame_mask": mask}

    def text(size: int, random: Any) -> dict[str, Any]:
        mask = torch.arange(slots) < torch.randint(1, slots + 1, (size, 1), generator=random)
        return {
            "words": torch.randn(size, slots, DIMS, generator=random) * mask[..., None],
            "word_mask": mask,
        }

    return method, item, text


def method_of(name: str, config: Any) -> Any:
    """A method on features of CLIP with random weights."""
    if name == "clip4clip":
        from trainers.clip4clip.method import Clip4Clip, Clip4ClipNetwork

        return Clip4Clip(config, Clip4ClipNetwork(config, None, DIMS, 77))
    if name == "gare":
        from trainers.gare.method import Gare, GareNetwork

        return Gare(config, GareNetwork(config, None, DIMS, 77))
    from trainers.neighborretr.method import NeighborRetr

    return NeighborRetr(config, None, DIMS)


def hlformer() -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """HLFormer with 32 clips and 64 frames."""
    import torch

    from trainers.hlformer.config import HLFormerConfig
    from trainers.hlformer.method import HLFormer

    settings = {"hidden_size": DIMS, "lorentz_dim": DIMS - 1, "blocks": 2, "max_ctx_l": 64}
    method = HLFormer(HLFormerConfig.model_validate(settings), DIMS, DIMS)

    def item(size: int, random: Any) -> dict[str, Any]:
        frames = torch.randn(size, 64, DIMS, generator=random)
        clips = torch.randn(size, 32, DIMS, generator=random)
        return {"clips": clips, "frames": frames, "frame_mask": torch.ones(size, 64)}

    def text(size: int, random: Any) -> dict[str, Any]:
        return {"tokens": torch.randn(size, 12, DIMS, generator=random), "token_mask": torch.ones(size, 12)}

    return method, item, text


def h2arn() -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """H2ARN with 32 tokens of a cloud."""
    import torch

    from trainers.h2arn.config import H2arnConfig
    from trainers.h2arn.method import H2arn

    method = H2arn(H2arnConfig.model_validate({"d_model": DIMS, "nhead": 4}), DIMS, DIMS)

    def item(size: int, random: Any) -> dict[str, Any]:
        return {"cloud": torch.randn(size, 32, DIMS, generator=random)}

    def text(size: int, random: Any) -> dict[str, Any]:
        return {"text": torch.randn(size, 16, DIMS, generator=random)}

    return method, item, text


def lean() -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """LEAN with 10 frames and 1 to 8 triples."""
    import torch

    from trainers.lean.config import LeanConfig
    from trainers.lean.method import Lean

    settings = {"hidden": 32, "latent": 32, "attention_hidden": 8}
    method = Lean(LeanConfig.model_validate(settings), DIMS, DIMS)

    def item(size: int, random: Any) -> dict[str, Any]:
        top = torch.rand(size, 10, generator=random).argsort(1)[:, :3]
        return {"frames": torch.randn(size, 10, DIMS, generator=random), "top": top}

    def text(size: int, random: Any) -> dict[str, Any]:
        return {
            "triples": torch.randn(size, 8, DIMS, generator=random),
            "count": torch.randint(1, 9, (size,), generator=random),
            "words": torch.zeros(size, 8, 6, 2, dtype=torch.int32),
        }

    return method, item, text


class AnonymousMemory:
    """Watches the anonymous memory of this process; a block."""

    def __enter__(self) -> AnonymousMemory:
        self.before = self.peak = anonymous_kib() // 1024
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, anonymous_kib() // 1024)


def one(name: str, items: int, captions: int) -> dict[str, Any]:
    """Evaluate one method in this process; what it cost."""
    import torch

    from trainers.data import SplitIndex
    from trainers.measure.evaluate import evaluate

    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    made = {"hlformer": hlformer, "h2arn": h2arn, "lean": lean}.get(name, lambda: pair_method(name))
    method, item, text = made()
    index = SplitIndex(
        items=[f"v{n}" for n in range(items)], item_rows=list(range(items)),
        captions=[f"c{n}" for n in range(captions)], caption_rows=list(range(captions)),
        caption_item=[n * items // captions for n in range(captions)], texts=[""] * captions,
    )  # fmt: skip
    data: Any = Made(items, captions, item, text)
    began, cpu = time.monotonic(), time.process_time()
    with AnonymousMemory() as memory:
        found = evaluate(method, data, "test", index, ("t2v", "v2t"), memory_mb=LIMIT_MB)
    return {
        "cpu": time.process_time() - cpu, "seconds": time.monotonic() - began, "peak": memory.peak,
        "before": memory.before, "MnR": found.metrics["v2t"]["MnR"].value,
    }  # fmt: skip


def measured(name: str, items: int, captions: int, checkout: Path) -> Mapping[str, Any]:
    """The same in a process of its own that imports a checkout's code."""
    command = [sys.executable, __file__, "--one", name, "--items", str(items), "--captions", str(captions)]
    env = {**os.environ, "PYTHONPATH": str(checkout), "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    env.setdefault("OMP_NUM_THREADS", "1")
    done = subprocess.run(command, check=False, env=env, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} of {checkout}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print a line for each method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=50000)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.items, given.captions)))
        return
    checkouts = [HERE, *([given.against.resolve()] if given.against else [])]
    print(f"{given.items} items, both directions, limit {LIMIT_MB} MB of anonymous memory")
    for name in given.methods:
        captions = given.captions // LEAN_SHARE if name == "lean" else given.captions
        for checkout in checkouts:
            found = measured(name, given.items, captions, checkout)
            verdict = "within" if found["peak"] <= LIMIT_MB else "above"
            print(
                f"{name:13} {captions:6} captions: {found['cpu']:7.1f} CPU s, {found['seconds']:7.1f} s, "
                f"{found['peak']:5} MB ({verdict} the limit; {found['before']} before), v2t MnR {found['MnR']:.3f}  "
                f"{'' if checkout == HERE else checkout}",
                flush=True,
            )


if __name__ == "__main__":
    main()
