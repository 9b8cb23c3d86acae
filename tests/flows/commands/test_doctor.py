"""`crossreel doctor`: what works is tried, what is missing is named with the way out, and the exit status says so."""

from __future__ import annotations

import functools
import json
import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest

from flows import doctor
from flows.advice import advice_for
from flows.doctor import Finding
from flows.estimate import Expected
from flows.graph import EVERY_EXTRACTOR
from pipeline.errors import UserError
from pipeline.media import video


def found(findings: Any, name: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


DISTRIBUTIONS = functools.cache(doctor.packages_distributions)


@pytest.fixture(autouse=True)
def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lists of files of all distributions, a second of reading, are read once for all tests."""
    monkeypatch.setattr(doctor, "packages_distributions", DISTRIBUTIONS)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what an experiment needs is looked for: the machine's part starts three processes."""
    monkeypatch.setattr(doctor, "_ffmpeg", lambda: [])
    monkeypatch.setattr(doctor, "_torch", lambda: Finding("torch and torchvision", True, "not asked"))


@pytest.mark.slow
def test_a_machine_that_has_everything_passes_and_its_decoders_were_tried(crossreel):
    ended = crossreel("doctor", "--json")
    findings = {each["name"]: each for each in json.loads(ended.out)}
    assert ended.code == 0 and all(each["ok"] for each in findings.values()), ended.out
    for decoder in ("decord", "pyav"):
        assert findings[f"decoder {decoder}"]["detail"] == "all 10 frames of a test clip"
    assert findings["torch"]["detail"] == version("torch")
    assert {"ffmpeg", "ffmpeg decoders", "torch and torchvision", "cores"} <= set(findings)


def test_codecs_that_ffmpeg_lacks_are_named(monkeypatch):
    lists = {
        "-encoders": " V....D mpeg4 MPEG-4 part 2\n",
        "-decoders": " VFS..D h264 H.264\n V....D av1 AV1\n",
    }
    monkeypatch.setattr(doctor, "_listed", lambda ffmpeg, what: lists[what])
    findings = list(doctor._ffmpeg())
    assert not found(findings, "ffmpeg").ok and "without the encoder libx264" in findings[0].detail
    # ffmpeg's own decoder of the name av1 only drives hardware
    assert found(findings, "ffmpeg decoders") == Finding(
        "ffmpeg decoders", False, "no videos in hevc, vp9, av1"
    )
    assert len(findings) == 2  # without an encoder there is no clip to try the decoders on


def test_a_missing_ffmpeg_is_reported_with_what_to_install(monkeypatch):
    def none() -> str:
        raise UserError("no ffmpeg on this machine; install ffmpeg")

    monkeypatch.setattr(video, "find_ffmpeg", none)
    assert list(doctor._ffmpeg()) == [Finding("ffmpeg", False, "no ffmpeg on this machine; install ffmpeg")]


def test_a_decoder_that_fails_or_hangs_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "DECODE_QUESTION", "raise SystemExit('decord: cannot load library')")
    findings = list(doctor._decoders(video.find_ffmpeg()))
    assert [f.ok for f in findings] == [False, False]
    assert findings[0].detail == "decord: cannot load library, not 10 frames"
    monkeypatch.setattr(doctor, "ANSWER_SECONDS", 0.2)
    assert doctor._run_python("import time; time.sleep(60)") == (False, "no answer within 0.2 s")


def test_a_torch_that_does_not_see_the_gpus_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "TORCH_QUESTION", "print(0, 'no GPU')")
    monkeypatch.setattr(doctor, "gpus", lambda: 2)
    assert doctor._torch() == Finding(
        "torch and torchvision", False,
        "0 no GPU; 2 GPUs visible, but this torch does not see them: install its CUDA build",
    )  # fmt: skip
    monkeypatch.setattr(doctor, "gpus", lambda: 0)
    assert doctor._torch() == Finding("torch and torchvision", True, "0 no GPU; 0 GPUs visible")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    def lookup(name: str) -> str:
        if name == "stanza":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(doctor, "version", lookup)
    missing = [finding for finding in doctor._packages() if not finding.ok]
    assert missing == [Finding("stanza", False, "not installed: pip install stanza -c constraints.txt")]


def test_a_folder_and_a_distribution_that_hide_one_of_our_packages_are_named(tmp_path, monkeypatch):
    (finding,) = doctor._colliding(tmp_path)
    assert finding.ok
    (finding,) = doctor._colliding(doctor.OUR_FOLDER)  # our own source tree hides nothing
    assert finding.ok
    (tmp_path / "pipeline").mkdir()
    monkeypatch.setattr(doctor, "packages_distributions", lambda: {"flows": ["crossreel", "other-flows"]})
    (finding,) = doctor._colliding(tmp_path)
    assert not finding.ok and finding.fault == "WRONG"
    assert f"{tmp_path / 'pipeline'} hides the package pipeline" in finding.detail
    assert "other-flows installs a package flows too" in finding.detail


@pytest.mark.parametrize("stage", ["clip", "clip_text", "bert", "vgg16", "triples", "dgcnn"])
def test_advice_says_size_licence_place_and_the_settings_with_and_without_a_network(stage):
    lines = "\n".join(advice_for(stage))
    for word in ("licence: ", "place: ", "with a network: ", "without: ", "to try things: "):
        assert word in lines
    for table, key in re.findall(r"extractors\.(\w+)\.(\w+)", lines):
        assert key in EVERY_EXTRACTOR.find(table).settings.model_fields


def test_files_that_no_experiment_asked_for_are_absent_and_no_fault(crossreel, monkeypatch):
    monkeypatch.setattr(
        doctor, "presence", lambda: [("bert", False, "bert-base-uncased"), ("clip", True, "CLIP")]
    )
    findings = {finding.name: finding for finding in doctor._weights()}
    assert all(finding.ok for finding in findings.values())
    assert findings["weights of bert"].advice and not findings["weights of clip"].advice


@pytest.mark.usefixtures("quick")
def test_of_an_experiment_each_stage_that_needs_something_is_asked_for_it(lab, crossreel):
    ended = crossreel("doctor", lab.toml)
    assert ended.code == 0, ended.out
    assert "ok       stage clip: weights seed:0, drawing" in ended.out
    assert "ok       stage clip_text: weights seed:0, drawing" in ended.out
    assert "stage compress" not in ended.out and "ok       disk:" in ended.out


@pytest.mark.usefixtures("quick")
def test_what_a_stage_lacks_is_the_sentence_a_run_would_stop_with(lab, crossreel):
    no_file = lab.toml.read_text().replace('weights = "seed:0"', 'weights = "no/such.pt"')
    lab.experiment(no_file)
    ended = crossreel("doctor", lab.toml)
    assert ended.code == 1
    assert "MISSING  stage clip: no weights file no/such.pt" in ended.out
    assert "what is expected is not known: no weights file no/such.pt" in ended.out


@pytest.mark.usefixtures("quick")
def test_a_parser_that_is_not_installed_is_told_by_doctor_plan_and_run_before_any_work(
    small, crossreel, monkeypatch
):
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("extractors.backbones.spacy_models.version", absent)
    small.experiment(small.toml.read_text().replace('["compress"]', '["compress", "triples"]'))
    sentence = "backend = 'spacy' needs spaCy, which is not installed: pip install 'crossreel[spacy]'"
    small.toml.write_text(small.toml.read_text() + '\n[extractors.triples]\nbackend = "spacy"\n')
    ended = crossreel("doctor", small.toml)
    assert ended.code == 1 and f"MISSING  stage triples: extractors.triples.{sentence}" in ended.out
    for verb in ("plan", "run"):
        ended = crossreel(verb, small.toml)
        assert sentence in ended.out + ended.err and ended.code == 2, (verb, ended.out, ended.err)
    assert not list(small.folder.rglob("*.h5"))


@pytest.mark.usefixtures("quick")
def test_too_little_disk_for_what_is_expected_is_missing(lab, crossreel, monkeypatch):
    monkeypatch.setattr(doctor, "estimate", lambda store, states: {"clip": Expected(1.0, 1e18)})
    ended = crossreel("doctor", lab.toml)
    assert ended.code == 1 and "GB free, 1000000000.00 GB expected" in ended.out


@pytest.mark.usefixtures("quick")
def test_weights_that_are_not_here_and_not_to_be_fetched_are_missing(lab, crossreel, monkeypatch, tmp_path):
    """Before, this said that a run would download them, whatever the settings said."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for module in ("constants", "file_download.constants"):
        monkeypatch.setattr(f"huggingface_hub.{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
    clip = '[extractors.clip]\nmodel = "ViT-B-32-quickgelu"\n'
    lab.experiment(f'corpus = "corpus.jsonl"\nstore = "store"\nextract = ["clip"]\n{clip}')
    ended = crossreel("doctor", lab.toml)
    assert ended.code == 1
    assert "MISSING  stage clip: weights 'openai' of ViT-B-32-quickgelu are not on this machine" in ended.out
    assert "with a network: extractors.clip.download = true" in ended.out
