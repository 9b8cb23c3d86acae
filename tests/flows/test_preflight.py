"""What would stop a run is said before anything is made, for all stages at once."""

from __future__ import annotations

import math
from contextlib import closing

import numpy as np
import pytest
from safetensors.numpy import save_file

from extractors.backbones import clip_configs
from extractors.clip import Clip
from flows.preflight import find_problems, require_possible
from flows.project import open_project
from pipeline.errors import UserError
from trainers.config import TrainingSizes
from trainers.gare.config import GareConfig
from trainers.hlformer.config import HLFormerConfig
from trainers.neighborretr.config import NeighborRetrConfig

METHODS = '["hlformer", "neighborretr", "gare"]'
TOO_MUCH = """
[trainers.neighborretr]
mode = "frozen"

[trainers.gare]
base_encoder = "crossreel-demo"
backbone_weights = "seed:0"
max_words = 100
max_frames = 90
"""


@pytest.fixture
def hopeless(lab):
    """Twelve training pairs, weights that do not fit, and methods that want more than there is."""
    save_file({"visual.proj": np.zeros((2, 2), np.float32)}, lab.folder / "other.safetensors")
    text = lab.toml.read_text().replace('"seed:0"', '"other.safetensors"').replace('["hlformer"]', METHODS)
    lab.experiment(text.replace("\n[run]", TOO_MUCH + "\n[run]"))
    return lab


def problems(lab, *sets, redo=()):
    project = open_project(lab.toml, sets)
    with closing(project.store.index):
        return find_problems(project, project.states(math.inf), list(project.stages), redo)


def test_everything_that_would_stop_a_run_is_one_list_by_settings(hopeless):
    path = hopeless.folder / "corpus.jsonl"
    path.write_text(path.read_text().replace("clip 3 seen", "word " * 40 + "seen"))
    found = {problem.sentence.split(" = ")[0]: problem for problem in problems(hopeless)}
    assert found.keys() == {
        "extractors.clip.weights", "extractors.clip_text.weights", "trainers.neighborretr.num_neighbors",
        "trainers.gare.max_words", "trainers.gare.max_frames",
    }  # fmt: skip
    assert "do not fit crossreel-demo" in found["extractors.clip.weights"].sentence
    neighbours = found["trainers.neighborretr.num_neighbors"].sentence
    assert "= 20: a batch of 12 pairs is too small for it, which takes 23" in neighbours
    assert "trainers.neighborretr.batch_size = 128" in neighbours and neighbours.endswith("lower it to 9")
    assert found["trainers.gare.max_words"].sentence.endswith("has positions for 32 tokens; lower it to 32")


@pytest.mark.parametrize("verb", ["plan", "stage"])
def test_a_command_that_would_stop_says_all_of_it_and_makes_nothing(hopeless, crossreel, verb):
    ended = crossreel(*((verb, "report") if verb == "stage" else (verb,)), hopeless.toml)
    assert ended.code == 2 and "4 things would stop this run:" in ended.err
    assert ended.err.rstrip().endswith("\n  --anyway begins all the same") and "Traceback" not in ended.err
    assert ("compress" in ended.out) is (verb == "plan")  # its table comes first
    if verb == "plan":
        ended = crossreel("plan", hopeless.toml, "--anyway")
        assert ended.code == 0 and "4 things would stop this run:" in ended.err
    assert not list((hopeless.store / "segments").glob("*"))


def test_a_run_begins_all_the_same_with_anyway(hopeless):
    project = open_project(hopeless.toml, ["run.anyway=true"])
    with closing(project.store.index):
        states = project.states(math.inf)
        assert len(require_possible(project, states, list(project.stages))) == 4
        with pytest.raises(UserError, match="no weights file"):  # its stages cannot be looked up
            missing = open_project(hopeless.toml, ["run.anyway=true", 'extractors.clip.weights="gone.pt"'])
            with closing(missing.store.index):
                require_possible(missing, missing.states(math.inf), list(missing.stages))


def test_a_missing_file_is_listed_with_everything_else(hopeless):
    found = problems(hopeless, 'extractors.clip.weights="gone.pt"')
    assert found[0].sentence.startswith("extractors.clip.weights = 'gone.pt': no weights file")
    assert any("num_neighbors" in problem.sentence for problem in found)


def test_what_is_made_already_needs_nothing(made, monkeypatch):
    def gone(self):
        raise UserError("the weights are gone")

    monkeypatch.setattr(Clip, "require", gone)
    assert problems(made) == []
    (found,) = problems(made, 'extractors.clip.weights="seed:1"')
    assert found.stage == "clip" and found.sentence.startswith("extractors.clip.weights = 'seed:1': ")


@pytest.mark.parametrize("there", [False, True])
def test_a_network_that_nobody_knows_is_said_before_by_its_setting(there, request):
    lab = request.getfixturevalue("made" if there else "lab")
    ended = lab.run("plan", lab.toml, "--set", "extractors.clip.model=ViT-Z")
    assert ended.code == 2
    assert (
        "extractors.clip.model = 'ViT-Z': unknown CLIP model 'ViT-Z'; did you mean" in ended.out + ended.err
    )


def test_a_gpu_that_is_not_there_is_said_before(lab, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (found,) = problems(lab, 'run.device="cuda"')
    assert found.sentence.startswith("run.device = 'cuda'")


@pytest.mark.parametrize(
    ("config", "sizes", "names"),
    [
        (NeighborRetrConfig(mode="frozen"), TrainingSizes(128, 10), []),
        (NeighborRetrConfig(mode="frozen"), TrainingSizes(23, 10), []),
        (NeighborRetrConfig(mode="frozen"), TrainingSizes(22, 10), ["num_neighbors"]),
        (NeighborRetrConfig(mode="frozen"), TrainingSizes(1, 1), ["batch_size", "num_neighbors"]),
        (NeighborRetrConfig(mode="frozen", epochs=0), TrainingSizes(1, 1), []),
        (HLFormerConfig(batch_size=3), TrainingSizes(100, 10, processes=4), ["batch_size"]),
        (GareConfig(max_frames=77, max_words=77), TrainingSizes(100, 10), []),
        (GareConfig(max_frames=78), TrainingSizes(100, 10), ["max_frames"]),
        (GareConfig(max_words=90), TrainingSizes(100, 10, words=75), []),
        (GareConfig(max_words=90), TrainingSizes(100, 10, words=76), ["max_words"]),
        (NeighborRetrConfig(max_words=90), TrainingSizes(128, 10), ["max_words"]),
        (GareConfig(max_frames=78, agg_module="None"), TrainingSizes(100, 10), []),
        (GareConfig(mode="frozen", max_words=90), TrainingSizes(100, 10), []),
    ],
)
def test_a_method_says_which_settings_the_corpus_leaves_no_room_for(config, sizes, names):
    assert [name for name, _ in config.unsuited(sizes)] == names


@pytest.mark.slow
def test_a_stage_is_made_without_the_packages_of_other_stages(lab, crossreel, monkeypatch):
    """The disk it needs is estimated from its own settings alone."""

    def missing() -> None:
        raise UserError("open_clip is not installed: pip install open_clip_torch")

    monkeypatch.setattr(clip_configs, "_open_clip_folder", missing)
    done = crossreel("stage", "compress", lab.toml)
    assert done.code == 0, done.err
