"""Extractors and methods of installed packages: found by name, imported when named, one sentence when broken."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from extractors.clip import Clip
from flows import doctor, graph
from flows.doctor import Finding
from flows.experiment import Experiment
from pipeline import plugins
from pipeline.errors import UserError
from trainers.registry import BUILT_IN, METHODS

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"
Install = Callable[..., None]

EXTRACTOR = """
from extractors.base import Extractor
from pipeline.settings import Params
class Loudness(Extractor[Params]):
    name, version, settings = "loudness", 3, Params
    needs = ("compress",)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(package, module text, methods={name: object}, extractors={name: object})` as pip would leave it."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(package: str, text: str, **groups: dict[str, str]) -> None:
        module = package.replace("-", "_")
        made.append(module)
        (tmp_path / f"{module}.py").write_text(text)
        info = tmp_path / f"{module}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        lines = [
            f"[crossreel.{group}]\n" + "".join(f"{name} = {module}:{of}\n" for name, of in offered.items())
            for group, offered in groups.items()
        ]
        (info / "entry_points.txt").write_text("".join(lines))
        plugins._offered.cache_clear()

    yield make
    plugins._offered.cache_clear()
    for module in made:
        sys.modules.pop(module, None)


def experiment(**settings: Any) -> Experiment:
    return Experiment(corpus="corpus.jsonl", path=Path("/none/exp.toml"), **settings)


def test_a_method_and_an_extractor_of_a_package_are_stages_like_any_other(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    objects = {"two_towers": "TWO_TOWERS"}, {"colour_histogram": "ColourHistogram"}
    text = (
        "from crossreel_colours.declaration import TWO_TOWERS\n"
        "from crossreel_colours.colour_histogram import ColourHistogram\n"
    )
    install("colours", text, methods=objects[0], extractors=objects[1])
    stages = graph.build(experiment(methods=["two_towers"], trainers={"two_towers": {"width": 8}}), {})
    assert list(stages) == [
        "compress", "clip_text", "colour_histogram", "pack-two_towers", "pack-two_towers-test", "train-two_towers",
        "evaluate-two_towers", "report",
    ]  # fmt: skip
    assert stages["train-two_towers"].params.width == 8
    assert stages["colour_histogram"].worker_kind == "cpu"
    with pytest.raises(
        UserError, match=r"unknown setting trainers\.two_towers\.widht; did you mean 'width'\?"
    ):
        graph.build(experiment(methods=["two_towers"], trainers={"two_towers": {"widht": 8}}), {})
    with pytest.raises(UserError, match=r"unknown name 'two_tower' in methods; did you mean 'two_towers'\?"):
        graph.build(experiment(methods=["two_tower"]), {})
    with pytest.raises(UserError, match=r"unknown name 'colour_histgram' in extract; did you mean 'colour_h"):
        graph.build(experiment(extract=["colour_histgram"]), {})


def test_an_extractor_of_a_package_brings_the_ones_it_needs(install: Install) -> None:
    install("sounds", EXTRACTOR, extractors={"loudness": "Loudness"})
    more = EXTRACTOR.replace("Loudness", "Beats").replace("loudness", "beats").replace("compress", "loudness")
    install("beats", more, extractors={"beats": "Beats"})
    assert list(graph.build(experiment(extract=["beats"]), {})) == ["compress", "loudness", "beats"]
    with pytest.raises(
        UserError, match="the extractor 'lost' needs a stage 'compres', which is not there; did you"
    ):
        text = EXTRACTOR.replace("loudness", "lost").replace("compress", "compres")
        install("lost", text, extractors={"lost": "Loudness"})
        graph.build(experiment(extract=["lost"]), {})
    install(
        "loop",
        EXTRACTOR.replace("loudness", "loop").replace("compress", "loop"),
        extractors={"loop": "Loudness"},
    )
    with pytest.raises(UserError, match="the extractor 'loop' needs itself: loop <- loop"):
        graph.build(experiment(extract=["loop"]), {})


def test_a_package_is_not_imported_before_one_of_its_names_is_used(install: Install) -> None:
    install("broken", "raise RuntimeError('imported')", methods={"wrong": "M"}, extractors={"odd": "E"})
    assert METHODS.names() == [*BUILT_IN, "wrong"]
    assert "odd" in graph.EVERY_EXTRACTOR.names()
    assert graph.build(experiment(methods=["hlformer"], extract=["compress"]), {})
    assert "broken" not in sys.modules


LEAN = "from trainers.lean.declaration import LeanMethod\nclass K(LeanMethod):\n  "
NOTHING = "from trainers.contract import RetrievalMethod\nclass K(RetrievalMethod):\n  "


@pytest.mark.parametrize(
    ("text", "name", "of", "words"),
    [
        ("import no_such_module", "odd", "M",
         "the method 'odd' of the package bad 1.5 (bad:M) cannot be used: its import ends with ModuleNotFoundError: "
         "No module named 'no_such_module'; mend or uninstall the package"),
        ("x = (", "odd", "M", "its import ends with SyntaxError: '(' was never closed (bad.py, line 1); mend"),
        ("", "odd", "M", "its import ends with AttributeError: module 'bad' has no attribute 'M'"),
        ("class M: pass", "odd", "M", "it is the class M, not an instance of trainers.contract.RetrievalMethod"),
        ("M = 5", "odd", "M", "it is a int, not an instance of trainers.contract.RetrievalMethod"),
        ("from trainers.lean.declaration import LEAN as M", "odd", "M",
         "it calls itself 'lean', and both names must be the same"),
        (NOTHING + "name = 'odd'\nM = K()", "odd", "M",
         "its import ends with TypeError: Can't instantiate abstract class K"),
        (LEAN + "name, version = 'odd', '2'\nM = K()",
         "odd", "M", "its version is '2', not a whole number of 1 or more"),
        (LEAN + "name, config = 'odd', dict\nM = K()",
         "odd", "M", "its config is not a subclass of trainers.config.MethodConfig"),
        (LEAN + "name = 'My-Method'\nM = K()",
         "My-Method", "M", "a name consists of lower-case letters, digits and underscores"),
        (LEAN + "name = 'report'\nM = K()",
         "report", "M", "'report' is the name of stages of crossreel"),
    ],
)  # fmt: skip
def test_a_broken_method_is_one_sentence_that_names_its_package(
    install: Install, text: str, name: str, of: str, words: str
) -> None:
    install("bad", text, methods={name: of})
    with pytest.raises(UserError) as raised:
        graph.build(experiment(methods=[name]), {})
    assert words in str(raised.value) and "\n" not in str(raised.value)
    assert "of the package bad 1.5" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("E = 1", "it is a int, not a subclass of extractors.base.Extractor"),
        (EXTRACTOR.replace('"loudness"', '"quiet"') + "E = Loudness", "it calls itself 'quiet'"),
        (EXTRACTOR.replace(", 3,", ", 0,") + "E = Loudness", "its version is 0, not a whole number of 1 or more"),
        (EXTRACTOR.replace("3, Params", "3, dict") + "E = Loudness", "its settings are not a subclass of"),
    ],
)  # fmt: skip
def test_a_broken_extractor_is_one_sentence_too(install: Install, text: str, words: str) -> None:
    install("bad", text, extractors={"loudness": "E"})
    with pytest.raises(UserError) as raised:
        graph.build(experiment(extract=["loudness"]), {})
    assert str(raised.value).startswith(
        "the extractor 'loudness' of the package bad 1.5 (bad:E) cannot be used: "
    )
    assert words in str(raised.value)


def test_two_packages_with_one_name_and_a_name_that_is_built_in_are_refused(install: Install) -> None:
    text = LEAN + "name = 'odd'\nM = K()"
    install("one", text, methods={"odd": "M", "lean": "M"})
    install("two", text, methods={"odd": "M"})
    with pytest.raises(UserError) as raised:
        graph.build(experiment(methods=["odd"]), {})
    assert str(raised.value) == (
        "2 methods are called 'odd', of the package one 1.5 (one:M) and the package two 1.5 (two:M); uninstall all "
        "packages but one"
    )
    with pytest.raises(
        UserError, match=r"called 'lean', of crossreel itself and the package one 1\.5 \(one:M\)"
    ):
        graph.build(experiment(methods=["lean"]), {})
    assert graph.build(experiment(methods=["hlformer"]), {})


def test_a_training_of_a_method_whose_package_is_gone_is_one_sentence(tmp_path: Path) -> None:
    from trainers.trained import read_settings

    (tmp_path / "config.json").write_text(json.dumps({"method": "two_towers", "config": {}}))
    with pytest.raises(UserError, match=r"^there is no method 'two_towers' here; possible: .*gare, h2arn"):
        read_settings(tmp_path)


@pytest.mark.slow
def test_doctor_says_what_came_from_where(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_ffmpeg", lambda: [])
    monkeypatch.setattr(doctor, "_torch", lambda: Finding("torch and torchvision", True, "not asked"))
    install("sounds", EXTRACTOR, extractors={"loudness": "Loudness"})
    install("bad", "import no_such_module", methods={"odd": "M"})
    found = {finding.name: finding for finding in doctor.examine(None)}
    built_in = ", ".join(kind.name for kind in graph.EXTRACTORS)
    assert found["extractors"] == Finding("extractors", True, f"{built_in}: built in")
    assert found["methods"].detail == f"{', '.join(BUILT_IN)}: built in"
    assert found["extractor loudness"] == Finding(
        "extractor loudness", True, "version 3, of the package sounds 1.5 (sounds:Loudness)"
    )
    assert not found["method odd"].ok and "No module named 'no_such_module'" in found["method odd"].detail


@pytest.mark.slow
def test_help_imports_no_package_and_a_broken_one_is_a_sentence_on_the_command_line(
    install: Install, tmp_path: Path
) -> None:
    install("bad", "raise RuntimeError('imported')", methods={"odd": "M"})

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(tmp_path), *sys.path])
        return subprocess.run(
            [sys.executable, "-P", "-m", "flows.cli", *words], capture_output=True, text=True, check=False,
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": path},
        )  # fmt: skip

    helped = call("--help")
    assert helped.returncode == 0 and "imported" not in helped.stdout + helped.stderr
    checked = call("import", "checkpoint", "--help")
    assert checked.returncode == 0
    asked = call("import", "checkpoint", "x.ckpt", "folder", "--method", "odd")
    assert asked.returncode == 2 and asked.stderr.count("\n") == 1, asked.stderr
    assert "RuntimeError: imported; mend or uninstall the package" in asked.stderr


def test_the_built_in_parts_that_methods_name_are_there() -> None:
    from flows.results.board.published import tables
    from flows.results.report.explained import Drawer, drawer_of
    from trainers.verify.cases import _module

    published = {"hlformer", "neighborretr", "gare", "lean", "h2arn"}
    for part in ("cases", "drawing", "table"):
        assert published <= {name for name in BUILT_IN if getattr(METHODS.find(name), part)}
    for name in BUILT_IN:
        method = METHODS.find(name)
        assert not method.cases or callable(_module(name).understands)
        assert isinstance(drawer_of(name), Drawer) == bool(method.drawing)
        layout = method.official_layout()
        assert layout is None or (callable(layout.import_checkpoint) and callable(layout.export_checkpoint))
        assert layout is not None or name not in published - {"lean"}
    assert published <= {path.stem for path in tables()}
    assert all(path.is_file() for path in tables())
    assert graph.EVERY_EXTRACTOR.find("clip") is Clip


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip installed the example package."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    shutil.copytree(EXAMPLE, source, dirs_exist_ok=True)  # a build leaves files beside what it builds
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
    ]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(target), str(source)], check=True)
    return target


@contextlib.contextmanager
def installed(folder: Path) -> Iterator[None]:
    """Have what pip put into a folder in this process, and in its forks."""

    def forget() -> None:
        plugins._offered.cache_clear()
        for name in [name for name in sys.modules if name.partition(".")[0] == "crossreel_colours"]:
            del sys.modules[name]

    forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield
    forget()


COLOURS = (Path(__file__).parents[1] / "fixtures/experiments/two_towers.toml").read_text()


@pytest.mark.long
def test_the_example_package_is_installed_and_runs_from_videos_to_the_report(lab: Any, example: Path) -> None:
    lab.experiment(COLOURS)
    with installed(example):
        ended = lab.run("stage", "report", lab.toml)
        again = lab.run("plan", lab.toml, "--json")
        assert Path(str(sys.modules["crossreel_colours"].__file__)).is_relative_to(example)
    assert ended.code == 0, ended.err
    (folder,) = (lab.store / "runs/evaluate-two_towers").iterdir()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "t2v" in json.dumps(metrics)
    (page,) = (lab.store / "runs/report").glob("*/*.html")
    assert "two_towers" in page.read_text(encoding="utf-8")
    (segment, *_) = (lab.store / "segments/colour_histogram").rglob("*.h5")
    assert segment.stat().st_size
    assert all(state["missing"] == 0 for state in json.loads(again.out).values())
    gone = lab.run("plan", lab.toml)
    assert gone.code == 2 and gone.err.count("\n") == 1
    assert "unknown name 'two_towers' in methods" in gone.err
