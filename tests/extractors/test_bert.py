"""The stage `bert`: token states of captions as transformers gives them, each with its place in the caption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from extractors.backbones import torchvision_ops
from extractors.backbones.bert import BertBackbone
from extractors.base import Output, Unit, WorkOptions
from extractors.bert import Bert, BertParams
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


@pytest.fixture(params=["crossreel-demo", "bert", "roberta"])
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
