"""The demo's point clouds: the same from their seed, without leaks, and each caption true of its object."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus.importers.demo import objects
from pipeline.corpus.importers.demo.clouds import PLY, scan
from pipeline.corpus.importers.demo.objects import RELATIONS, SHAPE_WORDS, SURFACES, Object, Solid
from pipeline.errors import UserError

ITEMS = 12


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def test_the_same_seed_gives_the_same_bytes_in_another_folder(tmp_path: Path) -> None:
    scan(tmp_path / "a", items=ITEMS)
    scan(tmp_path / "b", items=ITEMS)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_a_cloud_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    manifest = scan(tmp_path, items=ITEMS)
    first = tmp_path / json.loads(manifest.read_text().splitlines()[0])["media"]
    first.write_bytes(b"kept")
    scan(tmp_path, items=ITEMS)
    assert first.read_bytes() == b"kept"


def test_no_two_clouds_show_the_same_thing() -> None:
    shown = [
        (o.first.colour, o.first.shape, o.relation, o.second.colour, o.second.shape)
        for o in objects.draw(500, 0)
    ]
    assert len(set(shown)) == len(shown)


def test_a_larger_corpus_begins_with_the_objects_of_a_smaller_one() -> None:
    assert objects.draw(40, seed=0)[:15] == objects.draw(15, seed=0)


@pytest.mark.parametrize("shape", SURFACES)
def test_a_surface_is_a_body_of_half_height_one(shape: str) -> None:
    points = SURFACES[shape](np.random.default_rng(0), 4000)
    assert points.shape == (4000, 3)
    assert np.abs(points).max() <= 1 + 1e-9
    assert points[:, 2].max() > 0.9 and points[:, 2].min() < -0.9


@pytest.mark.parametrize("relation", RELATIONS)
def test_solids_stand_as_the_caption_says(relation: str) -> None:
    red, blue = Solid("red", "ball", large=True), Solid("blue", "box", large=False)
    xyz, rgb = objects.cloud(Object(red, relation, blue, turn=0.3), seed=1)
    first, second = (xyz[rgb[:, channel] > 150] for channel in (0, 2))
    assert len(first) + len(second) == objects.POINTS
    gap = first[:, 2].min() - second[:, 2].max()
    lowest, noise = second[:, 2].min(), 6 * objects.NOISE
    assert abs(lowest) < noise
    if relation == "beside":
        assert abs(first[:, 2].min()) < 2 * noise
        assert np.linalg.norm((first.mean(0) - second.mean(0))[:2]) > 0.8
    else:
        assert gap == pytest.approx(objects.GAP if relation == "above" else 0, abs=2 * noise)


def test_a_caption_names_both_solids_by_shape(tmp_path: Path) -> None:
    for found in objects.draw(50, 3):
        said = objects.caption(found, random.Random(0))
        for solid in (found.first, found.second):
            assert any(word in said for word in SHAPE_WORDS[solid.shape])


def test_the_file_is_ply_as_others_write_it(tmp_path: Path) -> None:
    manifest = scan(tmp_path, items=ITEMS)
    raw = (tmp_path / json.loads(manifest.read_text().splitlines()[0])["media"]).read_bytes()
    head = PLY.format(count=objects.POINTS).encode()
    assert raw.startswith(head)
    assert len(raw) == len(head) + 15 * objects.POINTS


def test_more_objects_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="items = 100000 is not possible"):
        scan(tmp_path, items=100_000)
