"""The page of metrics: every metric of the program with its formula."""

from __future__ import annotations

from trainers.measure.metric_table import CUTOFFS, METRICS, RSUM_CUTOFFS, Metric

HEAD = """# Metrics

Every metric that an evaluation measures, from the table that the report, `compare`, `board`, exports and the command line read.

Notation: Q queries, n items in the gallery. A query q has m(q) positives, which are the items that are right answers. s(q, v) is
the score of an item v, and higher is more alike. The **rank** of a query is that of its best positive p:

    optimistic rank   1 + number of items v that are no positives of q, with s(q, v) > s(q, p)
    realistic rank    optimistic rank + half of the number of such items with s(q, v) = s(q, p)

Figures are those of the realistic rank, so that a constant score has the metrics of chance; where any tie counts, the
optimistic ones stand beside them ([ties and intervals](../explanation/ties-and-intervals.md)). R@K counts a query with
realistic rank r as found if r <= K. [x] is 1 where x is true and 0 where it is not.
"""
CHANCE = """## Chance

The value that a random order of the gallery is expected to have, which stands beside every metric that has one:

    R@K    100 * mean over q of 1 - product for j = 0 .. K-1 of (n - m(q) - j) / (n - j)
    MnR    mean over q of (n + 1) / (m(q) + 1)
    MRR    mean over q of sum for k = 1 .. n of P(rank of q = k) / k
    MdR    median of the ranks of all queries together; (n + 1) / 2 where each has one positive
"""
MORE = """## Where they are used

Directions: `t2v`, in which captions are queries and items the gallery, and `v2t`, the other one; for point clouds they are
called text to cloud and cloud to text. Of `v2t` with several captions an item there are two conventions:
[evaluation](../evaluation.md). In Python: `crossreel.metrics(scores, relevance)` ([Python](../python.md)).
"""


def formula(metric: Metric) -> str:
    """The formula of a metric of one direction, in plain text."""
    if metric.name == "SumR":
        return " + ".join(f"R@{k}" for k in CUTOFFS) + ", of one direction"
    if metric.name == "RSUM":
        return " + ".join(f"R@{k}" for k in RSUM_CUTOFFS) + ", of t2v and of v2t"
    if len(metric.parts) == 1:
        return f"100 / Q * sum over q of [rank(q) <= {metric.parts[0]}]"
    return {"MdR": "median over q of rank(q)", "MnR": "1 / Q * sum over q of rank(q)",
            "MRR": "1 / Q * sum over q of 1 / rank(q)"}[metric.name]  # fmt: skip


def page() -> str:
    """The page as Markdown."""
    rows = [
        "| metric | what it is | formula | unit | better | from, to |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in METRICS:
        if one.measured:
            better = "lower" if one.lower_is_better else "higher"
            most = "2 x 300" if one.name == "RSUM" else "n" if one.unit == "rank" else f"{one.most:g}"
            rows.append(
                f"| {one.name} | {one.title} | `{formula(one)}` | {one.unit} | {better} | {one.least:g}, {most} |"
            )
    return "\n\n".join([HEAD, "## The metrics", "\n".join(rows), CHANCE, MORE])
