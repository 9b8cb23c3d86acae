"""Two methods beside each other, as a verdict prints and keeps them."""

from __future__ import annotations

from pipeline.store.documents import Document


class PairRow(Document):
    """Two methods in one direction, as printed: by metric the difference A - B with its interval, and who is ahead.

    ahead: the method that is shown to be better at the metric; "" where no difference is shown. p: corrected p values,
    of the metrics that are tested.
    """

    a: str
    b: str
    direction: str
    differences: dict[str, str]
    p: dict[str, str]
    ahead: dict[str, str]
