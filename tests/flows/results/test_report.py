"""The report page of real artifacts: a small trained method, its evaluation, rendered videos."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from flows.commands.experiments import print_leaderboard
from flows.reporting import ReportParams, captions_of, items_of
from flows.results.leaderboard import leaderboard_rows as rows_of
from flows.results.report import activity, leaderboard, page
from flows.results.report.frames import FRAMES, Frames, frame_seconds
from flows.results.report.pictures import Pictures
from flows.results.report.queries import choose, read_queries
from flows.results.report.training import panel, read_training
from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import Caption, Corpus, Item
from pipeline.run.briefing import RunBriefing
from pipeline.store.fingerprint import Fingerprint
from pipeline.store.store import Store, write_json
from trainers.config import Recipe
from trainers.data import SplitIndex
from trainers.loop.engine import fit
from trainers.loop.trained import Summary, TrainedFolder
from trainers.measure.evaluate import evaluate
from trainers.measure.evaluated import RANKING, EvaluatedFolder
from trainers.method import Batch, Encoded, Method

ITEMS, CAPTIONS, WIDTH_FEATURES = 24, 60, 6
MARKUP = '<script src="https://bad.example/x.js">alert("1")</script> & <b>bold</b>'


class Towers(Method):
    """Two linear encoders and an inner product."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.item = nn.Linear(WIDTH_FEATURES, 8), nn.Linear(WIDTH_FEATURES, 8)

    def losses(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        scores = self.scores(self.encode_texts(batch), {"vector": self.item(batch["item"])})
        return {"nce": nn.functional.cross_entropy(scores, torch.arange(len(scores))),
                "weight": 1e-3 * self.text.weight.square().sum()}  # fmt: skip

    def encode_texts(self, batch: Batch) -> Encoded:
        return {"vector": self.text(batch["x"])}

    def encode_items(self, batch: Batch) -> Encoded:
        return {"vector": self.item(batch["x"])}

    def scores(self, texts: Encoded, items: Encoded) -> Tensor:
        return texts["vector"] @ items["vector"].T

    def cheap_scores(self, texts: Encoded, items: Encoded) -> Tensor:
        a, b = (nn.functional.normalize(side["vector"], dim=1) for side in (texts, items))
        return a @ b.T


class Pairs:
    """Captions that are their item's features with noise; one value for all where they say nothing."""

    def __init__(self, items: int, captions: int, noise: float) -> None:
        generator = torch.Generator().manual_seed(0)
        self.items = torch.randn((items, WIDTH_FEATURES), generator=generator)
        self.owner = torch.arange(captions) % items
        drawn = torch.randn((captions, WIDTH_FEATURES), generator=generator)
        self.texts = self.items[self.owner] + noise * drawn

    def train_steps(self, world: int = 1) -> int:
        return 2

    def train_batches(self, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        for part in torch.arange(len(self.items)).chunk(2):
            yield {"x": self.texts[part], "item": self.items[part]}

    def item_batches(self, split: str) -> Iterator[Batch]:
        yield {"x": self.items}

    def text_batches(self, split: str) -> Iterator[Batch]:
        yield {"x": self.texts, "index": torch.arange(len(self.texts))}


def split_index(data: Pairs) -> SplitIndex:
    items = [f"item-digest-{i:04d}" for i in range(len(data.items))]
    captions = [f"caption-digest-{i:04d}" for i in range(len(data.texts))]
    texts = [f"caption number {i} {MARKUP}" for i in range(len(captions))]
    owner = data.owner.tolist()
    return SplitIndex(items, list(range(len(items))), captions, list(range(len(captions))), owner, texts)


def make_method(
    folder: Path, name: str, directions: tuple[str, ...] = ("t2v", "v2t"), items: int = ITEMS,
    captions: int = CAPTIONS, epochs: int = 4, noise: float = 0.5, kind: str = "video", several: bool = False,
    rerank: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """A method trained, published and evaluated by the product's own code, as the report's inputs name it."""
    measured = folder / f"evaluate-{name}"
    measured.mkdir(parents=True)
    torch.manual_seed(0)
    method, data = Towers(), Pairs(items, captions, noise)
    trained = train(folder, name, method, data, epochs)
    index = split_index(data)
    if several:  # every second caption describes the next two items as well
        also = [[(v + 1) % items, (v + 2) % items] if q % 2 else [] for q, v in enumerate(index.caption_item)]
        index = replace(index, caption_also=also)
    result = evaluate(method, data, "test", index, directions, kind=kind, queries=captions + 3, rerank=rerank)
    result.write(measured)
    return {"method": name, "train": str(trained), "evaluate": str(measured)}


def train(folder: Path, name: str, method: Towers, data: Pairs, epochs: int) -> Path:
    """Train as the worker of the stage does, and publish the folder as having taken 95 s."""
    store, fingerprint = Store(folder / "store"), Fingerprint.of({"method": name})
    work = store.work_folder(f"train-{name}", fingerprint.hex)
    work.mkdir(parents=True)
    config, summary = Recipe(epochs=epochs), Summary(best_epoch=0, epochs=0, validation={})
    if epochs:
        values = iter([3.0, 9.0, 7.0, 5.0] * epochs)
        result = fit(
            method, data, config, torch.optim.Adam(method.parameters(), lr=0.1),
            validate=lambda _: {"SumR": next(values)}, figure="SumR", folder=work, device=torch.device("cpu"),
        )  # fmt: skip
        summary = Summary(
            best_epoch=result.best_epoch, epochs=result.epochs, validation=result.validation,
            stopped_early=result.stopped_early,
        )  # fmt: skip
    TrainedFolder(work).write(name, config, method, summary)
    published = store.publish(f"train-{name}", fingerprint, 95.0, {})
    store.index.close()
    return published


def measured_by(entry: Mapping[str, Any]) -> EvaluatedFolder:
    """What the evaluation of a method left."""
    return EvaluatedFolder(Path(entry["evaluate"]))


def make_video(path: Path, seconds: int = 6) -> Path:
    """A video at 3 frames a second whose brightness grows with time."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=3)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(3 * seconds):
            picture = np.full((120, 160, 3), 40 + 3 * number, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def make_inputs(folder: Path, methods: list[dict[str, Any]], video: str | None) -> dict[str, Any]:
    """What the stage's brief gives: a corpus of these methods' items, all with the same video."""
    asked = measured_by(methods[0]).queries
    stage = {"fingerprint": "0a1b2c3d", "blocked": 0, "decodes": 7, "seconds": 2.5, "cached": 0, "ran": 0,
             "failed": 0, "total": 24, "failures": []}  # fmt: skip
    return {
        "experiment": {"name": f"trial {MARKUP}", "path": str(folder / "experiment.toml"),
                       "settings": {"clip": {"model": "ViT-B-32", "weights": str(folder / "w.safetensors")},
                                    "train-a": {"lr": 1e-4, "nested": {"deep": [1, 2]}}}},
        "corpus": {"path": str(folder / "corpus.jsonl"), "items": 24, "captions": 60,
                   "splits": {"test": {"items": 24, "captions": 60}}, "unreadable": {}},
        "stages": [stage | {"stage": "compress", "ran": 22}, stage | {"stage": "clip", "cached": 24}],
        "methods": methods,
        "items": {digest: {"id": f"<i>video</i> {n}", "video": video} for n, digest in enumerate(asked.items)},
        "captions": {
            digest: {asked.items[item]: {"id": f"cap#{n}", "moments": [[1.0, 2.5]]}}
            for n, (digest, item) in enumerate(zip(asked.captions, asked.caption_item, strict=True))
        },
    }  # fmt: skip


def make_page(folder: Path, inputs: Mapping[str, Any], **params: Any) -> str:
    """The page as the worker process writes it."""
    write_json(folder / "inputs.json", inputs)
    methods = [entry["method"] for entry in inputs["methods"]]
    request = {
        "stage": "report", "params": ReportParams(methods=methods, **params).model_dump_json(),
        "folder": str(folder / "report"), "inputs": str(folder / "inputs.json"), "needs": {}, "fingerprint": "f",
    }  # fmt: skip
    sent: list[Any] = []
    page.run(request, lambda header, arrays: sent.append(header))
    text = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert sent == [{"record": {"bytes": len(text.encode())}}]
    return text


class Tree(HTMLParser):
    """Tags with their attributes, and whether all that were opened were closed in order."""

    VOID = {"meta", "img", "link", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Inputs and page of an experiment in both directions."""
    folder = tmp_path_factory.mktemp("report")
    inputs = make_inputs(folder, [make_method(folder, "a")], str(make_video(folder / "v.mp4")))
    return inputs, make_page(folder, inputs)


def test_leaderboard_holds_every_figure_of_the_metrics_file_exactly(both: tuple[dict[str, Any], str]) -> None:
    inputs, text = both
    metrics = measured_by(inputs["methods"][0]).metrics.metrics
    estimates = [estimate for named in metrics.values() for estimate in named.values()]
    assert [float(str(a["value"])) for a in Tree(text).all("data")] == [one.value for one in estimates]
    assert set(metrics) == {"t2v", "v2t", "both"}
    for estimate in estimates[:5]:
        assert f"{estimate.low:.1f}–{estimate.high:.1f}" in text
    assert "sum of R@1, R@5 and R@10 of both directions" in text and "R@1+5+10+100" in text


def test_bars_of_a_column_share_a_scale_from_the_least_possible_that_holds_all_intervals_and_chance(
    tmp_path: Path,
) -> None:
    entries = [make_method(tmp_path, name, noise=noise) for name, noise in (("a", 0.1), ("b", 9.0))]
    measured = {entry["method"]: measured_by(entry).metrics for entry in entries}
    for board in leaderboard.boards(measured):
        for column, metric in enumerate(one.label for one in board.columns):
            least = 1.0 if metric in ("MdR", "MnR") else 0.0
            places, numbers = [0.0], [least]
            for method, cells in board.rows:
                bar, estimate = cells[column].bar, measured[method].metrics[board.direction][metric]
                places += [bar.value, bar.low, bar.high]
                numbers += [estimate.value, estimate.low, estimate.high]
                chance = measured[method].protocol.chance(board.direction)
                assert (bar.chance is None) == (metric not in chance)
                if bar.chance is not None:
                    places, numbers = [*places, bar.chance], [*numbers, chance[metric]]
            assert min(places) >= 0 and 60 < max(places) < 100
            slope = (max(places) - places[0]) / (max(numbers) - least)
            assert places == pytest.approx([slope * (number - least) for number in numbers], abs=0.02)


def test_page_is_well_formed_and_escapes_markup_of_captions_ids_and_names(
    both: tuple[dict[str, Any], str],
) -> None:
    tree = Tree(both[1])
    assert tree.open == []
    assert not tree.all("script") and not tree.all("i") and not tree.all("b")
    assert MARKUP in tree.text and "<i>video</i>" in tree.text


def test_page_refers_to_nothing_outside_itself(both: tuple[dict[str, Any], str]) -> None:
    tree = Tree(both[1])
    named = ("src", "href", "srcset", "poster", "data", "action")
    targets = [str(a[name]) for _, a in tree.tags for name in named if name in a]
    inside = ("#", "data:image/jpeg;base64,", "data:image/webp;base64,")
    assert targets and all(target.startswith(inside) for target in targets)
    style = both[1].split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    (policy,) = [a["content"] for a in tree.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none'")


def test_every_link_and_label_inside_the_page_has_its_target(both: tuple[dict[str, Any], str]) -> None:
    tree = Tree(both[1])
    ids = [a["id"] for _, a in tree.tags if "id" in a]
    assert len(ids) == len(set(ids))
    wanted = [str(a["href"]).removeprefix("#") for a in (*tree.all("a"), *tree.all("use"))]
    wanted += [str(a["aria-labelledby"]) for _, a in tree.tags if "aria-labelledby" in a]
    assert set(wanted) <= set(ids)
    assert all("alt" in a and "width" in a and "height" in a for a in tree.all("img"))
    assert all("scope" in a for a in tree.all("th"))


def test_page_names_no_folder_of_this_machine(both: tuple[dict[str, Any], str]) -> None:
    folder = str(Path(both[0]["experiment"]["path"]).parent)
    assert folder not in both[1] and str(Path.home()) + "/" not in both[1]
    assert "w.safetensors" in both[1] and "experiment.toml" in both[1]


def test_right_item_is_shown_with_frames_and_the_moment_of_the_caption(
    both: tuple[dict[str, Any], str],
) -> None:
    tree = Tree(both[1])
    queries = [a for a in tree.all("article")]
    right = [a for a in tree.all("li") if a.get("class") == "right"]
    assert [str(a["class"]).split()[1] for a in queries] == ["found"] * 3 + ["missed"] * 3
    assert len(right) == len(queries)  # each exactly once
    assert tree.text.count("The caption's moment: 1.0–2.5 s of 6.0 s") == len(queries)
    assert sum(a.get("class") == "inside" for a in tree.all("img")) >= len(queries)


def test_rank_of_a_missed_item_is_the_one_that_was_measured(tmp_path: Path) -> None:
    entry = make_method(tmp_path, "a", noise=4.0)
    ranks = measured_by(entry).ranking.ranks["t2v"].strict
    text = make_page(tmp_path, make_inputs(tmp_path, [entry], None))
    told = re.findall(r"Right item at rank (\d+) of 24", text)
    assert int(told[-1]) > 10 and all(int(rank) in ranks for rank in told)  # 10: places that are stored
    beside = re.findall(r'<li class="right">\s*<p class="place"><span class="rank">(\d+)</span>', text)
    assert beside == ["1"] * (len(beside) - len(told)) + told
    assert f"{(ranks == 1).sum()} of {CAPTIONS} queries found" in text


def test_failed_items_are_named_with_their_reasons_and_none_says_so(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, [make_method(tmp_path, "a")], None)
    assert "Nothing failed" in make_page(tmp_path, inputs)
    inputs["stages"][0]["failures"] = [{"name": "bad <clip>", "reason": f"{tmp_path}/x.mp4 is & stays empty"}]
    inputs["corpus"]["unreadable"] = {"lost-one": "the media file does not exist"}
    text = Tree(make_page(tmp_path, inputs)).text
    for words in ("bad <clip>", "x.mp4 is & stays empty", "lost-one", "the media file does not exist"):
        assert words in text
    assert str(tmp_path) not in text and "2 of the items" in text


def test_bold_is_what_is_shown_to_be_better_and_rows_stand_in_the_order_of_the_figure(tmp_path: Path) -> None:
    noises = {"poor": 9.0, "good": 0.0}
    methods = [make_method(tmp_path, name, ("t2v",), noise=noise) for name, noise in noises.items()]
    text = make_page(tmp_path, make_inputs(tmp_path, methods, None))
    assert "Text to video" in text and "Video to text" not in text
    board = text.split("</table>")[0]
    rows = {m: r for m, r in re.findall(r'<th scope="row">(good|poor)</th>(.*?)</tr>', board, re.S)}
    assert list(rows) == ["good", "poor"]
    assert 'class="best"' in rows["good"] and 'class="best"' not in rows["poor"]
    assert "not measured under the same protocol" not in text
    told = text.split('id="h-verdict"')[1].split("</section>")[0]
    assert "good is ahead of poor at R@1 by" in told


def test_of_two_methods_that_cannot_be_told_apart_nothing_is_bold(tmp_path: Path) -> None:
    methods = [make_method(tmp_path, name, ("t2v",), noise=noise) for name, noise in (("a", 2.0), ("b", 2.6))]
    text = make_page(tmp_path, make_inputs(tmp_path, methods, None))
    found = [measured_by(entry).metrics.metrics["t2v"]["R@5"].value for entry in methods]
    assert found[0] != found[1]  # one is larger, and larger is not better
    assert 'class="best"' not in text and "No method is shown to be better than another" in text


def test_a_page_of_one_test_item_says_that_its_figures_mean_nothing(tmp_path: Path) -> None:
    methods = [make_method(tmp_path, name, items=1, captions=3, epochs=0) for name in ("a", "b")]
    tree = Tree(make_page(tmp_path, make_inputs(tmp_path, methods, None)))
    assert tree.open == [] and "one test item: its figures mean nothing" in tree.text
    assert not [a for a in tree.all("data") if a.get("class") == "best"] and "All pairs" not in tree.text


def test_methods_of_different_galleries_are_not_said_to_be_comparable(tmp_path: Path) -> None:
    methods = [make_method(tmp_path, "a"), make_method(tmp_path, "b", items=12)]
    text = make_page(tmp_path, make_inputs(tmp_path, methods, None))
    assert "not measured under the same protocol" in text and "Protocol of b" in text


def test_hubness_has_a_row_for_each_method_and_direction_with_what_was_measured(tmp_path: Path) -> None:
    methods = [make_method(tmp_path, "a"), make_method(tmp_path, "b", ("t2v",))]
    text = make_page(tmp_path, make_inputs(tmp_path, methods, None))
    section = text.split("Hubness of every method")[1].split("</table>")[0]
    cell = r"<td[^>]*>(.*?)</td>"
    rows = re.findall(rf'<th scope="row">(\w)</th>{cell * 4}', section)
    told = measured_by(methods[0]).metrics.hubness["v2t"]
    assert [row[:2] for row in rows] == [
        ("a", "Text to video"), ("b", "Text to video"), ("a", "Video to text"),
    ]  # fmt: skip
    assert rows[2][2:] == (
        f"{told.skewness:.2f}", f"{100 * told.anti_hub_share:.1f} %", f"{told.most} (mean 4.0)",
    )  # fmt: skip
    assert "Members of the gallery among the first 10 results" in section and Tree(text).open == []


def test_page_of_point_clouds_speaks_of_clouds_and_shows_what_papers_on_them_give(tmp_path: Path) -> None:
    entries = [make_method(tmp_path, name, kind="pointcloud") for name in ("a", "b")]
    text = make_page(tmp_path, make_inputs(tmp_path, entries, str(make_video(tmp_path / "v.mp4"))))
    told = Tree(text).text
    assert "Text to cloud" in told and "Cloud to text" in told and "24 clouds and 60 captions" in told
    assert (
        "found the right cloud first" in told
        and f"ranks all {ITEMS} clouds, and one of them is right" in told
    )
    for word in (
        "Text to video",
        "Video to text",
        "Caption to item",
        "right item",
        "No frames",
    ):
        assert word not in told.replace("validation SumR", "")
    assert not Tree(text).all("img")
    tables = re.findall(r"<thead><tr><th scope=\"col\">Method</th>(.*?)</tr>", text)
    columns = [[re.sub("<.*?>|↓", "", name).strip() for name in head.split("</th>")[:-1]] for head in tables]
    assert columns[:2] == [["R@1", "R@5", "R@10", "MnR", "MRR"]] * 2
    assert "RSUM sum of R@1, R@5 and R@10 of both directions" in told
    metrics = measured_by(entries[0]).metrics.metrics
    assert set(metrics) == {"t2v", "v2t", "both"} and {"MdR", "R@100"} <= set(metrics["t2v"])
    shown = [float(str(a["value"])) for a in Tree(text).all("data")]
    assert metrics["both"]["RSUM"].value in shown and metrics["v2t"]["MRR"].value in shown


def test_dropped_captions_are_reported_where_there_are_some(tmp_path: Path) -> None:
    entry = make_method(tmp_path, "a")
    assert "3 captions without a right item" in make_page(tmp_path, make_inputs(tmp_path, [entry], None))
    path = Path(entry["evaluate"]) / "metrics.json"
    measured = json.loads(path.read_text())
    former = {k: v for k, v in measured["protocol"].items() if k not in ("kind", "dropped")}
    write_json(path, measured | {"protocol": former})  # as evaluations were written before
    text = make_page(tmp_path, make_inputs(tmp_path, [entry], None))
    assert "without a right item" not in text and "Text to video" in text


def test_query_with_several_right_items_names_them_all_and_shows_the_best(tmp_path: Path) -> None:
    entry = make_method(tmp_path, "a", noise=4.0, several=True, kind="pointcloud")
    folder = Path(entry["evaluate"])
    inputs = make_inputs(tmp_path, [entry], None)
    text = Tree(make_page(tmp_path, inputs)).text
    assert "found a right cloud first" in text and "not among them, the best right cloud" in text
    assert "1 to 3 of them are right (2.00 on average); the best rank among a caption's right items" in text
    shown = read_queries("a", EvaluatedFolder(folder), inputs, Pictures(0), 40)
    assert shown is not None and shown.several
    ranking, asked = EvaluatedFolder(folder).ranking, EvaluatedFolder(folder).queries
    names = [entry["id"] for entry in inputs["items"].values()]
    by_caption = {f"cap#{q}": q for q in range(CAPTIONS)}
    several = 0
    for query in shown.shown:
        q = by_caption[query.caption]
        right = [asked.caption_item[q], *asked.caption_also[q]]
        assert query.positives == tuple(names[v] for v in right)
        marked = {result.item for result in query.results if result.positive}
        assert names[ranking.best_positives[q]] in marked <= set(query.positives)
        if len(right) > 1:
            several += 1
            best = f"Best of 3 right clouds at rank {ranking.ranks['t2v'].strict[q]} of {ITEMS}"
            assert query.verdict == ("Found first" if query.found else best)
        else:
            assert query.verdict.startswith(("Found first", "Right cloud at rank"))
    assert 0 < several < len(shown.shown)
    on_page = read_queries("a", EvaluatedFolder(folder), inputs, Pictures(0), 6)
    assert on_page is not None
    told = [
        f"Right clouds: {', '.join(query.positives)}" for query in on_page.shown if len(query.positives) > 1
    ]
    assert told and all(line in text for line in told) and text.count("Right clouds:") == len(told)


def test_tied_query_with_several_right_items_does_not_say_with_how_many_others(tmp_path: Path) -> None:
    entry = make_method(tmp_path, "a", several=True)
    data = Pairs(ITEMS, CAPTIONS, 0.0)
    index = replace(
        split_index(data), caption_also=[[(v + 1) % ITEMS] for v in split_index(data).caption_item]
    )
    method = Towers()
    nn.init.zeros_(method.item.weight)
    evaluate(method, data, "test", index).write(Path(entry["evaluate"]))
    text = make_page(tmp_path, make_inputs(tmp_path, [entry], None))
    assert f"Best of 2 right items at rank 1 of {ITEMS}, tied with others" in text
    assert f"0 of {CAPTIONS} queries found a right item first" in text


def leaderboard_rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    """What a run knows of an evaluated method."""
    return list(rows_of("a", measured_by(make_method(folder, "a", kind=kind))))


@pytest.mark.parametrize(
    ("kind", "columns", "rows", "ranked", "total"),
    [
        ("video", ["R@1", "R@5", "R@10", "R@100", "SumR", "MdR", "MnR", "MRR"], ("a t2v", "a v2t"), "items", "RSUM"),
        ("pointcloud", ["R@1", "R@5", "R@10", "MnR", "MRR"], ("a t2c", "a c2t"), "clouds", "RSUM"),
    ],
)  # fmt: skip
def test_leaderboard_on_the_command_line_speaks_of_the_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    kind: str, columns: list[str], rows: tuple[str, str], ranked: str, total: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("flows.commands.experiments.out.width", 200)
    print_leaderboard(leaderboard_rows(tmp_path, kind))
    lines = capsys.readouterr().out.splitlines()
    assert f"test: {CAPTIONS} queries, {ITEMS} {ranked}" in lines
    assert any(line.split() == columns for line in lines)
    assert all(any(line.startswith(row) for line in lines) for row in rows)
    assert any(line.startswith(f"a {total} ") for line in lines)


def test_page_of_an_evaluation_that_did_not_measure_hubness_does_not_speak_of_it(tmp_path: Path) -> None:
    entry = make_method(tmp_path, "a")
    path = Path(entry["evaluate"]) / "metrics.json"
    write_json(path, {k: v for k, v in json.loads(path.read_text()).items() if k != "hubness"})
    text = make_page(tmp_path, make_inputs(tmp_path, [entry], None))
    assert "ubness" not in text and 'id="hubs"' not in text


def test_page_shows_recall_by_k_and_the_spread_of_ranks_of_every_method(tmp_path: Path) -> None:
    methods = [make_method(tmp_path, "a"), make_method(tmp_path, "b", ("t2v",))]
    text = make_page(tmp_path, make_inputs(tmp_path, methods, None))
    section = text.split('id="h-ranks"')[1].split("</section>")[0]
    lines = re.findall(r'style="fill: none[^"]*stroke: var\(--(s\d)\); stroke-width: 1.8', section)
    assert sorted(lines) == ["s0", "s0", "s1"]  # a in both directions, b in one, each in its colour
    assert len(re.findall(r"fill: var\(--s\d\); fill-opacity: 0.13", section)) == 3  # and each with a band
    assert [name[0] for name in re.findall(r"<figcaption>(\w+)</figcaption>", section)].count("a") == 2
    recall = measured_by(methods[0]).metrics.metrics["t2v"]["R@1"].value
    row = re.findall(r'<tr><th scope="row">a</th><td data-label="R@1">([\d.]+)</td>', section)[0]
    assert float(row) == pytest.approx(recall, abs=0.05)
    assert f'a <span class="soft">R@1 {recall:.1f}</span>' in section


def test_hubs_are_named_with_how_often_they_appear_and_their_frames(tmp_path: Path) -> None:
    entry = make_method(tmp_path, "a")
    path = Path(entry["evaluate"]) / RANKING
    ranking = load_file(path)
    ranking["t2v.occurrences"] = np.full(ITEMS, 20) + 300 * (np.arange(ITEMS) == 7)
    save_file(ranking, path)
    text = make_page(tmp_path, make_inputs(tmp_path, [entry], str(make_video(tmp_path / "v.mp4"))))
    section = text.split("Members that appear for too many queries")[1].split("</section>")[0]
    assert "1 item of 24 in 153 or more top 10" in section and "<img" in section
    assert '<span class="rank">320</span> <span class="item">&lt;i&gt;video&lt;/i&gt; 7</span>' in section
    right = measured_by(entry).queries.caption_item.count(7)
    assert f"positive of {right} captions" in section and Tree(text).open == []


def test_what_differs_from_the_published_experiment_comes_before_all_settings(tmp_path: Path) -> None:
    methods = [make_method(tmp_path, "a"), make_method(tmp_path, "b")]
    methods[0]["published"] = {
        "recipe": "msrvtt", "verdict": "a is not the published experiment a/msrvtt (x): 3 differences",
        "reasons": ["500 training videos are held out"],
        "differences": [{"setting": "lr", "here": 0.5, "published": 1e-4, "stated": True},
                        {"setting": "weights", "here": f"{tmp_path}/<w>", "published": "", "stated": False}],
    }  # fmt: skip
    methods[1]["published"] = {
        "recipe": "",
        "verdict": "b: nobody published it",
        "reasons": [],
        "differences": [],
    }
    text = make_page(tmp_path, make_inputs(tmp_path, methods, None))
    told = Tree(text).text.split("Beside the published experiments")[1].split("All settings")[0]
    assert "b: nobody published it; all settings are the method's defaults" in told
    assert "3 differences. 500 training videos are held out" in told
    assert "a lr 0.5 0.0001" in told and "weights <w> – (usual)" in told and str(tmp_path) not in text


def test_what_carried_a_match_is_drawn_under_its_result_and_escaped(tmp_path: Path) -> None:
    entry = make_method(tmp_path, "lean", noise=2.0)
    folder = Path(entry["evaluate"])
    plain = make_page(tmp_path, make_inputs(tmp_path, [entry], None))
    assert 'class="why' not in plain
    ranking, asked = EvaluatedFolder(folder).ranking, EvaluatedFolder(folder).queries
    queries = np.arange(0, CAPTIONS, 3)
    own = np.asarray(asked.caption_item)[queries, None]
    items = np.concatenate([ranking.top_items[queries, :3], own], 1)
    words = np.zeros((*items.shape, 2, 1, 2), np.int32)
    words[..., 0, 0, :] = 0, 200  # all of the caption, its markup too
    save_file(
        {"query": queries, "item": items, "edge_weights": np.full((*items.shape, 5), 0.2, np.float32), "words": words,
         "node_weights": np.full((*items.shape, 1 + 4 + 2), 1 / 7, np.float32),
         "top": np.zeros((*items.shape, 1), np.int64)},
        folder / "explanation.safetensors",
    )  # fmt: skip
    text = make_page(tmp_path, make_inputs(tmp_path, [entry], None))
    tree = Tree(text)
    assert tree.open == [] and not tree.all("script")
    shown = read_queries(
        "lean", EvaluatedFolder(folder), make_inputs(tmp_path, [entry], None), Pictures(0), 6
    )
    assert shown is not None and shown.legend in tree.text
    drawn = [result.drawing is not None for query in shown.shown for result in query.results]
    assert tree.text.count("Hyperedges of the triples") == sum(drawn) >= len(drawn) - 4  # but of the worst
    assert any(str(a.get("class")) == "w4" for a in tree.all("mark"))


def test_methods_that_ask_in_other_directions_are_compared_where_they_meet(tmp_path: Path) -> None:
    warning = "not measured under the same protocol"
    entries = [make_method(tmp_path, "a", ("t2v",)), make_method(tmp_path, "b", ("t2v", "v2t"))]
    assert warning not in make_page(tmp_path, make_inputs(tmp_path, entries, None))
    other = make_method(tmp_path, "c", ("t2v",), several=True)
    assert warning in make_page(tmp_path, make_inputs(tmp_path, [other, entries[1]], None))


def test_an_evaluation_in_two_stages_is_labelled(tmp_path: Path) -> None:
    exact, two = make_method(tmp_path, "a"), make_method(tmp_path, "b", rerank=5)
    assert "two stages" not in make_page(tmp_path, make_inputs(tmp_path, [exact], None))
    told = "two stages: of each caption's items, the 5 with the best cheap scores are scored"
    assert told in Tree(make_page(tmp_path, make_inputs(tmp_path, [two], None))).text


def test_a_model_that_scores_all_alike_finds_nothing_and_the_best_ranks_stand_apart(tmp_path: Path) -> None:
    entry = make_method(tmp_path, "a")
    data = Pairs(ITEMS, CAPTIONS, 0.0)
    method = Towers()
    nn.init.zeros_(method.item.weight)
    evaluate(method, data, "test", split_index(data)).write(Path(entry["evaluate"]))
    text = make_page(tmp_path, make_inputs(tmp_path, [entry], None))
    headline, _, apart = text.partition("With ties at their best rank")
    assert 'value="0.0"' in headline and 'value="0.0"' not in apart.partition("</table>")[0]
    assert apart.count('value="100.0"') > headline.count('value="100.0"')  # there it finds everything
    assert f"0 of {CAPTIONS} queries found the right item first" in text
    assert f"Right item at rank 1 of {ITEMS}, tied with {ITEMS - 1} others" in text


def test_evaluation_of_items_alone_and_an_untrained_method_have_a_page(tmp_path: Path) -> None:
    entry = make_method(tmp_path, "a", ("v2t",), epochs=0)
    assert not (Path(entry["train"]) / "history.jsonl").exists()
    tree = Tree(make_page(tmp_path, make_inputs(tmp_path, [entry], None)))
    assert "#queries" not in [a["href"] for a in tree.all("a")]
    assert "not trained" in tree.text


@pytest.mark.parametrize("kind", ["missing", "broken", "truncated", "none"])
def test_video_without_frames_leaves_a_named_placeholder(tmp_path: Path, kind: str) -> None:
    whole = make_video(tmp_path / "whole.mp4").read_bytes()
    path = tmp_path / "v.mp4"
    if kind != "missing":
        path.write_bytes({"broken": b"no video at all", "truncated": whole[:200]}.get(kind, whole))
    inputs = make_inputs(tmp_path, [make_method(tmp_path, "a")], None if kind == "none" else str(path))
    tree = Tree(make_page(tmp_path, inputs))
    assert not tree.all("img")
    assert "No frames of <i>video</i>" in tree.text


def test_frames_come_from_all_over_the_video_and_from_every_moment(tmp_path: Path) -> None:
    video = str(make_video(tmp_path / "v.mp4", seconds=20))
    frames = Frames(10**6)
    try:
        plain, with_moment = frames.strip(video), frames.strip(video, ((18.5, 19.5),))
    finally:
        frames.close()
    assert [f.seconds for f in plain.frames] == pytest.approx([2.5, 7.5, 12.5, 17.5], abs=0.34)
    assert plain.seconds == pytest.approx(20, abs=0.1)
    assert any(18.5 <= f.seconds <= 19.5 for f in with_moment.frames) and len(with_moment.frames) == FRAMES
    assert (plain.frames[0].width, plain.frames[0].height) == (149, 112)


def test_one_bad_video_leaves_the_next_one_readable_and_the_budget_holds(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"\0" * 5000)
    good = str(make_video(tmp_path / "v.mp4"))
    frames = Frames(3000)
    try:
        assert frames.strip(str(tmp_path / "bad.mp4")).reason
        sizes = [sum(len(f.source) for f in frames.strip(good).frames) for _ in range(40)]
    finally:
        frames.close()
    assert sizes[0] > 0 and sum(sizes) <= 3000 and sizes[-1] == 0


def test_a_moment_moves_the_nearest_frame_only_where_none_shows_it() -> None:
    assert frame_seconds(8.0, [[0.5, 1.5]]) == [1.0, 3.0, 5.0, 7.0]
    assert frame_seconds(8.0, [[1.5, 2.5]]) == [2.0, 3.0, 5.0, 7.0]
    assert frame_seconds(8.0, [[7.5, 30.0]]) == [1.0, 3.0, 5.0, 8.0]


def test_chosen_queries_are_half_found_of_different_items_and_go_from_near_miss_to_worst() -> None:
    rank = np.array([1, 1, 1, 5, 2, 1.5, 9, 1, 3])
    chosen = choose(rank, np.array([0, 0, 1, 1, 2, 2, 3, 3, 4]), 6)
    assert chosen[:3].tolist() == [0, 2, 7]
    assert rank[chosen[3:]].tolist() == sorted(rank[chosen[3:]]) and (rank[chosen[3:]] > 1).all()
    assert len(choose(np.ones(9), np.arange(9), 6)) == len(choose(np.full(9, 2.0), np.arange(9), 6)) == 6
    assert len(choose(np.ones(2), np.arange(2), 6)) == 2


def test_chosen_queries_are_explained_ones_and_the_worst_of_all() -> None:
    rank = np.random.default_rng(0).integers(1, 30, 400).astype(np.float64)
    rank[123] = 99
    among = np.arange(0, 400, 2)
    chosen = choose(rank, np.arange(400), 8, among)
    assert chosen[-1] == 123 and set(chosen[:-1]) <= set(among)
    assert (rank[chosen] == 1).sum() == 4
    assert (
        choose(rank, np.arange(400), 8, np.arange(400)).tolist() == choose(rank, np.arange(400), 8).tolist()
    )


def test_a_curve_has_every_finite_value_and_a_dot_at_the_best_epoch() -> None:
    drawn = panel("a", "loss", [(1, 4.0), (2, 1.0), (3, float("nan")), (4, 2.0)], best_epoch=2)
    assert drawn.summary == "a, loss: 4 in epoch 1, 2 in epoch 4, 1 in the best epoch 2"
    (line,) = re.findall(
        r'<path d="(M[^"]*)" clip-path="[^"]*" style="fill: none; stroke: var\(--accent\)', drawn.picture
    )
    points = [tuple(map(float, point.split()[1:])) for point in line.strip().splitlines()]
    assert len(points) == 3 and points[0][1] < points[2][1] < points[1][1]  # y grows downwards
    (dot,) = re.findall(
        r'<use href="#\w+" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--accent\)', drawn.picture
    )
    assert tuple(map(float, dot)) == pytest.approx(points[1], abs=0.01)
    assert panel("a", "lr", [(1, float("nan"))], best_epoch=0).picture == ""
    long = panel("a", "loss", [(epoch, 1 / epoch) for epoch in range(1, 5001)], best_epoch=4321)
    assert long.picture.count("\nL ") < 400 and "in the best epoch 4321" in long.summary


def test_a_learning_rate_that_falls_to_nothing_ends_at_0_and_not_at_minus_0() -> None:
    drawn = panel("a", "learning rate", [(1, 1e-4), (2, 5e-5), (3, 0.0)], best_epoch=3)
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", drawn.picture)
    assert "0" in labels and not any(label.startswith(("-", "−")) for label in labels)
    assert {"Epoch", "Learning rate"} <= set(labels)


def test_training_shows_validation_every_term_and_the_best_epoch(tmp_path: Path) -> None:
    entry = make_method(tmp_path, "a")
    training = read_training("a", TrainedFolder(Path(entry["train"])))
    assert [p.title for p in training.panels] == ["validation SumR", "loss", "learning rate"]
    assert [p.title for p in training.more] == ["nce", "weight", "waiting for data"]
    columns = ("epoch", "validation SumR", "loss", "nce", "weight", "learning rate", "waiting for data")
    assert training.columns == columns
    assert training.best_epoch == 2 and "9 in the best epoch 2" in training.panels[0].summary
    assert training.sentence == "4 epochs, the best one is 2; 112 parameters; 1 min 35 s"


def test_brief_has_what_was_evaluated_and_keeps_the_moments_of_one_text_apart_by_item(tmp_path: Path) -> None:
    said = [Caption("a#0", "a door opens", 1.0, 2.0), Caption("a#1", "a door opens", 5.0, 6.0)]
    items = (
        Item("a", "test", tuple(said)), Item("b", "test", (Caption("b#0", "a door opens"),)),
        Item("c", "test", (Caption("c#0", "a door shuts"),)), Item("d", "train"),
    )  # fmt: skip
    contents = Contents(Corpus(tmp_path / "corpus.jsonl", items), {name: f"digest-{name}" for name in "abcd"})
    assert captions_of(contents, {said[0].digest, "a caption that the corpus has lost"}) == {
        said[0].digest: {
            "digest-a": {"id": "a#0", "moments": [[1.0, 2.0], [5.0, 6.0]]},
            "digest-b": {"id": "b#0", "moments": []},
        }
    }
    briefing = RunBriefing(contents, None, {}, [], {})  # type: ignore[arg-type]
    nowhere = {"video": None, "compress": None, "points": None}
    assert items_of(briefing, {"digest-b", "digest-d", "an item that the corpus has lost"}) == {
        f"digest-{name}": {"id": name, "key": f"digest-{name}", **nowhere} for name in "bd"
    }


def test_worker_of_the_report_imports_neither_torch_nor_prefect(run_python: Callable[..., Any]) -> None:
    code = "import sys, flows.results.report.page; print({'torch', 'prefect'} & set(sys.modules))"
    assert run_python(code).out.strip() == "set()"


@pytest.mark.slow
def test_page_of_a_thousand_queries_with_many_failures_stays_under_5_mb(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 224, 398, 3), dtype=np.uint8)
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=3, options={"qscale": "2"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 398, 224, "yuv420p", 10**8
        for picture in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    methods = [make_method(tmp_path, name, items=400, captions=1000) for name in ("a", "b")]
    inputs = make_inputs(tmp_path, methods, str(tmp_path / "v.mp4"))
    inputs["stages"][0]["failures"] = [{"name": f"item {n}", "reason": "broken " * 200} for n in range(9000)]
    text = make_page(tmp_path, inputs, queries_shown=100)
    assert 1_000_000 < len(text.encode()) < 5_000_000
    assert "9,000 of the items" in text and "left out to keep this page small" in text


def test_the_time_of_the_workers_is_told_for_each_pass() -> None:
    parts = {"decode": 1.0, "network": 3.0, "wait": 0.5, "all": 4.0}
    reports = [
        {"stage": "compress", "shared_with": "", "parts": {"preprocess": 5.0, "all": 5.0}},
        {"stage": "clip", "shared_with": "", "parts": parts},
        {"stage": "frames", "shared_with": "clip", "parts": {}},
        {"stage": "train-gare"},  # of a store that was written before
    ]
    assert activity.time_spent(reports) == [
        "clip + frames: of 4.0 s of its workers, decode 1.0 s (25 %), network 3.0 s (75 %), "
        "waiting for frames 0.5 s (12 %)"
    ]


CHROMIUM = Path("/usr/bin/chromium")
CUT = "[...document.querySelectorAll('table')].filter(t => t.getBoundingClientRect().right > innerWidth + 1).length"
SCROLLS = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
OPEN = "document.querySelectorAll('details').forEach(each => { each.open = true })"
SCALES = """[...document.querySelectorAll('svg.plot')].map(
    one => one.getBoundingClientRect().width / one.viewBox.baseVal.width)"""


def in_a_browser(test: Any) -> Any:
    """A test that starts chromium."""
    return pytest.mark.slow(pytest.mark.long(test))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of four methods with videos."""
    folder = tmp_path_factory.mktemp("page")
    noises = {"a": 0.5, "b": 1.0, "c": 2.0, "d": 9.0}
    methods = [make_method(folder, name, noise=noise) for name, noise in noises.items()]
    make_page(folder, make_inputs(folder, methods, str(make_video(folder / "v.mp4"))))
    return folder / "report" / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not there")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser: Any, report: Path, width: int, **more: Any) -> Any:
    page = browser.new_page(viewport={"width": width, "height": 900}, **more)
    page.goto(report.as_uri())
    return page


@in_a_browser
def test_the_first_screen_says_who_won_and_the_page_is_short_before_anything_is_opened(
    browser: Any, report: Path
) -> None:
    page = opened(browser, report, 1440)
    assert page.locator(".says").first.bounding_box()["y"] < 400
    assert page.evaluate("document.documentElement.scrollHeight") < 6000
    page.click("nav a[href='#training']")
    assert page.locator("nav a[href='#verdict']").bounding_box()["y"] >= 0  # the list of contents stays


@in_a_browser
@pytest.mark.parametrize("width", [1440, 768, 390])
def test_no_table_is_cut_and_text_of_figures_is_legible(browser: Any, report: Path, width: int) -> None:
    page = opened(browser, report, width)
    page.evaluate(OPEN)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(SCROLLS) == 0
    assert min(page.evaluate(SCALES)) * 11.5 >= 11


@in_a_browser
def test_the_page_prints_whole_without_a_script(browser: Any, report: Path) -> None:
    page = opened(browser, report, 700, java_script_enabled=True)
    page.emulate_media(media="print")
    hidden = (
        "[...document.querySelectorAll('details > *')].filter(e => e.getClientRects().length === 0).length"
    )
    assert page.locator("details[open]").count() == 0 and page.evaluate(hidden) == 0
    assert page.evaluate(CUT) == 0 and page.evaluate(SCROLLS) == 0
    assert page.locator("script").count() == 0


@in_a_browser
def test_a_deciding_query_plays_under_the_pointer_and_links_into_serve(browser: Any, report: Path) -> None:
    page = opened(browser, report, 1440)
    film = page.locator(".film").first
    moving = film.locator(".moving")
    assert not moving.is_visible()
    film.hover()
    assert moving.is_visible()
    link = page.locator(".decides a").first.get_attribute("href")
    assert link.startswith("http://127.0.0.1:8600/?q=") and "&method=" in link and "&with=" in link
    assert 2 <= page.locator(".decides").count() <= 12


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_the_page_with_everything_open(browser: Any, report: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = opened(browser, report, 1440, color_scheme=scheme)
    page.evaluate(OPEN)
    found = axe.Axe().run(page)
    assert [each["id"] for each in found.response["violations"]] == []
