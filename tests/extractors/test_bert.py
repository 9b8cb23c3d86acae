"""The stage `bert`: token states of captions as transformers gives them, each with its place in the caption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from extractors.backbones import torchvision_ops, weights
from extractors.backbones.bert import BertBackbone
from extractors.backbones.clip import ClipBackbone
from extractors.base import Output, Unit, WorkOptions
from extractors.bert import Bert, BertParams
from extractors.clip_text import ClipText, ClipTextParams
from pipeline.errors import UserError
from pipeline.settings import fill

DEMO = {"model": "crossreel-demo", "weights": "seed:0", "dtype": "float32"}
TEXTS = [
    "A red star spins",
    "hello",
    "Two  BLUE rings circle around a small green box, can't they?",
    " ünïcode – and “quotes”: 你好 😀! naïve cafe\u0301 ",
    "a",
    "the star passes the ring and " * 20,
]


@pytest.fixture(scope="module", autouse=True)
def importable() -> None:
    """transformers imports torchvision with every network."""
    torchvision_ops.ensure()


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT as its authors would publish it, with the demo's vocabulary."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=2000, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=96, initializer_range=0.3,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    demo = Path(__file__).parents[2] / "extractors/backbones/models/crossreel-demo"
    transformers.AutoTokenizer.from_pretrained(demo, local_files_only=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small RoBERTa: byte-level pieces, the first two positions reserved."""
    folder = tmp_path_factory.mktemp("roberta")
    torch.manual_seed(0)
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    bpe.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
    ).save_pretrained(folder)  # fmt: skip
    config = transformers.RobertaConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=82, pad_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    transformers.RobertaModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP as Hugging Face publishes it, with the vocabulary of OpenAI's."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    words = weights.import_open_clip().SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(word, word): number for word, number in words.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) for pair in words.bpe_ranks]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    end = "<|endoftext|>"
    told = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": end}
    told |= {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    text = {
        "vocab_size": 49408, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
    }  # fmt: skip
    vision = {
        "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 256,
        "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    network = transformers.CLIPModel(config)
    for name, values in network.named_parameters():  # as it is made, its biases and norms tell nothing
        values.data.add_(torch.randn_like(values) * (0.3 if name.startswith("text") else 0))
    network.save_pretrained(folder)
    return folder


@pytest.fixture(params=["crossreel-demo", "bert", "roberta", "clip"])
def params(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of a seeded network and of two read from folders."""
    if request.param == "crossreel-demo":
        return DEMO
    return {"model": str(request.getfixturevalue(f"{request.param}_folder")), "dtype": "float32"}


def encoded(batch_size: int = 64, **params: Any) -> dict[str, dict[str, np.ndarray]]:
    stage = Bert(BertParams(**params))
    stage.load(WorkOptions(device="cpu", batch_size=batch_size))
    units = [Unit(str(n), f"caption {n}", text=text) for n, text in enumerate(TEXTS)]
    found = {}
    for unit, output in filter(None, stage.results(units, Path())):
        assert isinstance(output, Output) and unit.text is not None
        assert all(field.fits(output.arrays[key].shape) for key, field in stage.fields.items())
        assert output.arrays["offset"].dtype == np.int32
        found[unit.text] = output.arrays
    assert set(found) == set(TEXTS)
    return found


def words(text: str, offsets: np.ndarray) -> list[str]:
    return [text[start:end] for start, end in offsets]


def test_what_shares_a_batch_changes_no_state(params):
    together = encoded(64, **params)
    for text, alone in encoded(1, **params).items():
        np.testing.assert_allclose(together[text]["token"], alone["token"], atol=1e-5)
        np.testing.assert_array_equal(together[text]["offset"], alone["offset"])


@pytest.mark.parametrize("layers", [(-1,), (-4, -3, -2, -1), (0,)])
def test_states_are_those_of_a_plain_call_of_transformers(bert_folder, layers):
    network = transformers.AutoModel.from_pretrained(bert_folder, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert_folder, local_files_only=True)
    for text, arrays in encoded(model=str(bert_folder), dtype="float32", layers=layers).items():
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=77)
        with torch.inference_mode():
            out = network(**tokens, output_hidden_states=True)
        wanted = sum(out.hidden_states[layer] for layer in layers)[0] / len(layers)
        np.testing.assert_allclose(arrays["token"], wanted.numpy(), atol=1e-5)
        if layers == (-1,):
            np.testing.assert_allclose(arrays["token"], out.last_hidden_state[0].numpy(), atol=1e-5)


def test_padded_states_are_those_of_a_plain_padded_call(params):
    """As H2ARN reads them: every caption has max_tokens states, the attention mask was passed."""
    if params is DEMO:
        network = BertBackbone(BertParams(**DEMO)).network
        folder: Any = Path(__file__).parents[2] / "extractors/backbones/models/crossreel-demo"
    else:
        network, folder = (
            transformers.AutoModel.from_pretrained(params["model"], local_files_only=True).eval(),
            params["model"],
        )
    network = getattr(network, "text_model", network)  # of a CLIP model
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for text, arrays in encoded(**params, pad=True).items():
        tokens = tokenizer(text, return_tensors="pt", padding="max_length", truncation=True, max_length=77)
        with torch.inference_mode():
            wanted = network(**tokens).last_hidden_state[0].numpy()
        assert arrays["token"].shape == (77, wanted.shape[1]) and arrays["offset"].shape == (77, 2)
        np.testing.assert_allclose(arrays["token"], wanted, atol=1e-5)
        length = int(tokens["attention_mask"].sum())
        assert not arrays["offset"][length - 1 :].any() and arrays["offset"][length - 2].any()


def test_places_are_the_characters_of_the_caption_as_it_was_given(params):
    for text, arrays in encoded(**params).items():
        offsets = arrays["offset"]
        assert not offsets[[0, -1]].any()  # [CLS] and [SEP]
        inner = offsets[1:-1]
        assert (inner[:, 0] <= inner[:, 1]).all()
        assert (np.diff(inner[:, 0]) >= 0).all() and inner.max() <= len(text)
        assert all(word == word.strip() for word in words(text, offsets))
        if len(inner) < 75:  # not truncated: every character that is not a space or an accent has a token
            covered = np.zeros(len(text), bool)
            for start, end in inner:
                covered[start:end] = True
            assert {text[n] for n in np.flatnonzero(~covered)} <= {" ", "\u0301"}


def test_places_of_wordpieces_are_exact():
    found = encoded(**DEMO)
    text = TEXTS[2]
    assert words(text, found[text]["offset"]) == [
        "", "Two", "BLUE", "rings", "circle", "around", "a", "small", "green", "box", ",", "can", "'", "t", "they",
        "?", "",
    ]  # fmt: skip
    text = TEXTS[3]  # the accent that follows its letter belongs to no token
    assert "".join(words(text, found[text]["offset"])) == "ünïcode–and“quotes”:你好😀!naïvecafe"
    assert {"你", "好", "😀", "!"} <= set(words(text, found[text]["offset"]))


def test_byte_level_pieces_leave_the_space_before_a_word_out(roberta_folder):
    found = encoded(model=str(roberta_folder))
    assert "".join(words(TEXTS[0], found[TEXTS[0]]["offset"])) == "Aredstarspins"
    (strange,) = BertBackbone(BertParams(model=str(roberta_folder))).tokens(["a 日本 b"])  # three bytes each
    places = [
        place for place in strange.offsets.tolist() if place[0] < place[1]
    ]  # a lone space: an empty place
    assert places == [[0, 1], *[[2, 3]] * 3, *[[3, 4]] * 3, [5, 6]]


def test_a_caption_longer_than_the_limit_keeps_its_end_token(params):
    backbone = BertBackbone(BertParams(**params), max_tokens=12)
    (cut,) = backbone.tokens([TEXTS[-1]])
    (whole,) = backbone.tokens([TEXTS[0]])
    assert len(cut.states) == 12 and cut.special.tolist() == [True] + [False] * 10 + [True]
    assert not cut.offsets[-1].any() and whole.special.sum() == 2
    assert max(len(arrays["token"]) for arrays in encoded(**params).values()) == 77


def test_special_tokens_can_be_left_out(params):
    kept, left = encoded(**params), encoded(**params, special_tokens=False)
    for text in TEXTS:
        np.testing.assert_allclose(left[text]["token"], kept[text]["token"][1:-1], atol=1e-6)
        np.testing.assert_array_equal(left[text]["offset"], kept[text]["offset"][1:-1])


def test_seeded_states_depend_on_the_word_and_on_its_context():
    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    backbone = BertBackbone(BertParams(**DEMO))
    pair = ["a red star spins", "the blue star passes a red ring"]
    one, other = (
        dict(zip(words(text, tokens.offsets), tokens.states, strict=True))
        for text, tokens in zip(pair, backbone.tokens(pair), strict=True)
    )
    for word in ("red", "star"):
        assert 0.7 < cosine(one[word], other[word]) < 0.99
        assert max(cosine(one[word], one[rival]) for rival in one if rival != word) < 0.7


def test_seeded_weights_are_the_same_again_whatever_torchs_own_seed_is():
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    one = encoded(**DEMO)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(8)
    again, other = encoded(**DEMO), encoded(**(DEMO | {"weights": "seed:1"}))
    np.testing.assert_array_equal(one["hello"]["token"], again["hello"]["token"])
    assert not np.allclose(one["hello"]["token"], other["hello"]["token"])


def test_a_clip_s_states_are_those_of_its_text_side_before_and_after_the_final_norm(clip_folder):
    network = transformers.CLIPTextModel.from_pretrained(clip_folder, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip_folder, local_files_only=True)
    tokens = tokenizer(TEXTS[0], return_tensors="pt", padding="max_length", max_length=77)
    with torch.inference_mode():
        out = network(**tokens, output_hidden_states=True)
    for layers, wanted in (
        ((-1,), out.last_hidden_state),
        ((2,), out.last_hidden_state),
        ((1,), out.hidden_states[1]),
    ):
        found = encoded(model=str(clip_folder), dtype="float32", pad=True, layers=layers)[TEXTS[0]]["token"]
        np.testing.assert_allclose(found, wanted[0].numpy(), atol=1e-6)
    assert not torch.allclose(
        out.hidden_states[2], out.last_hidden_state, atol=0.1
    )  # the norm does something
    with pytest.raises(UserError, match=r"max_tokens = 78 is not possible: .* takes at most 77"):
        BertBackbone(BertParams(model=str(clip_folder)), max_tokens=78)


def open_clip_weights(folder: Path, target: Path) -> dict[str, str]:
    """The same weights in open_clip's names, and the model's description: settings of the stage `clip_text`."""
    theirs = load_file(folder / "model.safetensors")
    prefix = "text_model."
    state = {
        "token_embedding.weight": theirs[f"{prefix}embeddings.token_embedding.weight"],
        "positional_embedding": theirs[f"{prefix}embeddings.position_embedding.weight"],
        "text_projection": theirs["text_projection.weight"].T.contiguous(),
        "logit_scale": theirs["logit_scale"],
    }
    names = {
        "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    for kind in ("weight", "bias"):
        state[f"ln_final.{kind}"] = theirs[f"{prefix}final_layer_norm.{kind}"]
        for layer in range(2):
            at, to = f"{prefix}encoder.layers.{layer}", f"transformer.resblocks.{layer}"
            state |= {f"{to}.{ours}.{kind}": theirs[f"{at}.{name}.{kind}"] for name, ours in names.items()}
            parts = [theirs[f"{at}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            state[f"{to}.attn.in_proj_{kind}"] = torch.cat(parts)
    config = {
        "embed_dim": 8, "quick_gelu": True, "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }  # fmt: skip
    (target / "tiny.json").write_text(json.dumps(config))
    images = ClipBackbone(str(target / "tiny.json"), "seed:0").network.state_dict()
    state |= {name: values for name, values in images.items() if name.startswith("visual.")}
    save_file({name: values.contiguous() for name, values in state.items()}, target / "tiny.safetensors")
    return {"model": str(target / "tiny.json"), "weights": str(target / "tiny.safetensors")}


def test_a_clip_of_the_hub_and_the_same_weights_in_clip_text_give_the_same_states(clip_folder, tmp_path):
    """H2ARN's text features either way: 77 positions, the end token behind the end, masked."""
    stage = ClipText(
        ClipTextParams(
            **open_clip_weights(clip_folder, tmp_path),
            pad=True,
            padding="masked",
            dtype="float32",
            precision="fp32",
        )
    )
    stage.load(WorkOptions(device="cpu"))
    plain = [
        text for text in TEXTS if text.isascii()
    ]  # of odd characters open_clip mends more than Hugging Face
    other = encoded(model=str(clip_folder), dtype="float32", precision="fp32", pad=True)
    assert len(plain) == 5
    for text, found in zip(plain, stage.encode(plain), strict=True):
        assert found["token"].shape == (77, 16)
        np.testing.assert_allclose(found["token"], other[text]["token"], atol=1e-5)


def test_a_folder_s_network_can_be_drawn_from_a_seed(bert_folder):
    own, drawn = (
        encoded(model=str(bert_folder), weights=w)["hello"]["token"] for w in ("pretrained", "seed:0")
    )
    assert own.shape == drawn.shape and not np.allclose(own, drawn, atol=0.1)


def test_more_tokens_or_other_layers_than_there_are_are_refused(bert_folder, roberta_folder):
    def refused(folder: Path, **how: Any) -> str:
        with pytest.raises(UserError) as error:
            BertBackbone(BertParams(model=str(folder)), **how)
        return str(error.value)

    assert "max_tokens = 97 is not possible" in refused(bert_folder, max_tokens=97)
    assert "takes at most 96" in refused(bert_folder, max_tokens=97)
    assert "takes at most 80" in refused(
        roberta_folder, max_tokens=81
    )  # two of its 82 positions are reserved
    BertBackbone(BertParams(model=str(roberta_folder)), max_tokens=80).tokens([TEXTS[-1]])
    assert "layers = [4] is not possible" in refused(bert_folder, layers=(4,))
    assert "has the layers 0 to 3" in refused(bert_folder, layers=(-5,))


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(UserError, match="pad = true keeps special tokens; leave special_tokens true"):
        fill(BertParams, {"pad": True, "special_tokens": False}, "extractors.bert")
    with pytest.raises(UserError, match=r"extractors\.bert\.max_tokens = 2 is not possible"):
        fill(BertParams, {"max_tokens": 2}, "extractors.bert")
    with pytest.raises(UserError, match=r"extractors\.bert\.layers"):
        fill(BertParams, {"layers": []}, "extractors.bert")


def test_the_stored_type_is_a_setting():
    assert Bert(BertParams()).fields["token"].dtype == "float16"
    assert encoded(**(DEMO | {"dtype": "float16"}))["a"]["token"].dtype == np.float32  # the store narrows it
    assert Bert(BertParams(dtype="float32")).fields["token"].dtype == "float32"


def test_half_precision_gives_nearly_the_same_states():
    full, half = (encoded(**DEMO, precision=precision)["hello"]["token"] for precision in ("fp32", "bf16"))
    cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert cosine.min() > 0.99 and not np.array_equal(full, half)
    assert Bert(BertParams(precision="bf16")).decisive() != Bert(BertParams()).decisive()
