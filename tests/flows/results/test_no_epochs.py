"""Training of no epochs, the road of an authors' checkpoint: every page works for every method."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.graph import METHODS
from flows.project import open_project
from flows.results.method_results import method_results
from flows.serve.catalogue import read_searchable
from pipeline.corpus.importers.demo.clouds import scan
from pipeline.corpus.manifest import Caption, Item, write_manifest

pytestmark = pytest.mark.slow

SPLITS = ("train", "train", "val", "test")
EXPERIMENTS = Path(__file__).parents[2] / "fixtures/experiments"
VIDEOS = f"""
corpus = "corpus.jsonl"
methods = ["clip4clip", "hlformer", "neighborretr", "gare", "lean"]

{(EXPERIMENTS / "demo_networks.toml").read_text()}
[trainers.clip4clip]
mode = "frozen"
max_frames = 3
epochs = 0
[trainers.hlformer]
hidden_size = 16
heads = 2
lorentz_dim = 11
blocks = 2
map_size = 4
max_ctx_l = 8
epochs = 0
[trainers.neighborretr]
mode = "frozen"
max_frames = 3
max_words = 12
temporal_layers = 1
num_neighbors = 2
bank_size = 12
epochs = 0
[trainers.gare]
mode = "frozen"
max_frames = 3
num_hidden_layers = 1
epochs = 0
[trainers.lean]
hidden = 16
latent = 16
attention_hidden = 8
epochs = 0
[run]
workers = 1
"""
CLOUDS = (EXPERIMENTS / "clouds.toml").read_text().replace("epochs = 1", "epochs = 0")


@pytest.fixture(scope="session")
def untrained(
    rendered: Path, tmp_path_factory: pytest.TempPathFactory, called: Callable[..., str]
) -> Callable[[str], Path]:
    """`untrained(method)` is an experiment that was run up to its report; made once for all methods of a kind."""
    made: dict[str, Path] = {}

    def videos(folder: Path) -> None:
        clips = sorted(rendered.glob("*.mp4"))[:8]
        for clip in clips:
            shutil.copy(clip, folder)
        items = [
            Item(
                clip.stem, SPLITS[n % 4], (Caption(f"{clip.stem}#0", f"a clip of the colour {n}"),), clip.name
            )
            for n, clip in enumerate(clips)
        ]
        write_manifest(folder / "corpus.jsonl", items)

    def make(method: str) -> Path:
        kind = METHODS.find(method).config.kind
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            videos(folder) if kind == "video" else scan(folder, items=12)
            path = folder / "experiment.toml"
            path.write_text(VIDEOS if kind == "video" else CLOUDS)
            (folder / "printed.txt").write_text(called("stage", "report", path))
            made[kind] = path
        return made[kind]

    return make


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS.names())
def test_every_page_of_an_untrained_method_works(
    untrained: Callable[[str], Path], called: Callable[..., str], tmp_path: Path, method: str
) -> None:
    experiment = untrained(method)
    one = method_results(open_project(experiment), method)
    folder, metrics = one.trained, one.evaluated.metrics
    assert folder.history == () and not folder.tensorboard.exists()
    assert (folder.summary.epochs, folder.summary.best_epoch, folder.summary.validation) == (0, 0, {})
    assert folder.summary.parameters > 0 and folder.weights.is_file()

    assert f"{method} " in (experiment.parent / "printed.txt").read_text()  # the leaderboard
    page = Path(called("report", experiment).strip().splitlines()[-1]).read_text(encoding="utf-8")
    training = page.split('id="h-training"')[1].split(f"<h3>{method}</h3>")[1].split("<h3>")[0]
    assert "It was not trained here: what was measured are the weights it started from" in training
    assert "<svg" not in training.split("</section>")[0]
    assert f">{metrics.estimates['t2v']['R@1'].value:.1f}</data>" in page

    pair = json.loads(called("compare", method, method, "--experiment", experiment, "--json"))
    assert pair["runs"][0]["protocol"] == metrics.protocol.as_json()
    board = json.loads(called("board", experiment, "--method", method, "--json"))
    (line,) = [line for section in board for line in section["lines"] if line["origin"] == "ours"]
    assert line["figures"]["t2v"]["MRR"] == metrics.estimates["t2v"]["MRR"].value

    called("export", "card", tmp_path / "card", experiment, "--method", method)
    card = (tmp_path / "card" / "README.md").read_text(encoding="utf-8")
    assert "- epochs: none; the weights are the random ones that training would have begun with" in card
    assert f"- parameters: {folder.summary.parameters:,}" in card and "best by the split val" not in card
    called("export", "results", tmp_path / "mteb", experiment)
    assert list((tmp_path / f"mteb/crossreel__{method}").rglob("*.json"))

    found: dict[str, Any] = json.loads(
        called("search", "a red ball", experiment, "--method", method, "--json")
    )
    assert found["method"] == method and len(found["hits"]) == metrics.protocol.items
    (listed,) = [each for each in read_searchable(one.project, [], {})[0] if each.name == method]
    assert listed.splits == ("test",) and not listed.missing

    sweep = tmp_path / "sweep.toml"
    sweep.write_text(f'experiment = "{experiment}"\n[[points]]\n"trainers.{method}.epochs" = 0\n')
    (outcome,) = [each for each in json.loads(called("batch", sweep, "--json")) if each["method"] == method]
    assert outcome["validation"] is None and outcome["figures"]["t2v"]["R@1"] == vars(
        metrics.estimates["t2v"]["R@1"]
    )
    printed = called("batch", sweep)
    assert "inf" not in printed and "nan" not in printed


def test_an_imported_checkpoint_is_evaluated_to_the_last_page(
    experiment: Path, called: Callable[..., str], tmp_path: Path
) -> None:
    """The lines of examples/authors-checkpoint.toml, on the features that the repository has."""
    checkpoint, imported = tmp_path / "theirs.ckpt", tmp_path / "imported"
    called("export", "checkpoint", checkpoint, experiment)
    called("import", "checkpoint", checkpoint, imported)
    folder = shutil.copytree(experiment.parent, tmp_path / "experiment")
    sets = ("--set", f"trainers.hlformer.weights={imported}", "--set", "trainers.hlformer.epochs=0")
    called("stage", "report", folder / "experiment.toml", *sets)
    page = Path(called("report", folder / "experiment.toml", *sets).strip().splitlines()[-1])
    assert "It was not trained here" in page.read_text(encoding="utf-8")
    called("export", "card", tmp_path / "card", folder / "experiment.toml", *sets)
    card = (tmp_path / "card" / "README.md").read_text(encoding="utf-8")
    assert (
        "- epochs: none; the weights are those of a checkpoint that was imported, with the digest `" in card
    )
    trained, start = (
        method_results(open_project(folder / "experiment.toml", some), "hlformer").evaluated.metrics
        for some in ([], [sets[1], sets[3]])
    )
    assert start.estimates == trained.estimates
