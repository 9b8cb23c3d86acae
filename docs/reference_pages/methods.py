"""The pages of methods, published experiments and papers, from the declarations, the recipes and the board's tables."""

from __future__ import annotations

import re
from collections.abc import Iterator

from reference_pages.addresses import CITED, DATA, DOI, Address, paper
from reference_pages.addresses import CODE as CODE_ADDRESSES

from flows.drafting.bounds import GPUS, bound
from flows.drafting.expected import Estimate, estimate
from flows.drafting.published import protocol_name
from flows.graph import EXTRACTORS, METHODS
from flows.results.board.published import read_published
from trainers.recipes import PublishedRecipe, every_recipe, recipes

METHODS_HEAD = """# Methods and stages

Every method that is built in, with the stages whose outputs it reads and its published experiments, from the program.
"""
HARDWARE_HEAD = """# Hardware, hours and disk of each published corpus

What a published experiment takes before anything of it is there. These are **estimates**, computed by the program
(`crossreel init --list` prints them) from two sources:

- numbers of items and captions and hours of video of each corpus: rounded figures of its paper;
- costs of a second of video, a frame and a caption, [measured](scale.md#work-for-each-video) on one core of a shared machine
  without a GPU, of videos of 640 x 360 pixels: 19 ms of CPU time to compress a second and 5 ms to decode its frames once
  for all stages; 28 kB a compressed second.

They are good for "fits my disk" and "hours or days", and for no more. `crossreel plan` gives an estimate for your machine,
from a sample of your media.

| column | what it holds |
| --- | --- |
| decode | CPU hours of one core to compress and decode all videos once; divide by your cores |
| disk | all that the store holds afterwards: compressed videos, features, packed inputs. The sources come on top |
| memory | not listed: packed inputs are memory-mapped, and the largest worker measured had 0.5 GB ([performance](performance.md)) |

A dash stands where nothing is decoded (features that others published) or where nobody here knows the size.
"""
GPU = """## GPU

No GPU was at hand, so no GPU hour on this page would be a measurement, and none is given. What is known:

- A frozen network on a CPU core encodes 6.5 frames a second with ViT-B/32 ([scale](scale.md#work-for-each-video)). At that rate
  the frames of MSR-VTT (41 hours at 3 a second) take about 19 CPU hours; your GPU's rate divides that.
- Fine-tuning CLIP (`mode = "finetune"` of clip4clip, neighborretr and gare) costs three forward passes of its frames and its
  caption for each pair and epoch. Without a GPU it is not practical; the frozen mode of the same methods is.
- Training on stored features costs, for a pair and epoch at the published width, 24 ms (HLFormer), 15 ms (NeighborRetr), 9 ms
  (GARE), 10 ms (LEAN) and 250 ms (H2ARN) of one core ([costs](scale.md#costs-that-plan-assumes)).
"""
BOUNDS = """## Least GPU hours

Operations of each published experiment with its published settings, and the least time that they take on three GPUs by their data
sheets (products without sparsity: A100 SXM 312 TFLOP/s in float16 and 19.5 in float32, H100 and H200 SXM 989 and 67; 32 and 64 GB/s
from the host). These are **lower bounds**, computed and not measured: no GPU was at hand. A real
run stays below the peak: one that reaches a third of it takes three times as long. H200 has the H100's processors and more memory, so that its bounds are the same.

| column | what it holds |
| --- | --- |
| extraction | forward passes of frozen networks over the corpus, once, in float16; a dash where pictures are fine-tuned or features imported |
| training | all epochs: three forward passes of CLIP's towers for a fine-tuned pair, and what stands behind them as torch counts it (`python benchmarks/operations.py`). Evaluation and optimizers are left out. Where a source does not say how many captions train, their share is taken to be that of the training items, and where it says neither (H2ARN, DiDeMo, LSMDC, and NeighborRetr on MSVD), all of the data set count |
| from the host | bytes of pictures or features that all epochs take to the GPU; where that takes longer than computing, it is the bound |
| A100, H100, H200 | least hours of extraction and training together, training in the published precision |

"""
PAPERS_HEAD = """# Papers, code and data

The papers of the methods, as the tables of `crossreel board` cite them, with the repositories and data sets. An address stands here
only where the authors state it themselves, in their paper or on a page of their own; no address is guessed, and nothing is fetched
from any of them.

| method | paper | where it appeared | arXiv | authors' code |
| --- | --- | --- | --- | --- |
"""
CODE = {  # what the specifications of the methods say of the authors' code
    "clip4clip": "recorded cases are of its commit 508ffa3",
    "gare": "recorded cases are of its state of 2026-05-31",
    "lean": "none was published",
}


def arxiv(number: str) -> str:
    """A link to a paper, whose address follows from its number."""
    return f"[{number}]({paper(number)})"


def linked(address: Address) -> str:
    """A link that shows the address without its scheme."""
    return f"[{re.sub('^https?://(www[.])?', '', address.url).rstrip('/')}]({address.url})"


def methods() -> str:
    """The page of methods and stages."""
    parts = [METHODS_HEAD]
    for name in METHODS.names():
        declared = METHODS.find(name)
        config = declared.config()
        reads = ", ".join(f"`{stage}`" for stage in config.features())
        rows = recipes(name)
        parts.append(
            f"## {name}\n\n[Its page](../methods/{name}.md). It ranks items of kind {declared.config.kind}, version "
            f"{declared.version}, and reads {reads or 'no features, but frames'} by default. Its settings: "
            f"[trainers.{name}](settings.md#trainers{name})."
        )
        parts.append("\n".join(["| recipe | data | status |", "| --- | --- | --- |", *map(_recipe, rows)]))
    rows = [
        f"| `{kind.name}` | {kind.version} | {kind.settings.__doc__ and kind.__doc__.splitlines()[0]} |"
        for kind in EXTRACTORS
    ]
    parts.append("## Stages of extraction\n\nTheir outputs and settings: [the stages](../stages.md).")
    parts.append("\n".join(["| stage | version | what it does |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def _recipe(row: PublishedRecipe) -> str:
    source = re.sub(r"arXiv (\d{4}\.\d{5})", lambda found: f"arXiv {arxiv(found[1])}", row.source)
    if row.method in CODE_ADDRESSES:
        source = re.sub(r"\b(its releases?)\b", rf"[\1]({CODE_ADDRESSES[row.method].url})", source)
    return f"| `{row.method}/{row.name}` | {protocol_name(row)} | {row.status}{f': {source}' if source else ''} |"


def hardware() -> str:
    """The page of hours and disk."""
    head = [
        "| experiment | items | captions | hours of video | decode | disk |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return "\n\n".join([HARDWARE_HEAD, "\n".join([*head, *_costs()]), GPU, BOUNDS + "\n".join(_bounds())])


def _costs() -> Iterator[str]:
    for row in every_recipe():
        found: Estimate = estimate(row)
        cells = [
            f"`{row.method}/{row.name}`", f"{found.items:,}" if found.items else "-", f"{found.captions:,}",
            "-" if found.hours is None else f"{found.hours:g}",
            "-" if found.decode_seconds is None else f"{found.decode_seconds / 3600:.1f} CPU h",
            "-" if found.bytes is None else f"{found.bytes / 1e9:.0f} GB",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _bounds() -> Iterator[str]:
    """The table of operations, bytes and least hours."""
    yield f"| experiment | extraction | training | from the host | {' | '.join(gpu.name for gpu in GPUS)} |"
    yield "| --- " * (4 + len(GPUS)) + "|"
    for row in every_recipe():
        found = bound(row)
        if found is not None:
            cells = [
                f"`{row.method}/{row.name}`", _petaflop(found.extraction), _petaflop(found.training),
                f"{found.input / 1e12:.3g} TB" if found.input else "-",
                *(_hours(sum(found.hours(gpu))) for gpu in GPUS),
            ]  # fmt: skip
            yield f"| {' | '.join(cells)} |"


def _petaflop(operations: float) -> str:
    return f"{operations / 1e15:.3g} PFLOP" if operations else "-"


def _hours(hours: float) -> str:
    return f"{hours:.2g} h" if hours >= 1 / 60 else f"{hours * 3600:.2g} s"


def papers() -> str:
    """The page of papers, code and data sets."""
    found = read_published()
    rows = [
        f"| [{name}](methods/{name}.md) | {one.paper} | {one.venue}{f' ({linked(DOI[name])})' if name in DOI else ''} | "
        f"{arxiv(one.arxiv)} | {_code(name)} |"
        for name, one in found.items()
    ]
    also = [f"- {arxiv(number)}: {words}" for number, words in CITED]
    figures: dict[str, set[str]] = {}
    for one in found.values():
        for protocol in one.protocols.values():
            figures.setdefault(protocol.dataset, set()).add(one.method)
    data = [
        f"| {one.name} | {one.title} | {arxiv(one.arxiv) if one.arxiv else '-'} | {linked(one.page) if one.page else '-'} | "
        f"{', '.join(f'[{method}](methods/{method}.md)' for method in sorted(figures.get(one.name, ()))) or '-'} |"
        for one in DATA
    ]
    return "\n".join(
        [PAPERS_HEAD.rstrip(), *rows, "", "Also cited:", "", *also, "", "## Data sets", "",
         "What is read of each, and under which protocol: [corpora](corpora.md). None of them is part of this project, and "
         "each has terms of its own. The videos of Charades-STA are those of Charades, the rooms of T3DR-HIT those of S3DIS; "
         f"version 2 of T3DR-HIT comes with the code of H2ARN, {linked(CODE_ADDRESSES['h2arn'])}.", "",
         "| data set | paper | arXiv | page of its authors | figures of it are published for |", "| --- | --- | --- | --- | --- |",
         *data, ""]
    )  # fmt: skip


def _code(method: str) -> str:
    """The cell of a method's code: its repository, and what is known of it."""
    address, words = CODE_ADDRESSES.get(method), CODE.get(method, "")
    return "; ".join([*([linked(address)] if address else []), *([words] if words else [])])
