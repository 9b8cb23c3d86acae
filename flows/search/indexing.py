"""The work of the stage `index-<method>`: from a trained method and packed inputs to encodings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flows.search.index import ITEMS, NAMES, TEXTS, IndexParams
from pipeline.child import Send
from pipeline.store.store import write_json
from trainers.data import SPLITS, SplitIndex
from trainers.measure.search import write_encodings
from trainers.method import Batch
from trainers.trained import open_trained


def run(request: dict[str, Any], send: Send) -> None:
    """Encode the items and the captions of a split, each once, in the batches of an evaluation."""
    split = IndexParams.model_validate_json(request["params"]).split
    needs = {stage: Path(path) for stage, path in request["needs"].items()}
    trained = needs.pop(f"train-{request['method']}")
    (packed,) = needs.values()
    folder, device = Path(request["folder"]), torch.device(request["device"])
    method, data = open_trained(trained, packed, device)
    index = SplitIndex.read(packed / SPLITS / f"{split}.json")
    total = len(index.items) + len(index.captions)

    def told(batches: Iterator[Batch], before: int) -> Iterator[Batch]:
        for batch in batches:
            send({"units": [before, total], "doing": "encoding"}, {})
            yield batch
            before += len(next(iter(batch.values())))

    items, texts = told(data.item_batches(split), 0), told(data.text_batches(split), len(index.items))
    write_encodings(folder / ITEMS, method.encode_items, items, len(index.items), device)
    write_encodings(folder / TEXTS, method.encode_texts, texts, len(index.captions), device)
    kept = ("items", "captions", "caption_item", "texts")
    write_json(folder / NAMES, {name: values for name, values in asdict(index).items() if name in kept})
    send({"record": {"items": len(index.items), "captions": len(index.captions)}}, {})
