"""Models of the Hugging Face hub: found where they lie, known by their bytes, never fetched or run unasked."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from extractors.backbones import hub, torchvision_ops
from extractors.backbones.bert import BertBackbone
from extractors.bert import Bert, BertParams
from pipeline.corpus.contents import RememberedDigests
from pipeline.errors import UserError
from pipeline.store.index import Index

DEMO = Path(hub.__file__).parent / "models/crossreel-demo"


@pytest.fixture
def known(tmp_path: Path) -> RememberedDigests:
    return RememberedDigests(Index(tmp_path / "index.sqlite"))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub."""
    for module in ("constants", "file_download.constants"):
        monkeypatch.setattr(f"huggingface_hub.{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with weights: the demo's, saved."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copytree(DEMO, folder, dirs_exist_ok=True)
    BertBackbone(BertParams(model="crossreel-demo", weights="seed:0")).network.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "model"))


def put(cache: Path, name: str, source: Path) -> Path:
    """A model in the hub's cache as the hub's own client lays it out."""
    root = cache / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text("abc")
    return Path(shutil.copytree(source, root / "snapshots/abc"))


def identity(known: RememberedDigests, model: object, **params: Any) -> dict[str, Any]:
    return dict(Bert(BertParams(model=str(model), **params)).identity(known))


def message(model: object, **params: Any) -> str:
    """What a run says before it begins, or while the network is read."""
    wanted = BertParams(model=str(model), **params)
    with pytest.raises(UserError) as error:
        Bert(wanted).require()
        BertBackbone(wanted)
    return str(error.value)


def test_a_model_is_known_by_its_bytes_wherever_it_lies_and_whatever_it_is_called(
    known, cache, folder, tmp_path
):
    put(cache, "bert-base-uncased", folder)
    put(cache, "somebody/tiny", folder)
    other = shutil.copytree(folder, tmp_path / "elsewhere")
    found = [identity(known, name) for name in (folder, other, "bert-base-uncased", "somebody/tiny")]
    assert all(each == found[0] for each in found) and found[0]["weights"]
    stage = Bert(BertParams(model=str(folder)))
    assert stage.decisive() == Bert(BertParams(model=str(other), download=True)).decisive()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.txt", "tokenizer_config.json"])
def test_another_byte_in_any_file_that_is_read_is_another_identity(known, folder, name):
    before = identity(known, folder)
    path = folder / name
    path.write_bytes(path.read_bytes() + b"\n")
    assert identity(known, folder) != before


def test_files_that_are_not_read_do_not_count(known, folder):
    before = identity(known, folder)
    (folder / "README.md").write_text("hello")
    (folder / "pytorch_model.bin").write_bytes(b"older")  # safetensors come first
    assert identity(known, folder) == before


def test_a_seed_needs_no_weights_and_each_is_another_identity(known, folder):
    (folder / "model.safetensors").unlink()
    one, other = (identity(known, folder, weights=f"seed:{n}") for n in (0, 1))
    assert one != other and one["files"] == other["files"]
    assert one == identity(known, "crossreel-demo", weights="seed:0") | {"files": one["files"]}


def test_names_that_moved_under_an_organisation_are_found_under_either(known, cache, folder):
    assert identity(known, "roberta-large") == {"weights": None, "model": "roberta-large"}
    put(cache, "FacebookAI/roberta-large", folder)
    assert identity(known, "roberta-large") == identity(known, folder)
    assert BertBackbone(BertParams(model="roberta-large")).tokens(["hello"])


def test_a_model_that_is_not_here_is_one_sentence_with_the_ways_out(cache, known):
    said = message("bert-base-uncased")
    assert said == (
        "the model 'bert-base-uncased' is not on this machine and was not to be downloaded; "
        "set extractors.bert.model to a local folder, or extractors.bert.download to true where there is a "
        "network, or extractors.bert.model to crossreel-demo and its weights to seed:0 (random, to try things)"
    )
    assert "the model 'bert-base-uncased' is not on" in message("bert-base-uncased", weights="seed:0")


def test_a_model_whose_weights_were_not_fetched_is_not_here(cache, known, folder):
    (folder / "model.safetensors").unlink()
    put(cache, "somebody/half", folder)
    assert identity(known, "somebody/half")["weights"] is None
    assert "'somebody/half' is not on this machine" in message("somebody/half")
    assert identity(known, "somebody/half", weights="seed:0")["weights"].startswith("seed:0")


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_weights_are_fetched_only_where_the_settings_say_so(cache, known, folder, monkeypatch, kind):
    """The twin of the hub's client puts into the cache what it is asked for, and has one kind of weights."""
    asked: list[str] = []
    if kind == "pytorch_model.bin":
        torch.save(load_file(folder / "model.safetensors"), folder / kind)
        (folder / "model.safetensors").unlink()

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        put(cache, name, DEMO) if not (cache / "models--somebody--new").exists() else None
        target = cache / "models--somebody--new/snapshots/abc"
        for pattern in allow_patterns:
            for path in folder.glob(pattern):
                shutil.copy(path, target)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert identity(known, "somebody/new")["weights"] is None and not asked
    assert identity(known, "somebody/new", download=True) == identity(known, folder)
    assert kind in asked and not any(pattern.endswith((".py", ".h5", ".msgpack")) for pattern in asked)
    assert BertBackbone(BertParams(model="somebody/new")).tokens(["hello"])  # a worker fetches nothing


def test_a_download_that_fails_is_one_sentence(cache, known, monkeypatch, folder):
    def fail(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="is not on this machine and could not be downloaded; set extractors"):
        identity(known, "bert-base-uncased", download=True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(DEMO))
    with pytest.raises(UserError, match=r"came without weights that are read: model\.safetensors or pytorch"):
        identity(known, "bert-base-uncased", download=True)


def test_weights_in_several_files_are_all_counted_and_all_needed(known, folder):
    state = load_file(folder / "model.safetensors")
    single = BertBackbone(BertParams(model=str(folder))).tokens(["hello"])[0].states
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for part, keys in parts.items():
        save_file({key: state[key] for key in keys}, folder / part, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: part for part, keys in parts.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    before = identity(known, folder)
    assert (BertBackbone(BertParams(model=str(folder))).tokens(["hello"])[0].states == single).all()
    changed = {key: state[key] + 1 for key in parts["model-2.safetensors"]}
    save_file(changed, folder / "model-2.safetensors", metadata={"format": "pt"})
    assert identity(known, folder) != before
    (folder / "model-2.safetensors").unlink()
    assert "lacks its weights" in message(folder)


def test_a_model_folder_that_lacks_something_says_what(folder, tmp_path):
    assert "no model folder /no/such" in message("/no/such")
    assert "is neither the path of a folder nor a name" in message("a/b/c")
    assert "weights 'mine.pt' are not possible: pretrained" in message(folder, weights="mine.pt")
    assert "a seed is a number, as in seed:0" in message(folder, weights="seed:x")
    assert "crossreel-demo has no weights of its own; set its weights to seed:0" in message("crossreel-demo")
    (folder / "model.safetensors").unlink()
    assert "model lacks its weights: model.safetensors or pytorch_model.bin" in message(folder)
    (folder / "config.json").unlink()
    assert "is not a model folder: it lacks config.json" in message(folder)


def test_weights_that_lack_a_part_are_refused_rather_than_made_up(folder):
    state = load_file(folder / "model.safetensors")
    lost = next(key for key in state if key.endswith("layer.1.output.dense.weight"))
    save_file(
        {k: v for k, v in state.items() if k != lost}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    assert f"lack {lost} and 0 others" in message(folder)
    small = {k: v[:3].clone() for k, v in state.items()}
    save_file(small, folder / "model.safetensors", metadata={"format": "pt"})
    assert "do not fit" in message(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    assert "do not fit" in message(folder)


def test_a_file_that_would_have_to_be_unpickled_is_refused_and_runs_nothing(folder, tmp_path):
    trace = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (trace,)  # type: ignore[return-value]

    (folder / "model.safetensors").unlink()
    torch.save({"weights": Trap()}, folder / "pytorch_model.bin")
    message(folder)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Trap()))  # the trap does work where pickles are read
    assert trace.exists()


def test_code_that_comes_with_a_model_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "code.Own", "AutoModel": "code.Own"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": auto}))
    (folder / "code.py").write_text("raise SystemExit('it ran')\n")
    assert "cannot be read" in message(folder)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "t5"}, "(t5) is not a text encoder; possible are those such as bert-base-uncased"),
        ({"model_type": "siglip"}, "(siglip) is not a text encoder"),
        ({"model_type": "no-such-thing"}, "cannot be read"),
    ],
)
def test_a_network_of_another_kind_is_refused(folder, config, said):
    (folder / "config.json").write_text(json.dumps(config))
    assert said in message(folder)


def test_a_tokenizer_without_padding_is_refused(folder):
    torchvision_ops.ensure()
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, PreTrainedTokenizerFast

    GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(folder)
    assert "has no padding token; possible are encoders such as bert-base-uncased" in message(folder)


def test_identities_are_found_without_torch(folder, run_python):
    code = f"""
import sys
from pathlib import Path
from extractors.bert import Bert, BertParams
from extractors.vgg16 import Vgg16, Vgg16Params

class Bare:
    def file(self, path): return "x"
    def located(self, name, find): return find()

for model, weights in (({str(folder)!r}, "pretrained"), ("crossreel-demo", "seed:0"), ("somebody/none", "pretrained")):
    Bert(BertParams(model=model, weights=weights)).identity(Bare())
for weights in ("seed:0", "IMAGENET1K_V1"):
    Vgg16(Vgg16Params(weights=weights)).identity(Bare())
assert not {{"torch", "transformers", "tokenizers"}} & set(sys.modules)
"""
    done = run_python(code)
    assert done.code == 0, done.err
