"""What the scores of a method are worth in a gallery: those of captions that describe nothing in it.

Axes: A captions, V items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Calibration:
    """The scores of captions that describe other items, with every item of a gallery.

    split: the split that the captions are of. scores: (A, V). best: (A,) in ascending order, the best score of each
    caption among items that it does not describe: what a query gets where nothing fits.
    """

    split: str
    scores: NDArray[np.float32]
    best: NDArray[np.float32]

    def share_above(self, score: float) -> float:
        """The share of the captions whose best score is at least `score`, in (0, 1].

        One is added to both counts, as in a permutation test, so that few captions never prove anything impossible.
        """
        reached = len(self.best) - int(np.searchsorted(self.best, np.float32(score), "left"))
        return (1 + reached) / (1 + len(self.best))

    def standard(self, score: float) -> float:
        """The standard score: how many standard deviations a score lies above the mean of `best`.

        Scores of different methods can be compared by it: each is measured by what chance reaches in its own gallery,
        which is more in a larger one. It is 0 where `best` has no spread, as with fewer than two captions.
        """
        spread = float(self.best.std()) if len(self.best) else 0.0
        return (score - float(self.best.mean())) / spread if spread else 0.0
