"""The check that a version was not forgotten: what it notices, what it overlooks on purpose, what it records."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extractors.base import Extractor
from flows.graph import EXTRACTORS
from flows.reporting import Report
from flows.search.index import Index
from pipeline.features.imported import Imported
from pipeline.run.stage import Stage
from trainers.registry import BUILT_IN, METHODS
from trainers.stages import Evaluate, Pack, Train

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "versions.py"


def loaded() -> Any:
    spec = importlib.util.spec_from_file_location("versions", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["versions"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


versions = loaded()
NOTHING: dict[str, Any] = {"units": {}, "symbols": {}}
Change = Callable[[str, str, str], None]


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """The state of the repository as it is."""
    found: dict[str, Any] = versions.record(versions.read(ROOT), NOTHING)
    return found


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The source files of the repository."""
    for floor in versions.FLOORS:
        keep = shutil.ignore_patterns("__pycache__", "static", "models", "templates")
        shutil.copytree(ROOT / floor, tmp_path / floor, ignore=keep)
    return tmp_path


@pytest.fixture
def change(copy: Path) -> Change:
    """Replaces some text of a source file that has it once."""

    def replace(path: str, old: str, new: str) -> None:
        text = (copy / path).read_text(encoding="utf-8")
        assert text.count(old) == 1, (path, old)
        (copy / path).write_text(text.replace(old, new), encoding="utf-8")

    return replace


@pytest.mark.slow
def test_every_stage_and_method_is_checked_with_the_version_it_has(recorded: dict[str, Any]) -> None:
    expected: dict[str, int] = {kind.name: kind.version for kind in EXTRACTORS}
    expected |= {name: METHODS.find(name).version for name in BUILT_IN}
    expected |= {"pack": Pack.version, "train": Train.version, "evaluate": Evaluate.version}
    expected |= {"import": Imported.version, "index": Index.version, "report": Report.version}
    assert {name: unit["version"] for name, unit in recorded["units"].items()} == expected

    def concrete(kind: type) -> set[type]:
        return {kind, *(inner for sub in kind.__subclasses__() for inner in concrete(sub))}

    ours = {k for k in concrete(Stage) if k.__module__.split(".")[0] in versions.FLOORS and "name" in vars(k)}
    assert {k for k in ours if issubclass(k, Extractor)} == set(EXTRACTORS)
    stages = {k for k in Stage.__subclasses__() if k.__module__.split(".")[0] in versions.FLOORS}
    assert stages == {Extractor, Imported, Pack, Train, Evaluate, Index, Report}


@pytest.mark.slow
def test_a_changed_number_is_noticed_wherever_it_is_and_by_whom_it_concerns(
    copy: Path, change: Change, recorded: dict[str, Any]
) -> None:
    change(
        "trainers/hlformer/losses.py", "return (angle - aperture).relu()", "return (aperture - angle).relu()"
    )
    # this network is imported inside of a function, where it is loaded
    change("extractors/backbones/vgg16.py", "class Vgg16Backbone:", "class Vgg16Backbone:\n    shift = 1\n")
    change("extractors/keyframes.py", "BINS = 32", "BINS = 16")
    change("trainers/layers/rand_augment.py", "class RandAugment:", "class RandAugment:\n    extra = 1\n")
    change("trainers/loop/engine.py", "self.optimizer.step()", "self.optimizer.step(None)")
    found = versions.complaints(versions.read(copy), recorded)
    assert {"hlformer", "keyframes", "vgg16", "gare", "neighborretr", "train"} <= set(found)
    assert found.keys().isdisjoint(
        {"compress", "frames", "clip", "points", "bert", "pack", "evaluate", "lean", "h2arn"}
    )
    assert found["keyframes"] == (
        "the code of keyframes changed (extractors.keyframes:BINS): raise the version of "
        "extractors.keyframes:Keyframes if it computes other numbers, or say that it does not with "
        "`make same-numbers STAGES=keyframes`"
    )
    assert "trainers.layers.rand_augment:RandAugment" in found["gare"]


def test_words_form_types_and_places_are_no_change(
    copy: Path, change: Change, recorded: dict[str, Any]
) -> None:
    change("trainers/hlformer/losses.py", "from __future__", "# a reason\nfrom __future__")
    change(
        "extractors/keyframes.py",
        "BINS = 32  # bins of the histogram of each channel",
        "BINS: int = (\n    32\n)",
    )
    change(
        "extractors/keyframes.py", '    """The key frames of the unit."""', '    """Whatever else it says."""'
    )
    change("extractors/keyframes.py", "count: int = Setting(10, ge=1)", "count: int = Setting(12, ge=1)")
    change("extractors/points.py", '{unit.name} has no media"', '{unit.name!r} lacks its media file"')
    moved = copy / "trainers/layers/augmentation.py"
    (copy / "trainers/layers/rand_augment_tensors.py").rename(moved)
    change(
        "trainers/layers/pair_data.py",
        "from trainers.layers.rand_augment_tensors",
        "from trainers.layers.augmentation",
    )
    assert versions.complaints(versions.read(copy), recorded) == {}


def test_a_raised_version_is_recorded_and_the_next_change_is_noticed_again(
    copy: Path, change: Change, recorded: dict[str, Any]
) -> None:
    change("extractors/keyframes.py", "BINS = 32", "BINS = 16")
    change("extractors/keyframes.py", 'name, version = "keyframes", 1', 'name, version = "keyframes", 2')
    now = versions.read(copy)
    assert versions.complaints(now, recorded) == {
        "keyframes": "the version of keyframes was raised from 1 to 2: record it with `make record-versions`"
    }
    again = versions.record(now, recorded)
    assert versions.complaints(now, again) == {} and again["units"]["keyframes"]["version"] == 2
    change("extractors/keyframes.py", "BINS = 16", "BINS = 8")
    assert set(versions.complaints(versions.read(copy), again)) == {"keyframes"}
    change("extractors/keyframes.py", '"keyframes", 2', '"keyframes", 1')
    assert "went down from 2 to 1" in versions.complaints(versions.read(copy), again)["keyframes"]


@pytest.mark.slow
def test_recording_keeps_what_changed_without_a_version_and_same_numbers_settles_it(
    copy: Path, change: Change, recorded: dict[str, Any]
) -> None:
    (copy / ".ci").mkdir()
    record = copy / ".ci/versions.json"
    record.write_text(json.dumps(recorded))
    change("extractors/keyframes.py", "BINS = 32", "BINS = 16")
    root = ["--root", str(copy)]
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *root], capture_output=True, text=True, check=False, cwd=copy
    )
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert "the code of keyframes changed" in ended.stderr and "extractors.keyframes:BINS" in ended.stderr
    assert versions.main([*root, "--record"]) == 1
    assert versions.main([*root, "--same-numbers", "keyfrmes"]) == 2
    assert versions.main([*root, "--same-numbers", "keyframes"]) == 0
    assert json.loads(record.read_text()) != recorded
    change("extractors/vgg16.py", "layer: Literal", "layer2: Literal")  # a field of settings alone
    assert versions.main(root) == 0
