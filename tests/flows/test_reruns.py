"""Every setting of every method, extractor and evaluation is changed, and exactly what it decides is made again."""

from __future__ import annotations

import json
import shutil
import typing
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from extractors.backbones.parsers import SHIPPED_FOLDER
from flows import graph
from flows.experiment import Experiment
from pipeline.media import video
from pipeline.run import plan
from pipeline.settings import Params
from pipeline.store.fingerprint import Fingerprint, digest_file
from trainers.registry import BUILT_IN, METHODS
from trainers.stages import EvaluateParams

PACK, TRAIN, EVALUATE, NOTHING = ("pack", "train", "evaluate"), ("train", "evaluate"), ("evaluate",), ()
Reruns = tuple[str, ...]

SEEDED: dict[str, dict[str, Any]] = {  # what lets every stage say what decides it, without published weights
    "clip": {"model": "crossreel-demo", "weights": "seed:0"},
    "clip_text": {"model": "crossreel-demo", "weights": "seed:0"},
    "vgg16": {"weights": "seed:0"},
    "bert": {"model": "crossreel-demo", "weights": "seed:0"},
    "triples": {"package": "crossreel-small"},
    "dgcnn": {"weights": "seed:0"},
    "pointnet": {"weights": "seed:0"},
    "pointnet2": {"weights": "seed:0"},
}
PAIR = {"backbone_weights": "seed:0"}
PAIRS = ("clip4clip", "gare", "neighborretr")
SETTINGS: dict[str, dict[str, Any]] = dict.fromkeys(PAIRS, PAIR)

# What reruns for each setting that does not stand here is training and evaluation; a method that does not stand here
# packs again for its features alone.
FEATURES = {"text_features", "video_features"}
PACKED: dict[str, set[str]] = {
    "hlformer": {"text_features", "video_features", "map_size", "max_ctx_l", "max_desc_l"},
    "gare": {"mode", "max_words", "max_frames", "video_framerate", "frame_select"},
    "neighborretr": {"mode", "max_words", "max_frames", "video_framerate", "frame_select"},
    "lean": {
        "text_features", "video_features", "keyframes", "triples", "nodes", "frames", "top", "max_triples",
    },
    "h2arn": {"text_features", "cloud_features", "mask_padding"},
}  # fmt: skip
PACKED["gare"] |= {"text_features", "video_features"}
PACKED["neighborretr"] |= {"text_features", "video_features"}
PACKED["clip4clip"] = PACKED["gare"]
SPEED: dict[str, set[str]] = {
    "hlformer": {"item_batch", "text_batch"},
    "clip4clip": {"batch_size_val", "backbone_download"},
    "gare": {"batch_size_val", "backbone_download"},
    "neighborretr": {"batch_size_val", "backbone_download"},
    "lean": {"item_batch"},
    "h2arn": {"eval_batch"},
}
FILLS = {"recipe", "trajectory"}  # the settings that they fill count, not their names
OTHER: dict[str, dict[str, Any]] = {  # values that a rule cannot find
    "": {"text_features": "bert", "video_features": "frames", "recipe": "none"},
    "hlformer": {"hidden_size": 768, "lorentz_dim": 255},
    "clip4clip": {"base_encoder": "ViT-B/16", "backbone_weights": "seed:1"},
    "gare": {"base_encoder": "ViT-B/16", "backbone_weights": "seed:1", "agg_module": "seqLSTM"},
    "neighborretr": {
        "base_encoder": "ViT-B/16", "backbone_weights": "seed:1",
        "text_ratios": (0.5, 0.5), "video_ratios": (0.5, 0.5),
    },
    "lean": {"text_features": "clip_text", "keyframes": "", "triples": "bert", "without": ("visual",)},
    "h2arn": {"cloud_features": "pointnet", "geometry": ("euclidean", {"loss_lambda": 0.0})},
    "bert": {"layers": (-1, -2)},
    "points": {"columns": "x y z"},
    "triples": {"server": "http://localhost:9001"},
}  # fmt: skip


class Disk:
    """Digests of files, each of which is read once."""

    def __init__(self) -> None:
        self.file = cache(digest_file)

    def located(self, name: str, find: Callable[[], Path | None]) -> Path | None:
        return find()


DISK = Disk()


def fingerprints(experiment: Experiment) -> dict[str, Fingerprint]:
    """The fingerprint of every stage of an experiment, of any corpus."""
    states: dict[str, Any] = {}
    stages = graph.build(experiment, {})
    for name in plan.order(stages):
        parts = plan.components(stages[name], states, DISK)
        states[name] = SimpleNamespace(fingerprint=Fingerprint.of(parts))
    return {name: state.fingerprint for name, state in states.items()}


def experiment(**tables: Any) -> Experiment:
    extractors = {**SEEDED, **tables.pop("extractors", {})}
    return Experiment(corpus="corpus.jsonl", extractors=extractors, path=Path("/none/exp.toml"), **tables)


def candidates(annotation: Any, value: Any) -> Iterator[Any]:
    """Other values of a type, nearest first."""
    if typing.get_origin(annotation) is typing.Literal:
        yield from (choice for choice in typing.get_args(annotation) if choice != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value + 2, 2 * value, value - 1, value // 2)
    elif isinstance(value, float):
        yield from (value / 2, value * 2, value + 0.25)
    elif value is None:
        yield from (2.0, 2)


def another(model: type[Params], name: str, owner: str, base: dict[str, Any]) -> dict[str, Any]:
    """The settings `base` with another valid value of one, and with what that value needs."""
    own = OTHER.get(owner, {})
    if name in own or name in OTHER[""]:
        value = own.get(name, OTHER[""].get(name))
        value, more = value if isinstance(value, tuple) and isinstance(value[-1], dict) else (value, {})
        return {**base, name: value, **more}
    current = getattr(model(**base), name)
    for value in candidates(model.model_fields[name].annotation, current):
        try:
            if getattr(model(**{**base, name: value}), name) != current:
                return {**base, name: value}
        except ValidationError:
            continue
    raise AssertionError(f"no other value of {owner}.{name} is known; add one to OTHER")


def fields() -> Iterator[Any]:
    for method in BUILT_IN:
        for name in METHODS.find(method).config.model_fields:
            yield pytest.param(method, name, id=f"{method}.{name}")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights to start from."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "weights.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize(("method", "name"), fields())
def test_a_changed_setting_of_a_method_makes_exactly_what_it_decides_again(
    method: str, name: str, start: Path
) -> None:
    model, base = METHODS.find(method).config, SETTINGS.get(method, {})
    if name == "weights":
        changed = {**base, "weights": str(start)}
    else:
        changed = another(model, name, method, base)
    if name in ("text_features", "video_features") and method in PAIRS:
        base, changed = {**base, "mode": "frozen"}, {**changed, "mode": "frozen"}
    if name == "geometry":
        base = {**base, "loss_lambda": 0.0}
    before = fingerprints(experiment(methods=[method], trainers={method: base}))
    after = fingerprints(experiment(methods=[method], trainers={method: changed}))
    packs = PACKED.get(method, FEATURES)
    expected = PACK if name in packs else NOTHING if name in SPEED.get(method, set()) | FILLS else TRAIN
    names = {"pack": (f"pack-{method}", f"pack-{method}-test")} | {
        part: (f"{part}-{method}",) for part in TRAIN
    }
    rerun = tuple(part for part, own in names.items() if all(before[s].hex != after[s].hex for s in own))
    assert rerun == expected
    kept = tuple(part for part, own in names.items() if all(before[s].hex == after[s].hex for s in own))
    assert set(rerun) | set(kept) == set(PACK)  # both packed inputs, or neither
    # the arrays themselves are decided by the setting, not only what they are made of
    packed = {n for n, value in changed.items() if base.get(n) != value} & packs
    assert packed <= before[f"pack-{method}"].components["params"].keys()


EVALUATION: dict[str, Reruns] = {"memory_mb": NOTHING}
OPTIONS = {"dual_softmax": {"beta": 50.0}, "qb_norm": {"k": 2}, "sinkhorn": {"iterations": 3}}


@pytest.mark.parametrize("name", EvaluateParams.model_fields)
def test_a_changed_setting_of_the_evaluation_evaluates_again_and_nothing_else(name: str) -> None:
    base: dict[str, Any] = {"post_processing": [name]} if name in OPTIONS else {}
    values = {"split": "val", "post_processing": ["sinkhorn"], **OPTIONS}
    changed = (
        {**base, name: values[name]} if name in values else another(EvaluateParams, name, "", {"rerank": 0})
    )
    before = fingerprints(experiment(methods=["hlformer"], evaluate=base))
    after = fingerprints(experiment(methods=["hlformer"], evaluate=changed))
    common = before.keys() & after.keys()  # the packed test split goes where another one is measured
    rerun = {stage for stage in common if before[stage].hex != after[stage].hex}
    assert rerun == (set() if name == "memory_mb" else {"evaluate-hlformer", "report"})


UNCOUNTED = {
    "clip": {"download"},
    "clip_text": {"download"},
    "vgg16": {"download"},
    "bert": {"download"},
    "triples": {"download", "server", "timeout_seconds"},
}


def settings() -> Iterator[Any]:
    for kind in graph.EXTRACTORS:
        for name, setting in kind.settings.model_fields.items():
            if (
                len(typing.get_args(setting.annotation)) == 1
            ):  # it has one possible value, such as precision = "fp32"
                continue
            yield pytest.param(kind, name, id=f"{kind.name}.{name}")


@pytest.mark.parametrize(("kind", "name"), settings())
def test_a_changed_setting_of_an_extractor_extracts_again_unless_it_only_changes_speed(
    kind: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        video, "version", lambda package: "1"
    )  # a decoder that is an extra may not be installed
    base = SEEDED.get(kind.name, {})
    if (kind.name, name) == ("triples", "package"):  # other models, in a folder
        shutil.copytree(SHIPPED_FOLDER, tmp_path / "models")
        (tmp_path / "models/en/pos/small.pt").write_bytes(b"another tagger")
        changed = {**base, name: str(tmp_path / "models")}
    elif (kind.name, name) == ("bert", "model"):
        shutil.copytree(
            Path(graph.__file__).parents[1] / "extractors/backbones/models/crossreel-demo", tmp_path / "m"
        )
        described = json.loads((tmp_path / "m/config.json").read_text())
        (tmp_path / "m/config.json").write_text(json.dumps({**described, "hidden_act": "relu"}))
        changed = {**base, name: str(tmp_path / "m")}
    elif name == "model" and kind.name in ("clip", "clip_text"):
        changed = {**base, name: "ViT-B-16"}
    elif name == "weights":
        changed = {**base, name: "seed:1"}
    elif (kind.name, name) == ("clip_text", "padding"):
        base, changed = {**base, "pad": True}, {**base, "pad": True, "padding": "masked"}
    else:
        changed = another(kind.settings, name, kind.name, base)
    before = fingerprints(experiment(extract=[kind.name], extractors={kind.name: base}))
    after = fingerprints(experiment(extract=[kind.name], extractors={kind.name: changed}))
    counts = name not in UNCOUNTED.get(kind.name, set())
    assert (before[kind.name].hex != after[kind.name].hex) == counts
