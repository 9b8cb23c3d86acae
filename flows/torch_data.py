"""The outputs of a stage as a data set of torch; the only module of the library's reading that imports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.store.store import FeatureReader


class FeatureDataset(Dataset[tuple[str, dict[str, Tensor]]]):
    """Items in the order of the corpus: `[n]` is the id of item n and its tensors by output.

    Workers of a DataLoader may have copies: each opens the files of the store itself, at first use.
    """

    def __init__(
        self, where: Mapping[str, tuple[Path, int]], keys: Mapping[str, str], outputs: Sequence[str],
        keep: object = None,
    ) -> None:  # fmt: skip
        """where: by id, the segment and row. keys: by id, the key that the row must be of."""
        self.ids, self.outputs = list(where), list(outputs)
        self._where = {keys[name]: place for name, place in where.items()}
        self._keys, self._keep = dict(keys), keep
        self._reader: FeatureReader | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[str, dict[str, Tensor]]:
        if self._reader is None:
            self._reader = FeatureReader(self._where)
        name, first = self.ids[index], self.outputs[0]
        reader, key = self._reader, self._keys[name]
        rows = {output: reader.rows(key, output, check=output == first) for output in self.outputs}
        # copies: the rows are views of a read-only file, which torch would write into
        return name, {output: torch.from_numpy(np.array(array)) for output, array in rows.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_keep": None}
