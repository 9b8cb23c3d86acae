"""Post-processed rankings against twins that hold the whole matrix and follow the formulas literally."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from pipeline.errors import UserError
from pipeline.settings import fill
from trainers.hlformer.config import HLFormerConfig
from trainers.hlformer.declaration import HLFORMER
from trainers.measure import postprocess
from trainers.measure.metrics import Block, text_ranks
from trainers.measure.postprocess import (
    Adjusted,
    Bank,
    LogSum,
    adjusted,
    dual_softmax,
    qb_norm,
    ranks,
    sinkhorn,
)
from trainers.relevance import Relevance
from trainers.stages import EvaluateParams, stages_of

Q, V, BANK_TEXTS, BANK_ITEMS = 61, 43, 70, 29
BOTH = ("t2v", "v2t")


class Rows:
    """A matrix as blocks of rows, which counts how often it is read."""

    def __init__(self, scores: np.ndarray, rows: int = 17) -> None:
        self.scores, self.rows, self.passes = scores, rows, 0

    def __iter__(self) -> Iterator[Block]:
        self.passes += 1
        for first in range(0, len(self.scores), self.rows):
            part = self.scores[first : first + self.rows]
            yield slice(first, first + len(part)), part


def cosines(rows: int = Q, columns: int = V, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.05, 0.6, (rows, columns)).astype(np.float32)


def bank_of(texts: np.ndarray, items: np.ndarray) -> Bank:
    """texts: (B, V); items: (Q, B)."""
    return Bank(lambda: [texts[:40], texts[40:]], lambda: [Rows(items[:, :12]), Rows(items[:, 12:])])


def a_bank(seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    return cosines(BANK_TEXTS, V, seed), cosines(Q, BANK_ITEMS, seed + 1)


def links(seed: int = 3) -> Relevance:
    return Relevance.one_each(np.random.default_rng(seed).integers(0, V, Q), V)


def full(option: Adjusted, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What captions rank items by, and what items rank captions by."""
    everything = slice(0, len(scores))
    return option.t2v(everything, scores), option.v2t(everything, scores)


def order(values: np.ndarray) -> np.ndarray:
    return np.argsort(-values, axis=1, kind="stable")


def same_orders(option: Adjusted, scores: np.ndarray, text: np.ndarray, item: np.ndarray) -> None:
    """Both directions order like the twin's matrices (Q, V)."""
    t2v, v2t = full(option, scores)
    np.testing.assert_array_equal(order(t2v), order(text))
    np.testing.assert_array_equal(order(v2t.T), order(item.T))


def test_dual_softmax_orders_by_score_times_the_softmax_over_queries() -> None:
    scores, beta = cosines(), 20.0
    exact = scores.astype(np.float64)
    option = dual_softmax(Rows(scores), (Q, V), beta)
    same_orders(option, scores, exact * softmax(beta * exact, axis=0), exact * softmax(beta * exact, axis=1))
    assert option.least == 0  # exactly as published, where no score is negative


def test_dual_softmax_of_negative_scores_is_that_of_scores_raised_by_the_least() -> None:
    scores = cosines() - np.float32(3)
    raised = scores.astype(np.float64) - float(scores.min())
    same_orders(
        dual_softmax(Rows(scores), (Q, V), 9.0),
        scores,
        raised * softmax(9 * raised, axis=0),
        raised * softmax(9 * raised, axis=1),
    )


def test_sinkhorn_scales_rows_and_columns_in_turn() -> None:
    scores, beta = cosines(), 15.0
    for count in (1, 2, 7):
        scaled = np.exp(beta * scores.astype(np.float64))
        for _ in range(count):
            scaled /= scaled.sum(1, keepdims=True)
            rows = scaled.copy()
            scaled /= scaled.sum(0, keepdims=True)
        option = sinkhorn(Rows(scores), (Q, V), beta, count)
        same_orders(option, scores, scaled, scaled)
        exact = np.exp(beta * scores.astype(np.float64) - option.of_text[:, None] - option.of_item)
        np.testing.assert_allclose(exact, scaled, rtol=1e-9)
        assert not np.allclose(rows, scaled, rtol=1e-3)


def test_sinkhorn_comes_to_equal_sums_of_rows_and_of_columns() -> None:
    option = sinkhorn(Rows(cosines()), (Q, V), 15.0, 200)
    scaled = np.exp(15.0 * cosines().astype(np.float64) - option.of_text[:, None] - option.of_item)
    np.testing.assert_allclose(scaled.sum(0), 1, rtol=1e-9)
    np.testing.assert_allclose(scaled.sum(1), V / Q, rtol=1e-9)


def literal_qb_norm(scores: np.ndarray, bank: np.ndarray, beta: float, k: int) -> np.ndarray:
    """Queries in rows; bank: its queries in rows."""
    active = set(np.argsort(-bank, axis=1, kind="stable")[:, :k].ravel().tolist())
    below = np.exp(beta * bank).sum(0)
    return np.array([np.exp(beta * row) / below if int(row.argmax()) in active else row for row in scores])


@pytest.mark.parametrize("k", [1, 3])
def test_qb_norm_normalises_by_the_bank_only_queries_whose_first_place_is_active(k: int) -> None:
    scores, (texts, items) = cosines(), a_bank()
    texts[:, :20] -= 0.5  # never first: some queries keep their scores
    items[:20] -= 0.5
    option = qb_norm(Rows(scores), (Q, V), bank_of(texts, items), 20.0, k, BOTH)
    exact, of_texts, of_items = (a.astype(np.float64) for a in (scores, texts, items))
    same_orders(
        option,
        scores,
        literal_qb_norm(exact, of_texts, 20.0, k),
        literal_qb_norm(exact.T, of_items.T, 20.0, k).T,
    )
    assert option.texts is not None and 0 < option.texts.sum() < Q
    assert option.items is not None and 0 < option.items.sum() < V


def test_qb_norm_knows_no_other_test_query() -> None:
    scores, (texts, items) = cosines(), a_bank()
    bank = bank_of(texts, items)
    whole, _ = full(qb_norm(Rows(scores), (Q, V), bank, 20.0, 1, ("t2v",)), scores)
    for q in (0, 30, Q - 1):
        alone = scores[q : q + 1]
        row, _ = full(qb_norm(Rows(alone), (1, V), bank, 20.0, 1, ("t2v",)), alone)
        np.testing.assert_array_equal(row[0], whole[q])


def test_qb_norm_of_one_direction_does_not_ask_for_the_bank_of_the_other() -> None:
    def refuse() -> Any:
        raise AssertionError

    texts, items = a_bank()
    bank = bank_of(texts, items)
    qb_norm(Rows(cosines()), (Q, V), Bank(bank.texts, refuse), 20.0, 1, ("t2v",))
    qb_norm(Rows(cosines()), (Q, V), Bank(refuse, bank.items), 20.0, 1, ("v2t",))


def every_option(scores: np.ndarray, rows: int = 17) -> dict[str, Adjusted]:
    params = EvaluateParams(post_processing=("dual_softmax", "qb_norm", "sinkhorn"))
    return adjusted(Rows(scores, rows), scores.shape, params, bank_of(*a_bank()), BOTH)


@pytest.mark.parametrize("rows", [1, 17, 100])
def test_blocks_of_any_size_give_the_same_ranks(rows: int) -> None:
    scores = cosines()
    whole = ranks(Rows(scores, Q), links(), BOTH, every_option(scores, Q))
    cut = ranks(Rows(scores, rows), links(), BOTH, every_option(scores, rows))
    for name in whole:
        for way in BOTH:
            np.testing.assert_array_equal(cut[name][way].mean, whole[name][way].mean)


def test_pieces_of_a_block_are_cut_so_that_none_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = cosines()
    whole = every_option(scores)
    monkeypatch.setattr(postprocess, "PIECE", 3 * V)
    assert {len(part) for _, part in postprocess._pieces(Rows(scores))} == {1, 2, 3}
    for name, option in every_option(scores).items():
        np.testing.assert_allclose(full(option, scores)[0], full(whole[name], scores)[0], rtol=1e-12)


def test_ranks_are_those_of_the_whole_adjusted_matrix() -> None:
    scores, right = cosines(), links()
    for name, option in every_option(scores).items():
        text, item = full(option, scores)
        found = ranks(Rows(scores), right, BOTH, {name: option})[name]
        np.testing.assert_array_equal(found["t2v"].mean, text_ranks(text, right).mean)
        best = [1 + sum(item[:, v] > item[right.item == v, v].max()) for v in np.unique(right.item)]
        np.testing.assert_array_equal(found["v2t"].strict, best)


def test_order_of_captions_and_items_does_not_count() -> None:
    scores, random = cosines(), np.random.default_rng(8)
    rows, columns = random.permutation(Q), random.permutation(V)
    for beta, make in ((20.0, dual_softmax), (20.0, lambda b, s, beta: sinkhorn(b, s, beta, 3))):
        text, item = full(make(Rows(scores), (Q, V), beta), scores)
        moved = scores[rows][:, columns]
        text_moved, item_moved = full(make(Rows(moved), (Q, V), beta), moved)
        np.testing.assert_allclose(text_moved, text[rows][:, columns], atol=1e-9)
        np.testing.assert_allclose(item_moved, item[rows][:, columns], atol=1e-9)


def test_sinkhorn_undoes_what_is_added_to_a_caption_or_an_item() -> None:
    scores, random = cosines().astype(np.float64), np.random.default_rng(9)
    moved = scores + random.normal(size=(Q, 1)) + random.normal(size=V)
    text, item = full(sinkhorn(Rows(scores), (Q, V), 10.0, 300), scores)
    text_moved, item_moved = full(sinkhorn(Rows(moved), (Q, V), 10.0, 300), moved)
    same = lambda a: a - a.mean(1, keepdims=True)  # noqa: E731  # a query's own offset ranks nothing
    np.testing.assert_allclose(same(text_moved), same(text), atol=1e-6)
    np.testing.assert_allclose(same(item_moved.T), same(item.T), atol=1e-6)


def test_dual_softmax_and_sinkhorn_do_not_change_where_all_scores_move_together() -> None:
    scores = cosines().astype(np.float64) - 1
    for make in (dual_softmax, lambda b, s, beta: sinkhorn(b, s, beta, 3)):
        moved = scores - 40
        for before, after in zip(
            full(make(Rows(scores), (Q, V), 20.0), scores),
            full(make(Rows(moved), (Q, V), 20.0), moved),
            strict=True,
        ):
            np.testing.assert_array_equal(order(before), order(after))


def test_every_option_undoes_a_hub() -> None:
    right = Relevance.one_each(np.arange(Q) % V, V)
    scores, (texts, items) = cosines() / 4, a_bank()
    scores[np.arange(Q), right.item] += 0.3
    scores[:, 7] += 0.5  # the first place of everybody
    texts[:, 7] += 0.5
    before = text_ranks(scores, right).strict
    params = EvaluateParams(post_processing=("dual_softmax", "qb_norm", "sinkhorn"))
    options = adjusted(Rows(scores), (Q, V), params, bank_of(texts, items), ("t2v",))
    for found in ranks(Rows(scores), right, ("t2v",), options).values():
        assert (found["t2v"].strict == 1).mean() > 0.5 > 0.1 > (before == 1).mean()


def test_scores_of_any_size_do_not_overflow_and_keep_their_differences() -> None:
    scores = (cosines() * 2e4 - 1e4).astype(np.float32)
    with np.errstate(all="raise", under="ignore"):
        for option in every_option(scores).values():
            for values in full(option, scores):
                assert np.isfinite(values).all()
    huge = np.full((3, 4), 1e30, np.float32)
    huge[1, 2] = -1e30
    for values in full(dual_softmax(Rows(huge), (3, 4), 100.0), huge):
        assert np.isfinite(values).all()


def test_equal_scores_stay_tied() -> None:
    scores = np.full((Q, V), 0.25, np.float32)
    option = {"dual_softmax": dual_softmax(Rows(scores), (Q, V), 100.0),
              "sinkhorn": sinkhorn(Rows(scores), (Q, V), 100.0, 4)}  # fmt: skip
    for found in ranks(Rows(scores), links(), BOTH, option).values():
        assert (found["t2v"].mean == (V + 1) / 2).all() and (found["t2v"].strict == 1).all()
        assert (found["v2t"].strict == 1).all()
    zeros = np.zeros((Q, V), np.float32)  # products that are 0 are equal, too
    nothing = ranks(Rows(zeros), links(), BOTH, {"dual_softmax": dual_softmax(Rows(zeros), (Q, V), 100.0)})
    assert (nothing["dual_softmax"]["t2v"].mean == (V + 1) / 2).all()


def test_every_option_reads_the_scores_as_often_as_it_says() -> None:
    rows = Rows(cosines())
    bank = bank_of(*a_bank())
    for passes, make in (
        (1, lambda: dual_softmax(rows, (Q, V), 20.0)),
        (6, lambda: sinkhorn(rows, (Q, V), 20.0, 6)),
        (2, lambda: qb_norm(rows, (Q, V), bank, 20.0, 1, BOTH)),
    ):
        rows.passes = 0
        make()
        assert rows.passes == passes
    rows.passes = 0
    ranks(rows, links(), BOTH, every_option(cosines()))
    assert rows.passes == 2


def test_log_sums_of_parts_are_those_of_everything() -> None:
    values = np.random.default_rng(1).normal(scale=300, size=(50, 9))
    whole, parts = LogSum(9), LogSum(9)
    whole.add(values)
    for where in (slice(0, 4), slice(4, 9)):
        for part in np.array_split(values, 7):
            parts.add(part[:, where], where)
    np.testing.assert_allclose(parts.value, logsumexp(values, axis=0), rtol=1e-12)
    np.testing.assert_allclose(whole.value, parts.value, rtol=1e-12)


def test_qb_norm_without_a_bank_is_our_mistake() -> None:
    params = EvaluateParams(post_processing=("qb_norm",))
    with pytest.raises(ValueError, match="without a bank"):
        adjusted(Rows(cosines()), (Q, V), params, None, BOTH)


def test_unknown_options_and_impossible_settings_are_refused_in_one_sentence() -> None:
    def refused(**settings: Any) -> str:
        with pytest.raises(UserError) as error:
            fill(EvaluateParams, settings, "evaluate")
        return str(error.value)

    assert "'dual_softmax', 'qb_norm' or 'sinkhorn'" in refused(post_processing=["dsl"])
    assert "unknown setting evaluate.qb_norm.beat; did you mean 'beta'" in refused(qb_norm={"beat": 1})
    assert "rerank leaves most pairs" in refused(post_processing=["sinkhorn"], rerank=5)
    assert "the bank of qb_norm is the split 'train'" in refused(post_processing=["qb_norm"], split="train")
    assert "sinkhorn.iterations" in refused(sinkhorn={"iterations": 0})


def test_fingerprints_change_only_by_what_is_asked_for() -> None:
    def decided(**settings: Any) -> dict[str, Any]:
        return fill(EvaluateParams, settings, "evaluate").decisive()

    plain = {"split": "test", "directions": "auto", "seed": 0, "rerank": 0, "v2t_rank": "auto"}
    assert decided() == decided(qb_norm={"k": 5}, sinkhorn={"beta": 3}) == plain
    sink = decided(post_processing=["sinkhorn"])
    assert sink == plain | {"post_processing": ["sinkhorn"], "sinkhorn": {"beta": 100.0, "iterations": 10}}
    assert decided(post_processing=["sinkhorn"], qb_norm={"k": 2}) == sink
    assert decided(post_processing=["sinkhorn"], sinkhorn={"beta": 2}) != sink
    two = decided(post_processing=["sinkhorn", "dual_softmax"])
    assert two == decided(post_processing=["dual_softmax", "sinkhorn", "sinkhorn"]) and two != sink


def test_only_qb_norm_needs_what_the_method_learned_from() -> None:
    def needs(**settings: Any) -> tuple[str, ...]:
        params = fill(EvaluateParams, settings, "evaluate")
        return tuple(stages_of(HLFORMER, HLFormerConfig(), params)[-1].needs)

    assert needs() == needs(post_processing=["sinkhorn", "dual_softmax"])
    assert needs() == ("train-hlformer", "pack-hlformer-test")
    assert needs(post_processing=["qb_norm"]) == ("train-hlformer", "pack-hlformer-test", "pack-hlformer")
    assert needs(post_processing=["qb_norm"], split="val") == ("train-hlformer", "pack-hlformer")
