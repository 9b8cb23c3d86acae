"""Operations and bytes of a published experiment, and the least time that they take on a named GPU.

A time here is a lower bound: no GPU computes faster than its data sheet's peak, or takes bytes faster than its link to
the host. What is not counted: augmentation, optimizers, evaluation, and decoding, which is work of CPUs
(`flows/drafting/expected.py`). Where a source does not say how many captions train, their number is an estimate.
Operations are floating-point multiplications and additions, two for each term of a product.
"""

from __future__ import annotations

from dataclasses import dataclass

from extractors.backbones import clip_configs
from flows.costs import (
    SPECIAL_TOKENS,
    TOKENS_A_WORD,
    VGG16_OPERATIONS,
    text_operations,
    transformer_operations,
    vision_operations,
)
from flows.drafting.expected import DATA_SETS, FRAMES_A_SECOND, KEYFRAMES, PICTURE_BYTES
from trainers.recipes import PublishedRecipe

WORDS = 10  # of a caption
TOKENS = WORDS * TOKENS_A_WORD + SPECIAL_TOKENS
BERT_LAYERS, BERT_WIDTH = 12, 768
CLOUD_OPERATIONS = 35e9  # of DGCNN on 10,000 points, as torch counts them
BACKWARD = 3  # operations of a training step in forward passes
FLOAT32, CLIP_WIDTH = 4, 512


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet: operations a second by precision, without sparsity, and bytes a second of its link."""

    name: str
    peak: dict[str, float]
    link: float


GPUS = (
    Gpu("A100 SXM 80 GB", {"fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12}, 32e9),
    Gpu("H100 SXM", {"fp16": 989e12, "tf32": 495e12, "fp32": 67e12}, 64e9),
    Gpu("H200 SXM", {"fp16": 989e12, "tf32": 495e12, "fp32": 67e12}, 64e9),
)
PEAK = {
    "fp16-legacy": "fp16",
    "bf16": "fp16",
    "tf32": "tf32",
    "fp32": "fp32",
}  # setting `precision` -> kind of peak


@dataclass(frozen=True)
class Update:
    """Operations of a training update, without CLIP's towers: for each item, caption, and scored pair of its batch."""

    item: float
    caption: float
    pair: float

    def operations(self, items: float, captions: float) -> float:
        """Of a batch."""
        return self.item * items + self.caption * captions + self.pair * items * captions


UPDATES: dict[str, Update] = {
    "lean": Update(0.0, 1.22e8, 1.77e8),
    "h2arn": Update(0.0, 2.08e10, 3.08e3),
    "gare": Update(0.0, 1.00e9, 1.67e6),
    "neighborretr": Update(0.0, 1.34e9, 1.48e6),
    "clip4clip": Update(0.0, 9.06e8, 2.05e3),
    "hlformer": Update(1.20e10, 2.19e8, 3.80e5),
}
"""As torch counts them at published settings: `python benchmarks/operations.py`."""


@dataclass(frozen=True)
class Bound:
    """Operations and bytes of one experiment.

    extraction: forward passes of frozen networks, once; training: all epochs; input: bytes that training takes from the
    host, all epochs; precision: of training, as a kind of peak.
    """

    extraction: float
    training: float
    input: float
    precision: str

    def hours(self, gpu: Gpu) -> tuple[float, float]:
        """Least hours of extraction (in float16) and of training on a GPU."""
        compute = self.training / gpu.peak[self.precision]
        return self.extraction / gpu.peak["fp16"] / 3600, max(compute, self.input / gpu.link) / 3600


def bound(row: PublishedRecipe) -> Bound | None:
    """The operations and bytes of a published experiment; None where nobody here knows the size of its data."""
    data, settings = DATA_SETS[row.dataset, row.captions], row.filled("release")
    items = row.train.items or data.items
    share = row.train.items / data.items if row.train.items and data.items else 1.0
    captions = row.train.captions or data.captions * share
    if row.method == "h2arn":
        items = data.captions  # a text and its cloud are a pair; the number of clouds was not published
    if not items or not captions:
        return None
    finetuned = settings.get("mode") == "finetune"
    epochs = settings.get("epochs", 0)
    training = input_bytes = 0.0
    if epochs:
        batch = settings["batch_size"]
        of_items = row.method == "hlformer"  # whose batch is of videos, with all their captions
        updates = (items if of_items else captions) / batch
        each = captions / items if of_items else 1.0
        head = UPDATES[row.method].operations(batch, batch * each) if _has_head(row) else 0.0
        towers = pictures = 0.0
        if finetuned:
            frames = settings["max_frames"]
            network = clip_configs.read(clip_configs.resolve(settings["base_encoder"]))
            forward = frames * vision_operations(network["vision_cfg"])
            forward += text_operations(network["text_cfg"], settings["max_words"])
            towers, pictures = BACKWARD * forward * batch, frames * PICTURE_BYTES * batch
        training = epochs * updates * (head + towers)
        input_bytes = epochs * updates * (pictures or batch * _feature_bytes(row.method, each))
    extraction = 0.0 if finetuned or row.imported else _extraction(row)
    return Bound(extraction, training, input_bytes, PEAK[settings.get("precision", "fp32")])


FEATURE_ROWS = {  # rows and width of an item and of a caption, as a batch has them in float32
    "hlformer": ((32 + 128, 1024), (30, 1024)),
    "lean": ((KEYFRAMES, 4096), (8, 768)),
    "h2arn": ((100, 1024), (77, 512)),
}


def _has_head(row: PublishedRecipe) -> bool:
    """Whether anything but CLIP's towers is counted: of CLIP4Clip only the temporal transformer is."""
    return row.method != "clip4clip" or row.settings.get("sim_header") == "seqTransf"


def _feature_bytes(method: str, captions: float) -> float:
    """Bytes of an item of a batch with so many captions."""
    item, caption = FEATURE_ROWS.get(method, ((12, CLIP_WIDTH), (1, CLIP_WIDTH)))
    return FLOAT32 * (item[0] * item[1] + captions * caption[0] * caption[1])


def _extraction(row: PublishedRecipe) -> float:
    """Operations of the forward passes of frozen networks over a whole data set."""
    data = DATA_SETS[row.dataset, row.captions]
    vit = clip_configs.read("ViT-B-32-quickgelu")
    texts = data.captions * text_operations(vit["text_cfg"], TOKENS)
    if row.method == "h2arn":
        return data.captions * CLOUD_OPERATIONS + texts
    if row.method == "lean":
        bert = transformer_operations(BERT_LAYERS, BERT_WIDTH, TOKENS)
        return (data.items or 0) * KEYFRAMES * VGG16_OPERATIONS + data.captions * bert
    frames = (data.hours or 0.0) * 3600 * FRAMES_A_SECOND
    return frames * vision_operations(vit["vision_cfg"]) + texts
