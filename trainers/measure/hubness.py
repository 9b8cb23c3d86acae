"""Hubness of a gallery: how unevenly its members share the top places of all rankings. No torch.

Axes: Q queries, N gallery, K places kept, q rows of a block of scores, V its columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.measure.metrics import top
from trainers.relevance import Positions, Scores

PLACES = 10  # k of the k-occurrence


@dataclass(frozen=True)
class Hubness:
    """Statistics of the k-occurrence N_k (Radovanovic et al. 2010, section 3): the number of top-k lists with a member.

    skewness: E(N_k - mean)^3 / std^3, 0 if all are equal. anti_hub_share: share of the members that no top-k list
    holds. hub_share: share of all top places held by members with N_k > mean + 2 std. Shares lie in [0, 1].
    """

    k: int
    mean: float  # mean of N_k, which is k * queries / gallery
    most: int  # the largest N_k
    skewness: float
    anti_hub_share: float
    hub_share: float


def hubness(counts: NDArray[np.int64], k: int) -> Hubness:
    """The statistics of N_k (N,). Raises ValueError if there are no rankings."""
    if not counts.any():
        raise ValueError("hubness of no rankings")
    mean, std = counts.mean(), counts.std()
    cubes = ((counts - mean) ** 3).mean()
    hubs = counts[counts > mean + 2 * std]
    return Hubness(
        k=k,
        mean=float(mean),
        most=int(counts.max()),
        skewness=float(cubes / std**3) if std > 0 else 0.0,
        anti_hub_share=float((counts == 0).mean()),
        hub_share=float(hubs.sum() / counts.sum()),
    )


def occurrences(positions: Positions, gallery: int) -> NDArray[np.int64]:
    """N_k (gallery,) of top places (Q, k), positions in the gallery."""
    return np.bincount(positions.ravel(), minlength=gallery)


class ColumnTop:
    """The best rows of every column, from blocks of consecutive rows: memory (V, K), whatever Q is.

    Equal scores stand in the order of their rows, so the blocks may be cut anywhere.
    """

    def __init__(self, columns: int, count: int = PLACES) -> None:
        self.count, self.rows = count, 0
        self.positions = np.empty((columns, 0), np.int64)
        self.scores: Scores = np.empty((columns, 0))

    def add(self, scores: Scores) -> None:
        """Take in the next rows (q, V)."""
        if self.positions.shape[1] < self.count:
            self._add(scores, slice(None))
        else:  # a later row must be better than the last one kept: most columns keep theirs
            better = np.flatnonzero((scores > self.scores[:, -1].astype(scores.dtype)).any(axis=0))
            if len(better):
                self._add(scores[:, better], better)
        self.rows += len(scores)

    def _add(self, scores: Scores, columns: Positions | slice) -> None:
        """The same for some columns; scores: (q, n)."""
        rows, best = top(scores.T, self.count)
        # Those kept come from earlier rows: in front, they win ties again.
        positions = np.concatenate([self.positions[columns], rows + self.rows], axis=1)
        joint = np.concatenate([self.scores[columns].astype(best.dtype), best], axis=1)
        places, values = top(joint, self.count)
        positions = np.take_along_axis(positions, places, axis=1)
        if isinstance(columns, slice):
            self.positions, self.scores = positions, values
        else:
            self.positions[columns], self.scores[columns] = positions, values
