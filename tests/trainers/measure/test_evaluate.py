"""Evaluation of a small real method against a twin that holds the whole score matrix."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from pipeline.errors import TrainingError, UserError
from trainers.data import SplitIndex
from trainers.loop import distributed
from trainers.measure import kept_scores, postprocess
from trainers.measure.encoding import encode_all
from trainers.measure.evaluate import evaluate, split_digest, validation_figure, validation_sample
from trainers.measure.evaluated import EvaluatedFolder
from trainers.measure.group_ranks import CAPTIONS as ALL_CAPTIONS
from trainers.measure.group_ranks import GROUPS
from trainers.measure.metric_table import recall_by_chance
from trainers.measure.metrics import ItemRanks, metrics, text_ranks
from trainers.measure.postprocess import Bank
from trainers.method import Batch, Encoded, Method
from trainers.stages import DualSoftmaxParams, EvaluateParams, QbNormParams, SinkhornParams

WIDTH, ITEMS, CAPTIONS = 512, 301, 257  # at 1 MB: several blocks of rows, several tiles of items, none even


class Dot(Method):
    """Inner products of linear embeddings with small whole numbers, so that every order of sums is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.item = nn.Linear(4, WIDTH, bias=False), nn.Linear(4, WIDTH, bias=False)
        self.frozen, self.drop = nn.Dropout(0.5).eval(), nn.Dropout(0.5)
        generator = torch.Generator().manual_seed(0)
        for layer in (self.text, self.item):
            nn.init.zeros_(layer.weight)
            layer.weight.data += torch.randint(-1, 2, (WIDTH, 4), generator=generator)
        self.encoded = {"texts": 0, "items": 0}
        self.calls: list[tuple[int, int]] = []

    def encode_texts(self, batch: Batch) -> Encoded:
        self.encoded["texts"] += len(batch["x"])
        return {"vector": self.drop(self.text(batch["x"]))}

    def encode_items(self, batch: Batch) -> Encoded:
        self.encoded["items"] += len(batch["x"])
        return {"vector": self.drop(self.item(batch["x"]))}

    def scores(self, texts: Encoded, items: Encoded) -> Tensor:
        self.calls.append((len(texts["vector"]), len(items["vector"])))
        return texts["vector"] @ items["vector"].T


class Data:
    """Features of a split; captions are handed out in another order than they are judged in."""

    def __init__(self, items: int = ITEMS, captions: int = CAPTIONS) -> None:
        generator = torch.Generator().manual_seed(1)
        self.items = torch.randint(-2, 3, (items, 4), generator=generator).float()
        self.texts = torch.randint(-2, 3, (captions, 4), generator=generator).float()
        self.order = torch.randperm(captions, generator=generator)

    def train_batches(self, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        raise NotImplementedError

    def train_steps(self, world: int = 1) -> int:
        raise NotImplementedError

    def item_batches(self, split: str) -> Iterator[Batch]:
        yield from ({"x": x} for x in self.items.split(64))

    def text_batches(self, split: str) -> Iterator[Batch]:
        yield from ({"x": self.texts[index], "index": index} for index in self.order.split(50))


def split_index(items: int = ITEMS, captions: int = CAPTIONS) -> SplitIndex:
    """Captions that belong to the first two thirds of the items, some to the same."""
    owner = np.random.default_rng(2).integers(0, max(1, 2 * items // 3), captions).tolist()
    return SplitIndex(
        items=[f"v{i}" for i in range(items)],
        item_rows=list(range(items)),
        captions=[f"c{i}" for i in range(captions)],
        caption_rows=list(range(captions)),
        caption_item=owner,
        texts=[f"caption {i}" for i in range(captions)],
    )


def several_right(items: int = ITEMS, captions: int = CAPTIONS) -> SplitIndex:
    """The same, every third caption with up to three other right items."""
    random = np.random.default_rng(5)
    base = split_index(items, captions)
    also = [
        sorted({*random.integers(0, items, random.integers(0, 4)).tolist()} - {own}) if q % 3 == 0 else []
        for q, own in enumerate(base.caption_item)
    ]
    return replace(base, caption_also=also)


def full_matrix(method: Dot, data: Data) -> np.ndarray:
    with torch.no_grad():
        return (method.text(data.texts) @ method.item(data.items).T).numpy()


@pytest.mark.parametrize("memory_mb", [1, 2, 1024])
def test_blocks_of_any_size_give_what_the_whole_matrix_gives(memory_mb: int) -> None:
    method, data, index = Dot(), Data(), split_index()
    scores, item = full_matrix(method, data), np.array(index.caption_item)
    result = evaluate(method, data, "test", index, directions=("t2v", "v2t"), memory_mb=memory_mb)
    ranking = result.ranking
    assert np.array_equal(ranking.ranks["t2v"].mean, text_ranks(scores, item).mean)
    assert np.array_equal(ranking.ranks["t2v"].strict, text_ranks(scores, item).strict)
    items = ItemRanks(ITEMS)
    items.find(scores, item)
    items.count(scores, item)
    assert np.array_equal(ranking.ranks["v2t"].mean, items.ranks().mean)
    assert np.array_equal(ranking.query_items, np.unique(item))
    assert np.array_equal(ranking.top_items, np.argsort(-scores, axis=1, kind="stable")[:, :10])
    assert np.array_equal(ranking.top_scores, -np.sort(-scores, axis=1)[:, :10])
    strict = {name: figure.value for name, figure in result.metrics["t2v"].items()}
    assert strict == metrics(text_ranks(scores, item).strict)


def test_small_memory_cuts_texts_and_items_unevenly_and_still_scores_every_pair_once() -> None:
    method = Dot()
    params = EvaluateParams(post_processing=("sinkhorn",))  # reads the scores more often than the ranks do
    evaluate(method, Data(), "test", split_index(), ("t2v", "v2t"), memory_mb=1, post_processing=params)
    assert len({rows for rows, _ in method.calls}) == len({columns for _, columns in method.calls}) == 2
    assert sum(rows * columns for rows, columns in method.calls) == ITEMS * CAPTIONS


def test_both_directions_score_every_pair_once_where_the_matrix_fits() -> None:
    method = Dot()
    evaluate(method, Data(), "test", split_index(), directions=("t2v", "v2t"))
    assert method.calls == [(CAPTIONS, ITEMS)]


def test_one_direction_alone_has_the_figures_it_has_beside_the_other() -> None:
    method, data, index = Dot(), Data(), split_index()
    both = evaluate(method, data, "test", index, ("t2v", "v2t"))
    for direction in ("t2v", "v2t"):
        alone = evaluate(method, data, "test", index, (direction,))
        assert alone.metrics == {direction: both.metrics[direction]}
        assert list(alone.protocol["directions"]) == list(alone.ranking.ranks) == [direction]


def test_every_item_and_caption_is_encoded_exactly_once() -> None:
    method = Dot()
    evaluate(method, Data(), "test", split_index(), directions=("t2v", "v2t"), memory_mb=1)
    assert method.encoded == {"texts": CAPTIONS, "items": ITEMS}


def test_dropout_is_off_inside_and_every_part_is_in_its_own_mode_afterwards() -> None:
    method = Dot().train()
    method.frozen.eval()
    first = validation_figure(method, Data(), "val", split_index())
    assert first == validation_figure(method, Data(), "val", split_index())
    assert method.training and method.drop.training and not method.frozen.training


def test_validation_figure_is_the_sumr_of_the_evaluation_without_ties() -> None:
    method, data, index = Dot(), Data(), split_index()
    result = evaluate(method, data, "val", index)
    assert validation_figure(method, data, "val", index) == result.mean_ties["t2v"]["SumR"].value


def test_method_collapsed_to_one_score_does_not_win_the_validation() -> None:
    method = Dot()
    nn.init.zeros_(method.text.weight)
    result = evaluate(method, Data(), "val", split_index())
    assert result.metrics["t2v"]["R@1"].value == 100
    assert result.mean_ties["t2v"]["R@1"].value == 0
    assert validation_figure(method, Data(), "val", split_index()) == 0


def test_second_figure_is_absent_where_nothing_is_tied() -> None:
    class Ordered(Dot):
        def scores(self, texts: Encoded, items: Encoded) -> Tensor:
            return items["vector"][:, 0] + 0 * super().scores(texts, items)

    data = Data()
    data.items[:, :] = torch.arange(ITEMS)[:, None].float()
    method = Ordered()
    method.item.weight.data[0] = 1.0
    assert evaluate(method, data, "test", split_index()).mean_ties == {}


def test_written_folder_holds_metrics_ranks_and_queries(tmp_path: Path) -> None:
    method, data, index = Dot(), Data(), split_index()
    result = evaluate(method, data, "test", index, directions=("t2v", "v2t"), seed=3)
    result.write(tmp_path)
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert set(summary) == {"metrics", "mean_ties", "protocol", "hubness"}
    assert set(summary["metrics"]) == {"t2v", "v2t", "both"}
    figure = summary["metrics"]["t2v"]["R@10"]
    assert figure["low"] <= figure["value"] <= figure["high"]
    arrays = load_file(tmp_path / "ranking.safetensors")
    assert np.array_equal(arrays["t2v.rank"], result.ranking.ranks["t2v"].strict)
    assert arrays["top.items"].shape == arrays["top.scores"].shape == (CAPTIONS, 10)
    assert len(arrays["v2t.item"]) == len(arrays["v2t.rank"]) == len(arrays["v2t.mean_rank"])
    queries = json.loads((tmp_path / "queries.json").read_text())
    assert queries["texts"][5] == "caption 5" and queries["caption_item"] == index.caption_item
    assert queries["items"] == index.items and queries["captions"] == index.captions


def test_protocol_says_what_was_judged() -> None:
    index = split_index()
    protocol = evaluate(Dot(), Data(), "test", index, directions=("t2v", "v2t")).protocol
    captions = np.bincount(index.caption_item, minlength=ITEMS)
    assert protocol["split"] == "test" and protocol["split_digest"] == split_digest(index)
    assert protocol["captions_per_item"] == {
        "min": 0,
        "mean": pytest.approx(CAPTIONS / ITEMS),
        "max": captions.max(),
    }
    t2v, v2t = protocol["directions"]["t2v"], protocol["directions"]["v2t"]
    assert (t2v["queries"], t2v["gallery"]) == (CAPTIONS, ITEMS)
    assert (v2t["queries"], v2t["gallery"]) == ((captions > 0).sum(), CAPTIONS)
    assert t2v["chance"]["R@10"] == pytest.approx(1000 / ITEMS)
    assert protocol["post_processing"] == "none"


@pytest.mark.parametrize("memory_mb", [1, 1024])
def test_several_right_items_are_ranked_by_the_best_of_them_in_both_directions(memory_mb: int) -> None:
    method, data, index = Dot(), Data(), several_right()
    scores, right = full_matrix(method, data), index.positives
    result = evaluate(method, data, "test", index, ("t2v", "v2t"), memory_mb=memory_mb)
    ranking = result.ranking
    strict = [
        min(1 + int((row > row[v]).sum()) for v in found) for row, found in zip(scores, right, strict=True)
    ]
    assert ranking.ranks["t2v"].strict.tolist() == strict
    captions = {v: [q for q, found in enumerate(right) if v in found] for v in range(ITEMS)}
    query_items = [v for v in range(ITEMS) if captions[v]]
    assert ranking.query_items.tolist() == query_items and len(query_items) > len(set(index.caption_item))
    columns = [min(1 + int((scores[:, v] > scores[q, v]).sum()) for q in captions[v]) for v in query_items]
    assert ranking.ranks["v2t"].strict.tolist() == columns
    assert [row[v] for row, v in zip(scores, ranking.best_positives, strict=True)] == [
        max(row[v] for v in found) for row, found in zip(scores, right, strict=True)
    ]
    assert len(ranking.occurrences["v2t"]) == CAPTIONS and ranking.occurrences["v2t"].sum() == 10 * len(
        query_items
    )
    recalls = [result.metrics[way][f"R@{k}"].value for way in ("t2v", "v2t") for k in (1, 5, 10)]
    assert result.metrics["both"]["RSUM"].value == pytest.approx(sum(recalls))


def test_validation_counts_the_best_of_several_right_items() -> None:
    method, data, index = Dot(), Data(), several_right()
    result = evaluate(method, data, "val", index)
    assert validation_figure(method, data, "val", index) == result.mean_ties["t2v"]["SumR"].value
    assert validation_figure(method, data, "val", index) > validation_figure(
        method, data, "val", split_index()
    )


def test_protocol_tells_the_right_items_of_a_caption_and_their_chance_where_there_are_several() -> None:
    index = several_right()
    protocol = evaluate(Dot(), Data(), "test", index, ("t2v", "v2t")).protocol
    right = np.array([len(found) for found in index.positives])
    assert protocol["items_per_caption"] == {"min": 1, "mean": right.mean(), "max": right.max()}
    assert protocol["captions_per_item"]["mean"] == pytest.approx(right.sum() / ITEMS)
    assert protocol["directions"]["t2v"]["chance"]["R@1"] == pytest.approx(100 * right.mean() / ITEMS)
    assert protocol["directions"]["v2t"]["chance"]["R@1"] == pytest.approx(
        100 * right.sum() / len({v for found in index.positives for v in found}) / CAPTIONS
    )
    assert "right items" in protocol["t2v_rank"] and "m right ones" in protocol["ties"]
    plain = evaluate(Dot(), Data(), "test", split_index(), ("t2v", "v2t")).protocol
    assert not {"items_per_caption", "t2v_rank"} & set(plain) and "half of the equal ones" in plain["ties"]


def test_protocol_tells_the_kind_and_how_many_queries_were_dropped() -> None:
    protocol = evaluate(Dot(), Data(), "test", split_index()).protocol
    assert (protocol["kind"], protocol["dropped"]) == ("video", 0)
    told = evaluate(
        Dot(), Data(), "test", split_index(), ("t2v", "v2t"), kind="pointcloud", queries=CAPTIONS + 7
    )
    assert (told.protocol["kind"], told.protocol["dropped"]) == ("pointcloud", 7)
    assert set(told.metrics) == {"t2v", "v2t", "both"}  # the keys on disk stay


def test_written_folder_names_all_right_items_and_the_best_one_where_there_are_several(
    tmp_path: Path,
) -> None:
    for name, index in (("one", split_index()), ("several", several_right())):
        (tmp_path / name).mkdir()
        evaluate(Dot(), Data(), "test", index, ("t2v", "v2t")).write(tmp_path / name)
    one, several = (json.loads((tmp_path / name / "queries.json").read_text()) for name in ("one", "several"))
    assert "caption_also" not in one and several["caption_also"] == several_right().caption_also
    arrays = load_file(tmp_path / "several" / "ranking.safetensors")
    assert "t2v.item" not in load_file(tmp_path / "one" / "ranking.safetensors")
    assert all(v in found for v, found in zip(arrays["t2v.item"], several_right().positives, strict=True))


def test_split_digest_changes_with_who_is_in_it_and_not_with_where_it_is_stored() -> None:
    base = split_index(5, 4)
    moved = SplitIndex(**{**vars(base), "item_rows": [9] * 5, "caption_rows": [9] * 4})
    assert split_digest(moved) == split_digest(base)
    for name, value in {"caption_item": [0, 0, 0, 4], "texts": ["a"] * 4, "items": list("abcde")}.items():
        assert split_digest(SplitIndex(**{**vars(base), name: value})) != split_digest(base)
    others = [replace(base, caption_also=[[v], [], [], []]) for v in (3, 4)]
    assert len({split_digest(index) for index in (base, *others)}) == 3
    assert split_digest(base) == "3d1ce23854bc0ad8"


def test_split_without_captions_or_items_and_an_unknown_direction_are_the_users_to_mend() -> None:
    with pytest.raises(UserError, match="'val' has no captions, so there are no queries"):
        evaluate(Dot(), Data(5, 0), "val", split_index(5, 0))
    with pytest.raises(UserError, match="'val' has no items, so there is no gallery"):
        validation_figure(Dot(), Data(0, 0), "val", split_index(0, 0))
    with pytest.raises(UserError, match="unknown direction 't2i'; did you mean 't2v'"):
        evaluate(Dot(), Data(), "test", split_index(), directions=("t2i",))


def test_scores_that_are_not_numbers_stop_the_evaluation() -> None:
    method = Dot()
    method.text.weight.data[:] = float("nan")
    with pytest.raises(TrainingError, match="NaN"):
        evaluate(method, Data(), "test", split_index())


def test_data_that_hands_out_too_few_items_or_a_caption_twice_is_refused() -> None:
    data = Data()
    data.items = data.items[:-3]
    with pytest.raises(ValueError, match="of 301 items 3 were not encoded exactly once"):
        evaluate(Dot(), data, "test", split_index())
    data = Data()
    data.order[0] = data.order[1]
    with pytest.raises(ValueError, match="of 257 captions 2 were not encoded exactly once"):
        evaluate(Dot(), data, "test", split_index())


def test_encodings_that_change_shape_between_batches_are_refused() -> None:
    class Widening(Dot):
        def encode_texts(self, batch: Batch) -> Encoded:
            vector = super().encode_texts(batch)["vector"]
            return {"vector": vector if len(vector) == 50 else vector[:, :1]}

    with pytest.raises(ValueError, match="vector of captions changes its shape"):
        evaluate(Widening(), Data(), "test", split_index())


def test_hubness_counts_who_stands_in_the_first_ten_of_a_full_sort_in_both_directions(tmp_path: Path) -> None:
    method, data, index = Dot(), Data(), split_index()
    scores, query_items = full_matrix(method, data), np.unique(index.caption_item)
    sides = {"t2v": scores, "v2t": scores.T[query_items]}
    for memory_mb in (1, 1024):  # many blocks with ties across their borders, and one
        result = evaluate(method, data, "test", index, ("t2v", "v2t"), memory_mb=memory_mb)
        for direction, side in sides.items():
            first = np.argsort(-side, axis=1, kind="stable")[:, :10]
            counts = np.bincount(first.ravel(), minlength=side.shape[1])
            assert np.array_equal(result.ranking.occurrences[direction], counts)
            assert result.hubness[direction].mean == pytest.approx(10 * len(side) / side.shape[1])
    result.write(tmp_path)
    summary = json.loads((tmp_path / "metrics.json").read_text())["hubness"]
    assert summary["v2t"] == vars(result.hubness["v2t"]) and summary["t2v"]["k"] == 10
    arrays = load_file(tmp_path / "ranking.safetensors")
    assert arrays["t2v.occurrences"].shape == (ITEMS,) and arrays["v2t.occurrences"].shape == (CAPTIONS,)
    assert arrays["v2t.occurrences"].sum() == 10 * len(query_items)


class Learned(Data):
    """What was learned from: its training split, as many captions and items as batches of either are uneven."""

    def __init__(self) -> None:
        super().__init__(60, 90)
        self.items, self.texts = self.items.flip(0) + 1, self.texts.flip(0) - 1

    def item_batches(self, split: str) -> Iterator[Batch]:
        assert split == "train"
        return super().item_batches(split)

    def text_batches(self, split: str) -> Iterator[Batch]:
        assert split == "train"
        return super().text_batches(split)


EVERY = EvaluateParams(
    post_processing=("dual_softmax", "qb_norm", "sinkhorn"),
    dual_softmax=DualSoftmaxParams(beta=0.01),  # these scores go up to some thousands
    qb_norm=QbNormParams(beta=0.01, k=2),
    sinkhorn=SinkhornParams(beta=0.01, iterations=3),
)


@pytest.mark.parametrize("memory_mb", [1, 1024])
def test_post_processed_figures_are_those_of_the_whole_matrix_and_of_a_bank_encoded_at_once(
    memory_mb: int,
) -> None:
    method, data, index, learned = Dot(), Data(), split_index(), Learned()
    scores, both = full_matrix(method, data), ("t2v", "v2t")
    result = evaluate(
        method, data, "test", index, both, memory_mb=memory_mb, post_processing=EVERY, bank=learned
    )
    method.eval()
    with torch.no_grad():
        text, item, texts, items = (
            part(x)
            for part, x in ((method.text, learned.texts), (method.item, learned.items),
                            (method.text, data.texts), (method.item, data.items))
        )  # fmt: skip
        bank = Bank(
            lambda: [(text @ items.T).numpy()],
            lambda: [[(slice(0, CAPTIONS), (texts @ item.T).numpy())]],
        )
    blocks = [(slice(0, CAPTIONS), scores)]
    options = postprocess.adjusted(blocks, scores.shape, EVERY, bank, both)
    twins = postprocess.ranks(blocks, index.relevance, both, options)
    assert list(result.post_processed) == list(twins) == list(EVERY.post_processing)
    for name, found in result.post_processed.items():
        for way in both:
            strict = {metric: figure.value for metric, figure in found.metrics[way].items()}
            assert strict == pytest.approx(metrics(twins[name][way].strict), rel=0.02), (name, way)
        assert found.params == getattr(EVERY, name).model_dump()


def test_raw_figures_and_files_do_not_know_of_post_processing(tmp_path: Path) -> None:
    both = ("t2v", "v2t")
    for name, params in (("plain", None), ("none", EvaluateParams()), ("every", EVERY)):
        (tmp_path / name).mkdir()
        evaluate(Dot(), Data(), "test", split_index(), both, post_processing=params, bank=Learned()).write(
            tmp_path / name
        )
    told = {
        name: json.loads((tmp_path / name / "metrics.json").read_text())
        for name in ("plain", "none", "every")
    }
    beside = told["every"].pop("post_processed")
    assert told["plain"] == told["none"] == told["every"]
    assert (tmp_path / "plain/ranking.safetensors").read_bytes() == (
        tmp_path / "every/ranking.safetensors"
    ).read_bytes()
    assert set(beside) == set(EVERY.post_processing)
    for name, block in beside.items():
        assert set(block) == {"metrics", "mean_ties", "note", "params"}
        assert set(block["metrics"]) == {"t2v", "v2t", "both"}
        figure = block["metrics"]["t2v"]["R@10"]
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert "not comparable with figures without it" in block["note"]
        assert ("the other queries of the test set" in block["note"]) == (name != "qb_norm")
        assert block["metrics"]["t2v"] != told["plain"]["metrics"]["t2v"], name
    assert "training captions" in beside["qb_norm"]["note"]


def test_post_processing_encodes_the_split_once_and_scores_again_only_what_does_not_fit() -> None:
    method = Dot()
    params = EvaluateParams(post_processing=("dual_softmax", "sinkhorn"))
    evaluate(method, Data(), "test", split_index(), post_processing=params)
    assert method.calls == [(CAPTIONS, ITEMS)]
    assert method.encoded == {"texts": CAPTIONS, "items": ITEMS}


def test_hubness_is_of_the_directions_that_were_asked_for() -> None:
    alone = evaluate(Dot(), Data(), "test", split_index(), ("v2t",))
    assert list(alone.hubness) == list(alone.ranking.occurrences) == ["v2t"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "items", "captions"),
    [(2, ITEMS, CAPTIONS), (3, ITEMS, CAPTIONS), (3, 60, 90)],
    ids=["a batch left over", "no batch for the last process", "fewer batches than processes"],
)
def test_processes_share_the_encoding_and_each_has_the_evaluation_of_one_alone(
    tmp_path: Path, count: int, items: int, captions: int, on_processes: Callable[..., list[int]]
) -> None:
    index = split_index(items, captions)
    alone = evaluate(Dot(), Data(items, captions), "test", index, ("t2v", "v2t"))
    figure = validation_figure(Dot(), Data(items, captions), "val", index)

    def body(rank: int) -> None:
        method = Dot()
        shared = evaluate(method, Data(items, captions), "test", index, ("t2v", "v2t"))
        assert shared.metrics == alone.metrics and shared.hubness == alone.hubness
        assert np.array_equal(shared.ranking.top_items, alone.ranking.top_items)
        (tmp_path / f"{rank}.json").write_text(json.dumps(method.encoded))
        # a group that is there already is used and left alone, as in training
        with distributed.process_group(torch.device("cpu")):
            assert validation_figure(Dot(), Data(items, captions), "val", index) == figure
            distributed.barrier()

    assert on_processes(count, body) == [0] * count
    encoded = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(count)]
    most = 50 * math.ceil(math.ceil(captions / 50) / count)
    assert all(0 < done["texts"] <= most for done in encoded)


def test_rows_without_an_index_are_put_in_the_order_of_their_batches_by_several_processes(
    on_processes: Callable[..., list[int]],
) -> None:
    class Counting(Dot):
        def encode_items(self, batch: Batch) -> Encoded:
            return {"vector": batch["x"][:, :1].to(torch.bfloat16), "real": batch["x"][:, 0] > 2}

    def body(rank: int) -> None:
        batches = [
            {"x": torch.arange(first, last).float()[:, None]} for first, last in ((0, 4), (4, 5), (5, 9))
        ]
        with distributed.process_group(torch.device("cpu")):
            found = encode_all(Counting().encode_items, batches, 9, "items", "cpu")
        assert found["vector"][:, 0].tolist() == list(range(9)) and found["vector"].dtype == torch.bfloat16
        assert found["real"].tolist() == [number > 2 for number in range(9)]

    assert on_processes(2, body) == [0, 0]


@pytest.mark.parametrize("memory_mb", [1, 1024])
def test_an_evaluation_in_blocks_ranks_groups_as_the_whole_matrix_does_and_says_so(
    memory_mb: int, tmp_path: Path
) -> None:
    method, data, index = Dot(), Data(), split_index()
    scores = full_matrix(method, data)
    found = evaluate(method, data, "test", index, ("t2v", "v2t"), memory_mb=memory_mb, v2t_rank=GROUPS)
    homes = sorted({*index.caption_item})
    grouped = np.stack([scores[np.equal(index.caption_item, home)].max(0) for home in homes])  # (G, V)
    own = grouped[np.arange(len(homes)), homes]
    assert found.ranking.ranks["v2t"].strict.tolist() == (1 + (grouped[:, homes] > own).sum(0)).tolist()
    found.write(tmp_path)
    folder = EvaluatedFolder(tmp_path)
    protocol, queries = folder.metrics.protocol, folder.queries
    groups = len(homes)
    side = protocol.side("v2t")
    assert protocol.groups and "among the groups of all items" in protocol.v2t_rank
    assert side is not None and side.gallery == groups == queries.gallery("v2t", protocol.groups) < 257
    assert side.chance["R@1"] == pytest.approx(100 / groups)
    assert (queries.positive_counts("v2t", protocol.groups) == 1).all()


def test_post_processed_figures_rank_groups_too() -> None:
    asked = EvaluateParams(post_processing=("dual_softmax",), dual_softmax=DualSoftmaxParams(beta=1e-9))
    found = evaluate(
        Dot(), Data(), "test", split_index(), ("v2t",), v2t_rank=GROUPS, post_processing=asked
    )  # a prior without effect but the raised scores: ranks stay
    assert found.post_processed["dual_softmax"].estimates["v2t"]["MnR"].value == pytest.approx(
        found.mean_ties["v2t"]["MnR"].value, rel=0.05
    )


def test_chance_of_groups_counts_all_right_groups_of_an_item() -> None:
    index = several_right()
    found = evaluate(Dot(), Data(), "test", index, ("v2t",), v2t_rank=GROUPS)
    named = {item: {own[0] for own in index.positives if item in own} for item in range(len(index.items))}
    right = np.array([len(groups) for groups in named.values() if groups])
    assert found.protocol["directions"]["v2t"]["chance"]["R@10"] == pytest.approx(
        recall_by_chance(len({*index.caption_item}), right, 10)
    )


@pytest.mark.parametrize("convention", [GROUPS, ALL_CAPTIONS])
def test_the_figure_that_chooses_the_epoch_is_that_of_the_evaluation(convention: str) -> None:
    method, data, index = Dot(), Data(), split_index()
    found = evaluate(method, data, "val", index, ("t2v", "v2t"), v2t_rank=convention)
    of = found.mean_ties

    def figure(by: str, direction: str = "t2v", memory_mb: int = 1) -> float:
        return validation_figure(
            method, data, "val", index, by=by, direction=direction, memory_mb=memory_mb, v2t_rank=convention
        )

    assert figure("SumR", "v2t") == of["v2t"]["SumR"].value
    assert figure("R@1") == of["t2v"]["R@1"].value
    assert figure("MRR", "v2t", memory_mb=1024) == of["v2t"]["MRR"].value
    first = [of["v2t"][f"R@{cutoff}"].value for cutoff in (1, 5, 10)]
    assert figure("R@1+5+10", "v2t") == pytest.approx(sum(first))
    assert figure("RSUM") == pytest.approx(of["both"]["RSUM"].value)


class Killed(Exception):
    """Stands for a kill in the middle of an evaluation."""


class Mortal(Dot):
    """Dies at a call of `scores`."""

    def __init__(self, dies_at: int) -> None:
        super().__init__()
        self.dies_at = dies_at

    def scores(self, texts: Encoded, items: Encoded) -> Tensor:
        if len(self.calls) == self.dies_at:
            raise Killed
        return super().scores(texts, items)


def pairs_scored(method: Dot) -> int:
    return sum(texts * items for texts, items in method.calls)


def killed_evaluation(folder: Path) -> Mortal:
    """An evaluation that dies in its fourth block of rows, of which four hold 54 captions and the last 41."""
    method = Mortal(dies_at=3 * 5 + 2)  # of five tiles of items each
    with pytest.raises(Killed):
        evaluate(method, Data(), "test", split_index(), ("t2v", "v2t"), memory_mb=1, folder=folder)
    return method


def test_an_evaluation_that_was_killed_goes_on_after_its_last_finished_block(tmp_path: Path) -> None:
    whole = evaluate(Dot(), Data(), "test", split_index(), ("t2v", "v2t"), memory_mb=1)
    killed_evaluation(tmp_path)
    method = Dot()
    found = evaluate(method, Data(), "test", split_index(), ("t2v", "v2t"), memory_mb=1, folder=tmp_path)
    assert pairs_scored(method) == (CAPTIONS - 3 * 54) * ITEMS
    assert found.metrics == whole.metrics and found.hubness == whole.hubness
    assert np.array_equal(found.ranking.top_scores, whole.ranking.top_scores)
    assert list(tmp_path.iterdir()) == []


def test_blocks_of_other_weights_or_of_a_damaged_file_are_scored_again(tmp_path: Path) -> None:
    both = ("t2v", "v2t")
    killed_evaluation(tmp_path)
    other = Dot()
    other.text.weight.data *= 2
    evaluate(other, Data(), "test", split_index(), both, memory_mb=1, folder=tmp_path)
    assert pairs_scored(other) == CAPTIONS * ITEMS

    killed_evaluation(tmp_path)
    (values,) = tmp_path.rglob("scores.f32")
    with values.open("r+b") as file:
        file.seek(4 * ITEMS * 60)  # in the second block
        file.write(b"damage")
    method = Dot()
    found = evaluate(method, Data(), "test", split_index(), both, memory_mb=1, folder=tmp_path)
    assert pairs_scored(method) == (CAPTIONS - 2 * 54) * ITEMS
    assert found.metrics == evaluate(Dot(), Data(), "test", split_index(), both).metrics


def test_a_full_disk_costs_a_second_scoring_and_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    whole = evaluate(Dot(), Data(), "test", split_index(), ("t2v", "v2t"), memory_mb=1)
    monkeypatch.setattr(kept_scores.os, "posix_fallocate", full)
    method = Dot()
    small = Data()
    found = evaluate(method, small, "test", split_index(), ("t2v", "v2t"), folder=tmp_path)
    assert found.metrics == whole.metrics and pairs_scored(method) == 2 * CAPTIONS * ITEMS
    assert "no room for the scores of 257 captions and 301 items" in caplog.text


def test_encodings_above_an_eighth_of_the_memory_are_mapped_from_a_file(tmp_path: Path) -> None:
    batches = [{"x": torch.full((5, 3), float(n))} for n in range(4)]
    for most, mapped in ((20 * 12, False), (20 * 12 - 1, True)):
        found = encode_all(
            lambda batch: {"vector": batch["x"]}, batches, 20, "items", "cpu", file=tmp_path / "file",
            most_bytes=most,
        )  # fmt: skip
        assert found["vector"].tolist() == [[n] * 3 for n in range(4) for _ in range(5)]
        assert (tmp_path / "file").exists() == mapped


def test_progress_counts_captions_items_and_pairs_to_their_totals() -> None:
    seen: list[Mapping[str, Any]] = []
    evaluate(Dot(), Data(), "test", split_index(), ("t2v", "v2t"), memory_mb=1, on_progress=seen.append)
    totals = {"encoding items": ITEMS, "encoding captions": CAPTIONS, "scoring": ITEMS * CAPTIONS,
              "ranking": CAPTIONS}  # fmt: skip
    for doing, total in totals.items():
        phase = [each for each in seen if each["doing"] == doing]
        assert phase[0]["done"] == 0 and phase[-1]["done"] == phase[-1]["total"] == total, doing
    assert [doing for doing in dict.fromkeys(each["doing"] for each in seen) if doing in totals] == list(
        totals
    )


@pytest.mark.parametrize("memory_mb", [1, 1024])
def test_a_validation_on_a_sample_is_that_of_a_split_without_the_other_captions(memory_mb: int) -> None:
    data, index = Data(), several_right()
    sample = validation_sample(index, 90, seed=3)
    assert sample is not None and len(sample) == len({*sample.tolist()}) == 90
    assert np.array_equal(sample, validation_sample(index, 90, seed=3))
    assert not np.array_equal(sample, validation_sample(index, 90, seed=4))

    class Alone(Data):
        """A split of the sampled captions alone."""

        def text_batches(self, split: str) -> Iterator[Batch]:
            yield {"x": self.texts[sample], "index": torch.arange(90)}

    kept = {
        name: [getattr(index, name)[place] for place in sample]
        for name in ("captions", "caption_rows", "caption_item", "texts", "caption_also")
    }
    for by, direction in (("SumR", "t2v"), ("R@10", "v2t"), ("RSUM", "t2v")):
        figures = [
            validation_figure(Dot(), each, "val", split, by=by, direction=direction, memory_mb=memory_mb, **more)
            for each, split, more in (
                (data, index, {"sample": sample}), (Alone(), replace(index, **kept), {})
            )
        ]  # fmt: skip
        assert figures[0] == figures[1] > 0, by


def test_a_split_with_no_more_captions_than_the_sample_is_validated_whole() -> None:
    index = split_index()
    assert validation_sample(index, CAPTIONS, 0) is None and validation_sample(index, 0, 0) is None
    assert validation_sample(index, CAPTIONS - 1, 0) is not None
