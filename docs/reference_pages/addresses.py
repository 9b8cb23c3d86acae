"""Addresses of papers, of the authors' code and of data sets, each with the place where it was read.

An address stands here only if the authors themselves state it: in their paper, or on a page of theirs. A page of the documents may
link to nothing else (tests/test_site.py). Nothing is fetched from any of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Address:
    """An address on the web; source: where its authors state it, in a word or two."""

    url: str
    source: str


@dataclass(frozen=True)
class DataSet:
    """A data set: the paper that introduced it (arXiv number, "" if it has none) with its title, and its page or repository."""

    name: str
    title: str
    arxiv: str
    page: Address | None


CODE = {
    "clip4clip": Address("https://github.com/ArrowLuo/CLIP4Clip", "its abstract"),
    "hlformer": Address("https://github.com/lijun2005/ICCV25-HLFormer", "its abstract"),
    "neighborretr": Address("https://github.com/zzezze/NeighborRetr", "its abstract"),
    "gare": Address("https://github.com/musicman217/GARE-text-video-retrieval", "its abstract, version 5"),
    "h2arn": Address("https://github.com/liwrui/H2ARN", "its abstract"),
}
"""The repository of each method that has one, as its paper states it."""

DOI = {"lean": Address("https://doi.org/10.1145/3616855.3635757", "the proceedings of WSDM 2024")}

DATA = (
    DataSet(
        "MSR-VTT", "MSR-VTT: A Large Video Description Dataset for Bridging Video and Language", "",
        Address("https://www.microsoft.com/en-us/research/publication/msr-vtt-a-large-video-description-dataset-for-bridging-video-and-language/", "its publisher's page"),
    ),
    DataSet(
        "MSVD", "Collecting Highly Parallel Data for Paraphrase Evaluation", "",
        Address("http://www.cs.utexas.edu/users/ai-lab?chen:acl11", "its authors' group"),
    ),
    DataSet(
        "LSMDC", "Movie Description", "1605.03705",
        Address("https://sites.google.com/site/describingmovies/previous-years/lsmdc-2019", "the challenge's own site"),
    ),
    DataSet(
        "ActivityNet Captions", "Dense-Captioning Events in Videos", "1705.00754",
        Address("http://cs.stanford.edu/people/ranjaykrishna/densevid/", "its paper"),
    ),
    DataSet(
        "DiDeMo", "Localizing Moments in Video with Natural Language", "1708.01641",
        Address("https://people.eecs.berkeley.edu/~lisa_anne/didemo.html", "its paper"),
    ),
    DataSet("Charades-STA", "TALL: Temporal Activity Localization via Language Query", "1705.02101", None),
    DataSet(
        "Charades", "Hollywood in Homes: Crowdsourcing Data Collection for Activity Understanding", "1604.01753",
        Address("https://prior.allenai.org/projects/data/charades/README.txt", "its authors' group"),
    ),
    DataSet(
        "TVR", "TVR: A Large-Scale Dataset for Video-Subtitle Moment Retrieval", "2001.09099",
        Address("https://tvr.cs.unc.edu", "its paper"),
    ),
    DataSet(
        "T3DR-HIT", "Riemann-based Multi-scale Attention Reasoning Network for Text-3D Retrieval", "2408.13712",
        Address("https://github.com/liwrui/RMARN", "its abstract"),
    ),
    DataSet(
        "S3DIS", "3D Semantic Parsing of Large-Scale Indoor Spaces", "",
        Address("http://buildingparser.stanford.edu/", "its paper"),
    ),
    DataSet(
        "QVHighlights", "QVHighlights: Detecting Moments and Highlights in Videos via Natural Language Queries", "2107.09609",
        Address("https://github.com/jayleicn/moment_detr", "its abstract"),
    ),
)  # fmt: skip
"""Version 2 of T3DR-HIT comes with H2ARN's code; Charades holds the videos of Charades-STA, S3DIS the rooms of T3DR-HIT."""

CITED = (
    ("2102.12443", "zero-shot CLIP on videos, whose figures `crossreel board` quotes beside CLIP4Clip"),
    ("2208.12510", "partially relevant video retrieval (MS-SL), whose features HLFormer reads"),
)


def paper(number: str) -> str:
    """The address of a paper on arXiv, which follows from its number."""
    return f"https://arxiv.org/abs/{number}"


def known() -> frozenset[str]:
    """Every address that a page may link to, apart from papers on arXiv."""
    pages = [one.page for one in DATA if one.page]
    return frozenset(address.url for address in (*CODE.values(), *DOI.values(), *pages))
