"""`compile = true`: off by default, part of a training's identity, and refused where it cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers import compiler
from trainers.config import TrainingSizes
from trainers.gare.config import GareConfig


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    (tmp_path / "Python.h").touch()
    return tmp_path


def program(folder: Path, name: str) -> None:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


def test_a_cpu_needs_a_cpp_compiler_and_the_headers_of_python(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no g++ or other one that CXX names is here; install it" in compiler.lack("cpu")
    program(empty, "g++")
    assert compiler.lack("cpu") == ""
    monkeypatch.setenv("CXX", "c++-99")
    assert "CXX names" in compiler.lack("cpu")
    program(empty, "c++-99")
    assert compiler.lack("cpu") == ""
    for value in ("c++-99 -O2", ""):  # neither is the name of a program
        monkeypatch.setenv("CXX", value)
        assert "CXX names" in compiler.lack("cpu")
    monkeypatch.setenv("CXX", "c++-99")
    (empty / "Python.h").unlink()
    assert f"the headers of Python, and {empty}/Python.h is not here" in compiler.lack("cpu")


def test_a_gpu_needs_triton_and_a_c_compiler(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "with Triton, which is not installed; install it, or leave compile = false" in compiler.lack(
        "cuda:0"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert "Triton needs a C compiler" in compiler.lack("cuda:0")
    program(empty, "clang")
    assert compiler.lack("cuda:0") == "" and compiler.lack("cpu") != ""


def test_compiled_losses_retrain_and_the_usual_ones_keep_earlier_trainings() -> None:
    assert GareConfig().compile is False and "compile" not in GareConfig().decisive()
    assert GareConfig(compile=True).decisive() == GareConfig().decisive() | {"compile": True}


def test_compiled_losses_are_refused_before_any_work_for_several_processes_and_without_a_compiler(
    empty: Path,
) -> None:
    def refused(processes: int, device: str = "cpu", **settings: object) -> list[str]:
        sizes = TrainingSizes(pairs=1000, items=1000, processes=processes, device=device)
        found = GareConfig(**settings).unsuited(sizes)
        return [reason for name, reason in found if name == "compile"]

    (lacking,) = refused(1, compile=True)
    assert lacking == compiler.lack("cpu")
    assert refused(1, "cuda", compile=True) == [compiler.lack("cuda")] != [lacking]
    assert refused(1) == refused(2) == [] and refused(2, compile=True, epochs=0) == []
    program(empty, "g++")
    assert refused(1, compile=True) == []
    (several,) = refused(2, compile=True)
    assert several.startswith(
        "compiled losses cannot gather the rows of 2 processes (run.processes times run.nodes)"
    )
