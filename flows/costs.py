"""CPU seconds, floating-point operations and bytes of one unit of each extractor, from its settings and sampled media.

Used where nothing was measured on the store yet. The constants were measured on one core without a GPU
(`python benchmarks/costs.py` prints them for another machine).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from extractors.backbones import clip_configs, hub
from flows.media_sample import Sample
from pipeline.run.stage import Stage

OPERATIONS_A_SECOND = 75e9  # of one core in a network's matrix products, float32
ITEM_SECONDS = 0.03  # start of an ffmpeg, and the looks at its file
MEGAPIXEL_SECONDS = 0.0045  # of decoding a million pixels of a source
DECODED_FRAME_SECONDS = 0.0013  # of a compressed video, once for all stages that read frames
CROP_SECONDS = 0.0005  # of cutting a frame to a network's square
PICTURE_SECONDS = 0.002  # of keeping a frame as a picture
HISTOGRAM_SECONDS = 0.0015  # of comparing a frame's colours with those before
PARSED_WORD_SECONDS = {"crossreel-small": 0.0006}  # of a caption, by stanza package
PARSED_WORD_USUAL = 0.006  # by stanza's published packages
SPACY_WORD_SECONDS = 0.0002  # by en_core_web_sm
SAMPLED_POINT_SECONDS = 1.5e-9  # of farthest-point sampling, for each pair of a point read and a point taken
READ_POINT_SECONDS = 1.5e-6
CLOUD_POINT_SECONDS = {"dgcnn": 1.7e-4, "pointnet": 1e-5, "pointnet2": 4e-5}  # of encoding a point
COMPRESSED_BYTES = 28e3  # a second of video at 3 frames a second and a short side of 224 pixels
TOKENS_A_WORD = 1.3
SPECIAL_TOKENS = 2
TRIPLE_BYTES = 150.0  # of a caption's triples
ITEM_BYTES = {"float16": 2, "float32": 4}
TOKENS_A_CLOUD = 100
VGG16_OPERATIONS, VGG16_WIDTH = 31e9, 4096  # for a picture; of its last layers
VGG16_NARROWED = {"vgg16": 1, "crossreel-demo": 8}


@dataclass(frozen=True)
class UnitCost:
    """The cost of one item or caption: CPU seconds, of which `decode` are shared by all stages of a pass.

    flops: floating-point operations of a network; outputs: bytes by output; file: bytes of the file it makes.
    """

    cpu: float = 0.0
    decode: float = 0.0
    flops: float = 0.0
    outputs: Mapping[str, float] = field(default_factory=dict)
    file: float = 0.0

    @property
    def bytes(self) -> float:
        """All bytes of a unit."""
        return sum(self.outputs.values()) + self.file


@dataclass(frozen=True)
class Facts:
    """What the cost of a unit depends on: the stages with their settings, the media, the words of a caption.

    Media are looked at when the first cost depends on them.
    """

    stages: Mapping[str, Stage[Any]]
    sampled: Callable[[], Sample]
    words: float

    @property
    def sample(self) -> Sample:
        """What the media are like."""
        return self.sampled()

    def setting(self, stage: str, name: str, usual: float) -> float:
        """A setting of another stage, or its usual value if that is not part of the experiment."""
        return float(getattr(self.stages[stage].params, name)) if stage in self.stages else usual

    @property
    def frames(self) -> float:
        """Frames of a compressed video."""
        return max(1.0, self.sample.seconds * self.setting("compress", "fps", 3.0))


def unit_cost(stage: Stage[Any], facts: Facts) -> UnitCost | None:
    """The cost of a unit of an extractor; None for one of a package, or if no medium could be sampled."""
    if stage.name not in COSTS or (stage.over == "items" and not facts.sample.files):
        return None
    return COSTS[stage.name](stage, facts)


def vision_operations(config: Mapping[str, Any]) -> float:
    """Operations of a CLIP network for a picture, by the `vision_cfg` of its description."""
    size, width = config.get("image_size", 224), config.get("width", 768)
    if isinstance(config["layers"], list):  # a ResNet, of which RN50 is the measure
        return 18e9 * (size / 224) ** 2 * (width / 64) ** 2 * sum(config["layers"]) / 16
    patch = config.get("patch_size", 16)
    tokens = (size // patch) ** 2 + 1
    return transformer_operations(config["layers"], width, tokens) + 2 * tokens * 3 * patch**2 * width


def text_operations(config: Mapping[str, Any], tokens: float) -> float:
    """Operations of a CLIP network for a caption, by the `text_cfg` of its description."""
    return transformer_operations(config.get("layers", 12), config.get("width", 512), tokens)


def transformer_operations(layers: int, width: float, tokens: float) -> float:
    """Operations of transformer layers with a hidden layer of four widths."""
    return layers * (24 * tokens * width**2 + 4 * tokens**2 * width)


def _compress(stage: Stage[Any], facts: Facts) -> UnitCost:
    seconds, side = facts.sample.seconds, min(stage.params.short_side, facts.sample.short_side)
    size = COMPRESSED_BYTES * seconds * (side / 224) ** 2 * stage.params.fps / 3
    cpu = ITEM_SECONDS + MEGAPIXEL_SECONDS * facts.sample.megapixels * seconds
    return UnitCost(cpu, outputs={"time": 8 * facts.frames}, file=size)


def _clip(stage: Stage[Any], facts: Facts) -> UnitCost:
    config, size = clip_configs.read(stage.params.model), ITEM_BYTES[stage.params.dtype]
    vision, frames = config["vision_cfg"], facts.frames
    outputs = {"frame": frames * config["embed_dim"] * size, "time": frames * 4}
    if stage.params.patches:
        outputs["patch"] = (
            frames * (vision["image_size"] // vision["patch_size"]) ** 2 * vision["width"] * size
        )
    return UnitCost(
        frames * CROP_SECONDS, frames * DECODED_FRAME_SECONDS, frames * vision_operations(vision), outputs
    )


def _frames(stage: Stage[Any], facts: Facts) -> UnitCost:
    taken = min(stage.params.count, max(1.0, facts.sample.seconds * stage.params.rate))
    return _pictures(taken, stage.params.size, facts)


def _keyframes(stage: Stage[Any], facts: Facts) -> UnitCost:
    return _pictures(stage.params.count, stage.params.size, facts, HISTOGRAM_SECONDS * facts.frames)


def _pictures(count: float, side: int, facts: Facts, besides: float = 0.0) -> UnitCost:
    outputs = {"rgb": count * side**2 * 3, "time": count * 16}
    return UnitCost(count * PICTURE_SECONDS + besides, facts.frames * DECODED_FRAME_SECONDS, outputs=outputs)


def _vgg16(stage: Stage[Any], facts: Facts) -> UnitCost:
    count, narrow = facts.setting("keyframes", "count", 10), VGG16_NARROWED[stage.params.model]
    outputs = {"frame": count * VGG16_WIDTH / narrow * ITEM_BYTES[stage.params.dtype]}
    return UnitCost(count * CROP_SECONDS, flops=count * VGG16_OPERATIONS / narrow**2, outputs=outputs)


def _clip_text(stage: Stage[Any], facts: Facts) -> UnitCost:
    config, size = clip_configs.read(stage.params.model), ITEM_BYTES[stage.params.dtype]
    tokens, kept = _tokens(stage, facts)
    width = config["text_cfg"].get("width", 512)
    outputs = {"token": kept * width, "projected": kept * config["embed_dim"], "pooled": config["embed_dim"]}
    return UnitCost(
        flops=text_operations(config["text_cfg"], tokens), outputs={n: v * size for n, v in outputs.items()}
    )


def _bert(stage: Stage[Any], facts: Facts) -> UnitCost:
    layers, width = _encoder(stage.params)
    tokens, kept = _tokens(stage, facts)
    outputs = {"token": kept * width * ITEM_BYTES[stage.params.dtype], "offset": kept * 8}
    return UnitCost(flops=transformer_operations(layers, width, tokens), outputs=outputs)


def _tokens(stage: Stage[Any], facts: Facts) -> tuple[float, float]:
    """Tokens of a caption that the network sees, and those that are kept."""
    tokens = min(facts.words * TOKENS_A_WORD + SPECIAL_TOKENS, stage.params.max_tokens)
    return (stage.params.max_tokens,) * 2 if stage.params.pad else (tokens, tokens)


def _encoder(params: Any) -> tuple[int, float]:
    """Layers and width of a Hugging Face encoder, by its description; BERT's if it is not on this machine."""
    folder = hub.locate(params.model_copy(update={"download": False}))
    path = folder / hub.CONFIG if folder else None
    config = json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}
    config = config.get("text_config", config)
    return config.get("num_hidden_layers", 12), config.get("hidden_size", 768)


def _triples(stage: Stage[Any], facts: Facts) -> UnitCost:
    usual = SPACY_WORD_SECONDS if stage.params.backend == "spacy" else PARSED_WORD_USUAL
    each = PARSED_WORD_SECONDS.get(stage.params.package, usual)
    return UnitCost(each * facts.words, outputs={"span": TRIPLE_BYTES})


def _points(stage: Stage[Any], facts: Facts) -> UnitCost:
    there, taken = facts.sample.points, _taken(facts)
    cpu = READ_POINT_SECONDS * there + (SAMPLED_POINT_SECONDS * there * taken if taken < there else 0.0)
    return UnitCost(cpu, outputs={"points": taken * 9 * 4})


def _cloud_encoder(stage: Stage[Any], facts: Facts) -> UnitCost:
    width = getattr(stage.params, "d_pcd", 512)
    outputs = {"token": TOKENS_A_CLOUD * width * ITEM_BYTES[stage.params.dtype]}
    return UnitCost(CLOUD_POINT_SECONDS[stage.name] * _taken(facts), outputs=outputs)


def _taken(facts: Facts) -> float:
    """Points of a cloud after sampling."""
    most = facts.setting("points", "sample", 10_000)
    return min(most, facts.sample.points) if most else facts.sample.points


COSTS: dict[str, Callable[[Stage[Any], Facts], UnitCost]] = {
    "compress": _compress, "clip": _clip, "frames": _frames, "keyframes": _keyframes, "vgg16": _vgg16,
    "clip_text": _clip_text, "bert": _bert, "triples": _triples, "points": _points,
    "dgcnn": _cloud_encoder, "pointnet": _cloud_encoder, "pointnet2": _cloud_encoder,
}  # fmt: skip
