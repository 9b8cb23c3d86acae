"""Makes examples/demo.ipynb, from the demo's store to a plot: `python docs/notebook.py examples/demo.ipynb`."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

CELLS = (
    ("text", """# From a store to a plot

Type `crossreel demo demo` first; this notebook reads what it made, and makes nothing that takes long. The demo's
networks are random: the figures show how to look at figures. The kernel needs crossreel and matplotlib."""),
    ("code", """from matplotlib import pyplot

import crossreel

experiment = crossreel.open("demo/experiment.toml", quiet=True)
print(experiment.methods, experiment.splits)
experiment.plan()"""),
    ("text", """## Features

Arrays by stage, item and output, in the order of the corpus."""),
    ("code", """clip = experiment.store["clip"].split("test")
first = next(iter(clip))
print(first, {name: array.shape for name, array in clip[first].items()})
rows = clip.numpy("frame")  # all frames of the split
print(rows.values.shape, "frames of", len(rows.ids), "videos")"""),
    ("text", """## Figures with intervals

`metrics()` is a table: a list of dictionaries, `.pandas()` and `.polars()` make frames of it."""),
    ("code", """names = ["R@1", "R@5", "R@10"]
figure, axis = pyplot.subplots(figsize=(7, 4))
for place, method in enumerate(experiment.methods):
    table = experiment.runs[method].metrics().where(direction="t2v")
    rows = {row["metric"]: row for row in table}
    at = [n + 0.12 * (place - len(experiment.methods) / 2) for n in range(len(names))]
    values = [rows[name]["value"] for name in names]
    low = [rows[name]["value"] - rows[name]["low"] for name in names]
    high = [rows[name]["high"] - rows[name]["value"] for name in names]
    axis.errorbar(at, values, yerr=[low, high], fmt="o", capsize=3, label=method)
axis.plot(range(len(names)), [rows[name]["chance"] for name in names], "k:", label="chance")
axis.set_xticks(range(len(names)), names)
axis.set_ylabel("%, with 95 % intervals")
axis.legend()
figure.savefig("recall.png")"""),
    ("text", """## Is the best method better than the last?

Overlapping intervals do not answer that; the paired test on the same queries does."""),
    ("code", """runs = [experiment.runs[method] for method in experiment.methods]
runs.sort(key=lambda run: run.metrics().where(direction="t2v", metric="R@1")[0]["value"])
comparison = crossreel.compare(runs[-1], runs[0])
print(*comparison.meaning, sep="\\n")"""),
    ("text", """## A search

The first question loads the networks."""),
    ("code", """run = runs[-1]
for hit in run.search("a red ball", top=3):
    print(hit.place, hit.item, round(hit.score, 3))
experiment.close()"""),
)  # fmt: skip


def notebook() -> NotebookNode:
    """The notebook without outputs."""
    made = new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    makers = {"text": new_markdown_cell, "code": new_code_cell}
    for number, (kind, text) in enumerate(CELLS):
        made.cells.append(makers[kind](text, id=f"cell-{number}"))
    return made


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(nbformat.writes(notebook()) + "\n", encoding="utf-8")
