"""Real furniture shapes with template captions, from the example's script to a report that shows them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared/data"
WEIGHTS = DATA / "weights/dgcnn_semseg_s3dis_area6.t7"
SHAPES = 150
CAPTIONS = 5  # of each
EXPERIMENT = f"""
corpus = "shapes/corpus.jsonl"
methods = ["h2arn"]

[extractors.points]
sample = 500
colour_scale = "unit"

[extractors.dgcnn]
weights = "{WEIGHTS}"

[extractors.clip_text]
model = "crossreel-demo"
weights = "seed:0"

[trainers.h2arn]
mask_padding = true
d_model = 32
nhead = 4
num_layers = 1
batch_size = 64
epochs = 10

[run]
workers = 1
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(
        not (DATA / "shapes/points.npz").exists() or not WEIGHTS.exists(),
        reason=f"the shapes or the weights of DGCNN are not in {DATA}",
    ),
]


@pytest.fixture
def furniture(small):
    """A folder with the corpus of some shapes and an experiment; one cloud of the test split is broken."""
    made = subprocess.run(
        [sys.executable, ROOT / "examples/shapes.py", DATA / "shapes", "shapes", "--shapes", str(SHAPES)],
        cwd=small.folder, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    small.experiment(EXPERIMENT)
    return small


def items(furniture) -> list[dict]:
    lines = (furniture.folder / "shapes/corpus.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_name_is_in_one_split_and_its_captions_name_all_shapes_of_it(furniture):
    found = items(furniture)
    assert SHAPES <= len(found) < SHAPES + 20
    splits, ids = {}, {}
    for item in found:
        splits.setdefault(item["meta"]["name"].lower(), set()).add(item["split"])
        ids.setdefault(item["meta"]["name"].lower(), set()).add(item["id"])
    assert all(len(of_one) == 1 for of_one in splits.values()) and max(map(len, ids.values())) > 1
    for item in found:
        for caption in item["captions"]:
            assert {item["id"], *caption.get("also", ())} == ids[item["meta"]["name"].lower()]


def test_h2arn_learns_real_shapes_without_a_broken_one_and_the_report_shows_them(furniture):
    tested = [item for item in items(furniture) if item["split"] == "test"]
    broken, *whole = tested
    with (furniture.folder / "shapes" / broken["media"]).open("r+b") as file:
        file.truncate(2000)
    ended = furniture.run("run", furniture.toml, "--json", seconds=600)
    assert ended.code == 3, ended.err  # something failed, and was told
    told = json.loads(ended.out)
    reports = {report["stage"]: report for report in told["stages"]}
    assert [failure["name"] for failure in reports["points"]["failures"]] == [broken["id"]]
    assert reports["dgcnn"]["ran"] == len(items(furniture)) - 1 and reports["dgcnn"]["failed"] == 0

    figures = {row["direction"]: row for row in told["leaderboard"]}
    texts, clouds = figures["t2v"], figures["v2t"]  # the names of the directions, whatever the items
    assert texts["gallery"] == clouds["queries"] == len(whole)
    assert texts["queries"] == clouds["gallery"] == CAPTIONS * len(whole)
    chance = sum(row["chance"][f"R@{k}"] for row in (texts, clouds) for k in (1, 5, 10))
    found = figures["both"]["metrics"]["RSUM"]  # drawn by shapes: captions of one are no independent queries
    assert found["low"] > chance

    page = Path(told["report"]).read_text(encoding="utf-8")
    around = "from 30, 120, 210, 300 degrees around it"
    shown = [item["id"] for item in whole if f"4 views of {item['id']}, {around}" in page]
    assert len(shown) >= 5 and page.count("data:image/jpeg;base64,") >= 4 * len(shown)
    assert broken["id"] in page
