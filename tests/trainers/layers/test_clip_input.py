"""What the towers are given: normalised pixels, empty slots, crops, token ids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from extractors.backbones.pictures import squares
from extractors.backbones.weights import import_open_clip
from trainers.layers.clip_input import MEAN, STD, padded_frames, pixels, tokenise

START, END = 49406, 49407


def test_pixels_are_normalised_and_empty_slots_are_zero_afterwards() -> None:
    frames = torch.randint(0, 256, (2, 3, 4, 4, 3), dtype=torch.uint8)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    found = pixels(frames, mask)
    assert found.shape == (2, 3, 3, 4, 4) and found.dtype == torch.float32
    assert (found[1, 1:] == 0).all()
    for channel in range(3):
        expected = (frames[0, 2, 1, 3, channel].item() / 255 - MEAN[channel]) / STD[channel]
        assert found[0, 2, channel, 1, 3].item() == pytest.approx(expected, abs=1e-6)


def test_frames_fill_the_first_slots_and_more_than_fit_are_cut() -> None:
    frames = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
    padded, mask = padded_frames(frames, 7)
    assert np.array_equal(padded[:5], frames) and not padded[5:].any()
    assert mask.tolist() == [True] * 5 + [False] * 2
    cut, full = padded_frames(frames, 3)
    assert np.array_equal(cut, frames[:3]) and full.all()


@pytest.mark.parametrize("shape", [(40, 60), (60, 41), (33, 33), (20, 31), (48, 85)])
def test_crops_are_those_of_clips_own_transform(shape: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    open_clip = import_open_clip()
    expected = open_clip.image_transform(32, is_train=False, mean=MEAN, std=STD)(Image.fromarray(frame))
    found = pixels(torch.from_numpy(squares(frame[None], 32)), torch.ones(1))[0]
    torch.testing.assert_close(found, expected)


def test_captions_are_cut_before_the_end_token_and_padded_with_zeros() -> None:
    texts = ["a man", "one two three four five six seven", "", "!"]
    ids, mask = tokenise(texts, 6)
    reference = import_open_clip().SimpleTokenizer()
    assert ids.dtype == np.int64 and ids.shape == mask.shape == (4, 6)
    for row, text in enumerate(texts):
        pieces = reference.encode(text)[:4]
        assert ids[row].tolist() == [START, *pieces, END] + [0] * (4 - len(pieces))
        assert mask[row].tolist() == [True] * (len(pieces) + 2) + [False] * (4 - len(pieces))
    assert (ids.argmax(1) == mask.sum(1) - 1).all()  # the end token is where the mask ends


def test_id_zero_is_a_token_where_it_is_one() -> None:
    pieces = import_open_clip().SimpleTokenizer().encode("a!b")
    ids, mask = tokenise(["a!b"], 8)
    assert len(pieces) == 3 and mask[0].sum() == 5 and ids[0, 5:].sum() == 0
