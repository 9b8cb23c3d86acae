"""The stage `clip_text`: token states of each caption, whichever captions share its batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from extractors.backbones import seeded
from extractors.backbones.clip import ClipBackbone
from extractors.base import Output, Unit, WorkOptions
from extractors.clip_text import ClipText, ClipTextParams
from pipeline.errors import UserError
from pipeline.settings import fill

DEMO = {"model": "crossreel-demo", "weights": "seed:0", "dtype": "float32"}
TEXTS = [
    "a red star spins",
    "hello",
    "two blue rings circle around a small green box",
    "ünïcode – and “quotes”",
    "a",
    "a " * 60,
]


@pytest.fixture(scope="module")
def network() -> ClipBackbone:
    return ClipBackbone(DEMO["model"], DEMO["weights"])


def encoded(batch_size: int = 64, **params: object) -> dict[str, Output]:
    extractor = ClipText(ClipTextParams(**(DEMO | params)))
    extractor.load(WorkOptions(device="cpu", batch_size=batch_size))
    units = [Unit(str(n), f"caption {n}", text=text) for n, text in enumerate(TEXTS)]
    found = {}
    for unit, output in filter(None, extractor.results(units, None)):
        assert isinstance(output, Output) and unit.text is not None
        assert all(field.fits(output.arrays[key].shape) for key, field in extractor.fields.items())
        found[unit.text] = output
    assert set(found) == set(TEXTS)
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_each_caption_has_the_backbone_s_states_of_it_alone(network, batch_size):
    found = encoded(batch_size)
    for text in TEXTS:
        hidden, projected, pooled = network.text_tokens([text])
        for name, wanted in (("token", hidden[0]), ("projected", projected[0]), ("pooled", pooled)):
            np.testing.assert_allclose(found[text].arrays[name], wanted, atol=2e-5)


def test_a_longer_caption_has_more_tokens_up_to_the_context(network):
    lengths = {text: len(output.arrays["token"]) for text, output in encoded().items()}
    assert lengths["a"] == lengths["hello"] == 3  # start, word, end
    assert lengths["a red star spins"] == 6 and lengths["a " * 60] == 32


def test_a_caption_is_cut_before_its_end_token_at_the_set_maximum(network):
    found = encoded(max_tokens=5)
    assert {len(output.arrays["token"]) for output in found.values()} == {3, 5}
    cut = found["two blue rings circle around a small green box"].arrays
    hidden, _, pooled = network.text_tokens(["two blue rings"])  # start, three words, end
    np.testing.assert_allclose(cut["token"], hidden[0], atol=2e-5)
    np.testing.assert_allclose(cut["pooled"], pooled, atol=2e-5)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_padding_is_kept_on_request_and_sees_the_real_tokens_alone(network, batch_size):
    plain, padded = (encoded(batch_size, pad=pad, max_tokens=12) for pad in (False, True))
    for text in TEXTS:
        states, full = plain[text].arrays["token"], padded[text].arrays["token"]
        assert len(full) == 12
        np.testing.assert_allclose(full[: len(states)], states, atol=2e-5)
        np.testing.assert_allclose(padded[text].arrays["pooled"], plain[text].arrays["pooled"], atol=2e-5)
    behind = padded["a"].arrays["token"][3:]
    assert np.ptp(behind, axis=0).max() > 1e-3  # positions differ, what they see does not


def test_masked_padding_is_the_end_token_that_sees_the_real_tokens_alone(network):
    """A slow twin: each caption by itself, all positions filled with the end token, mask written out."""
    stage = ClipText(ClipTextParams(**DEMO, pad=True, padding="masked", max_tokens=12))
    stage.network, tower = network, network.network
    for text, found in zip(TEXTS, stage.encode(TEXTS), strict=True):
        tokens = network._tokenize([text], context_length=12)
        end = int((tokens[0] == 49407).nonzero()[0])
        tokens[0, end:] = 49407
        states = tower.token_embedding(tokens) + tower.positional_embedding[:12]
        mask = torch.full((12, 12), -torch.inf)
        for query in range(12):
            mask[query, : min(query, end) + 1] = 0
        with torch.inference_mode():
            twin = tower.ln_final(tower.transformer(states, attn_mask=mask))[0].numpy()
        np.testing.assert_allclose(found["token"], twin, atol=2e-5)


def test_masked_padding_is_the_same_in_a_batch_and_alone(network):
    together = network.text_tokens(TEXTS, 12, pad=True, padding="masked")[0]
    for text, states in zip(TEXTS, together, strict=True):
        ((alone,), _, _) = network.text_tokens([text], 12, pad=True, padding="masked")
        np.testing.assert_allclose(states, alone, atol=1e-5)


def test_masked_and_open_padding_differ_behind_the_end_token_alone(network):
    real, _, ends = network.text_tokens(TEXTS, 12)
    zeros, masked = (network.text_tokens(TEXTS, 12, pad=True, padding=how) for how in ("open", "masked"))
    for states, one, other in zip(real, zeros[0], masked[0], strict=True):
        length = len(states)
        np.testing.assert_allclose(one[:length], other[:length], atol=2e-5)
        assert length == 12 or np.abs(one[length:] - other[length:]).max() > 1e-2
    for _, _, found in (zeros, masked):
        np.testing.assert_allclose(found, ends, atol=2e-5)


def test_the_default_padding_is_not_in_a_fingerprint_and_another_is():
    plain, padded = ClipTextParams(**DEMO), ClipTextParams(**DEMO, pad=True)
    assert set(plain.decisive()) == {
        "model",
        "dtype",
        "precision",
        "max_tokens",
        "pad",
    }  # as before it existed
    masked = ClipTextParams(**DEMO, pad=True, padding="masked")
    assert masked.decisive() == padded.decisive() | {"padding": "masked"}


def test_padding_that_is_not_kept_is_refused():
    with pytest.raises(UserError, match="padding = 'masked' is kept with pad = true alone"):
        fill(ClipTextParams, {"padding": "masked"}, "extractors.clip_text")
    with pytest.raises(UserError, match=r"extractors\.clip_text\.padding = 'zero' is not possible"):
        fill(ClipTextParams, {"pad": True, "padding": "zero"}, "extractors.clip_text")


def test_texts_do_not_wait_until_a_seeded_network_is_whitened_on_pictures(monkeypatch):
    monkeypatch.setattr(seeded, "_drawn", {})
    monkeypatch.setattr(
        seeded, "whiten", lambda *_: pytest.fail("1024 pictures went through the image tower")
    )
    assert set(encoded()) == set(TEXTS)
