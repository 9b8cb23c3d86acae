"""Features and first places of rankings as Parquet tables, for programs that cannot read the store.

Row groups are written as they fill, so memory holds one of them. pyarrow is an extra, `crossreel[parquet]`, and is
imported when a table is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flows.features import having_features
from flows.project import Project
from flows.results.method_results import MethodResults
from pipeline.errors import UserError
from pipeline.store.segments import Array
from pipeline.store.store import FeatureReader

GROUP_BYTES = 2**24  # bytes of features in a row group
GROUP_QUERIES = 4096  # captions in a row group of scores
ABOUT = b"crossreel"  # the key of the schema's metadata under which a table says what it is


def export_features(project: Project, stage: str, target: Path) -> tuple[Path, int]:
    """Write FOLDER/STAGE.parquet: one row for each item or caption with `id`, `digest`, and its rows of each output.

    An output (T, D) is a list of T lists of the fixed length D, in the type it is stored in; further axes are further
    fixed lists. Raises UserError where some are still to be made; those that failed are left out.
    """
    state = having_features(project, stage)
    if state.missing:
        raise UserError(
            f"{stage} lacks {len(state.missing)} of {len(state.keys)} {state.stage.over}; "
            f"run `crossreel stage {stage} {project.experiment.path}` first"
        )
    names = project.contents_of(state).names(state.stage.over)
    kept = {name: key for name, key in names.items() if key in state.places}
    if not kept:
        raise UserError(f"{stage} has made nothing that could be exported")
    reader, fields = project.store.reader(stage, state.fingerprint.hex), list(state.stage.fields)
    about = {"stage": stage, "fingerprint": state.fingerprint.hex, "over": state.stage.over}
    path = target / f"{stage}.parquet"
    _write(path, _feature_groups(kept, reader, fields), about)
    return path, len(kept)


def _feature_groups(
    kept: Mapping[str, str], reader: FeatureReader, fields: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield columns of the items of each row group."""
    ids: list[str] = []
    held: dict[str, list[Array]] = {name: [] for name in fields}
    size = 0
    for name in kept:
        ids.append(name)
        for field in fields:
            held[field].append(np.asarray(reader.rows(kept[name], field, check=True)))
            size += held[field][-1].nbytes
        if size >= GROUP_BYTES:
            yield _feature_columns(ids, kept, held)
            ids, held, size = [], {field: [] for field in fields}, 0
    if ids:
        yield _feature_columns(ids, kept, held)


def _feature_columns(
    ids: list[str], kept: Mapping[str, str], held: Mapping[str, list[Array]]
) -> dict[str, Any]:
    digests = [kept[name] for name in ids]
    return {"id": ids, "digest": digests} | {name: _nested(arrays) for name, arrays in held.items()}


def _nested(arrays: Sequence[Array]) -> Any:
    """Arrays (T_i, D, ...) as one column: lists of T_i fixed lists, from one concatenated copy of the rows."""
    pa, _ = _arrow()
    column = pa.array(np.concatenate([array.reshape(-1) for array in arrays]))
    for width in reversed(arrays[0].shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, width)
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])])
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), column)


def export_scores(one: MethodResults, path: Path) -> int:
    """Write the first results of each caption of an evaluated split, one row each; return the number of rows.

    query_id and item_id are ids of the corpus, query and item digests; `rank` counts from 1, equal scores in gallery
    order; `right` says whether the item is right for the caption. Scores of other pairs are not stored.
    """
    top_items = one.evaluated.ranking.top_items
    about = {
        "method": one.method, "fingerprint": one.evaluation.fingerprint.hex,
        "protocol": one.evaluated.metrics.protocol.as_json(), "places": int(top_items.shape[1]),
    }  # fmt: skip
    _write(path, _score_groups(one), about)
    return int(top_items.size)


def _score_groups(one: MethodResults) -> Iterator[dict[str, Any]]:
    """Columns of the results of a group of captions, one place after another."""
    pa, _ = _arrow()
    queries, ranking = one.evaluated.queries, one.evaluated.ranking
    items, scores = ranking.top_items, ranking.top_scores
    places, right = items.shape[1], queries.positives
    item_ids, digests = np.array(one.item_ids, object), np.array(queries.items, object)
    caption_ids = one.caption_ids
    for first in range(0, len(items), GROUP_QUERIES):
        some = slice(first, first + GROUP_QUERIES)
        flat = items[some].reshape(-1)
        hits = [
            item in found
            for found, row in zip(right[some], items[some].tolist(), strict=True)
            for item in row
        ]
        yield {
            "query_id": _each(caption_ids[some], places),
            "query": _each(queries.captions[some], places),
            "text": _each(queries.texts[some], places),
            "rank": pa.array(np.tile(np.arange(1, places + 1, dtype=np.int32), len(items[some]))),
            "item_id": item_ids[flat].tolist(),
            "item": digests[flat].tolist(),
            "score": pa.array(scores[some].reshape(-1)),
            "right": hits,
        }


def _each(values: Sequence[str], times: int) -> list[str]:
    return [value for value in values for _ in range(times)]


def _write(path: Path, groups: Iterator[dict[str, Any]], about: Mapping[str, Any]) -> None:
    """Write a table under a temporary name and rename it; the first group defines the schema, which holds `about`."""
    pa, parquet = _arrow()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    first = pa.table(next(groups))
    schema = first.schema.with_metadata({ABOUT: json.dumps(about).encode()})
    try:
        with parquet.ParquetWriter(aside, schema) as out:
            out.write_table(first.replace_schema_metadata(schema.metadata))
            for columns in groups:
                out.write_table(pa.table(columns, schema=schema))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _arrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet. Raises UserError if they are not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UserError(
            "Parquet is written by pyarrow, which is not installed: pip install 'crossreel[parquet]'"
        ) from None
    return pyarrow, parquet
