"""Corpora of the sizes of published data sets, made from a seed: short videos, published features, and point clouds.

Each maker writes `items` items into a folder and returns the steps that bring an experiment on them to its report.
Numbers of items, captions and splits are those of the data sets, or the same shares of fewer items. What is smaller:
videos last two seconds and are copies of 48 encodings of 86 x 64 pixels that differ in one string of their metadata, so
that each has a digest of its own; networks are the demo's; features are drawn at random, a video of ActivityNet has 16
to 48 rows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import run

import h5py
import numpy as np

from pipeline.corpus.importers.demo import objects
from pipeline.corpus.importers.demo.clouds import ply
from pipeline.corpus.importers.demo.drawing import FPS, HEIGHT_PIXELS, WIDTH_PIXELS, frames
from pipeline.corpus.importers.demo.grammar import COLOUR_WORDS, SHAPE_WORDS
from pipeline.corpus.importers.demo.scenes import draw
from pipeline.media.video import find_ffmpeg

PYTHON = [sys.executable]
CLI = [sys.executable, "-m", "flows.cli"]
STAGES = (
    "import sys; from pathlib import Path; from flows.project import open_project; from flows.run import run_stages; "
    "from flows.console import StageDisplay; "
    "result = run_stages(open_project(Path(sys.argv[1])), sys.argv[2:], StageDisplay(quiet=True)); "
    "sys.exit(result.failed or len(result.stopped))"
)
EXPERIMENT = "experiment.toml"
PLAN = [*CLI, "plan", EXPERIMENT, "--json"]
LAST = "plan, all done"  # name of the last step of every shape


IMPORT = [*CLI, "import", "features", "source", "--store", "store", "--out", "corpus.jsonl"]


def is_made(folder: Path) -> bool:
    """Whether a corpus is there, as an earlier call left it that was broken off: its experiment is written last."""
    return (folder / EXPERIMENT).exists()


@dataclass(frozen=True)
class Step:
    """A command to be measured: its name, the units that it works through, and the stages whose bytes are its own."""

    name: str
    unit: str
    units: int
    command: list[str]
    stages: tuple[str, ...] = ()
    grows: float = 1.0  # power of the number of items with which the units grow: pairs grow with the second


def stage_step(
    unit: str, units: int, *stages: str, grows: float = 1.0, name: str = "", experiment: str = EXPERIMENT
) -> Step:
    """A step that brings stages up to date, those of one pass in one pass."""
    command = [*PYTHON, "-c", STAGES, experiment, *stages]
    return Step(name or " + ".join(stages), unit, units, command, stages, grows)


def method_steps(
    method: str, train: int, test: tuple[int, int], captions: int, experiment: str = EXPERIMENT
) -> list[Step]:
    """The steps of a method: packing, one epoch, evaluation of `test` queries and items."""
    packs = f"pack-{method}", f"pack-{method}-test"
    return [
        stage_step("caption", captions, *packs, name=packs[0], experiment=experiment),
        stage_step("training pair", train, f"train-{method}", experiment=experiment),
        stage_step("pair", test[0] * test[1], f"evaluate-{method}", grows=2.0, experiment=experiment),
    ]


def last_steps(items: int) -> list[Step]:
    """The report, as a whole run makes it with Prefect, and the plan of what is done."""
    return [
        Step("run: the report", "item", items, [*CLI, "run", EXPERIMENT, "--quiet"], ("report",)),
        Step(LAST, "item", items, PLAN),
    ]


# Sentences ------------------------------------------------------------------------------------------------------

VERBS = ("chases", "hits", "follows", "passes", "circles", "pushes", "meets", "crosses", "leaves", "touches")
WORDS = (
    ("large", "small", "bright", "dark"),
    [word for words in COLOUR_WORDS.values() for word in dict.fromkeys(words)],
    [word for words in SHAPE_WORDS.values() for word in words if " " not in word],
    VERBS,
    [word for words in COLOUR_WORDS.values() for word in dict.fromkeys(words)],
    [word for words in SHAPE_WORDS.values() for word in words if " " not in word],
    ("black", "grey", "navy", "brown"),
)
SENTENCE = "a {} {} {} {} the {} {} on a {} background"
STRIDE = 7_368_787  # a prime: neighbours differ in most words


def sentence(number: int) -> str:
    """A caption of eleven words; different numbers below 5 million give different ones."""
    number = number * STRIDE % int(np.prod([len(words) for words in WORDS]))
    chosen = []
    for words in WORDS:
        number, place = divmod(number, len(words))
        chosen.append(words[place])
    return SENTENCE.format(*chosen)


# MSR-VTT's shape: 10,000 videos, 20 captions each ---------------------------------------------------------------

CAPTIONS_A_VIDEO, CAPTIONS_FOR_LEAN, ENCODINGS, SECONDS, HEIGHT = 20, 2, 48, 2, 64
MARK = "crossreel-copy-0000000"
FEW, LEAN_EXPERIMENT = "few.jsonl", "lean.toml"
SMALL_VIDEOS = f"""
store = "store"
[extractors.clip]
model = "crossreel-demo"
weights = "seed:0"
[extractors.keyframes]
size = {HEIGHT}
"""
OF_ALL_CAPTIONS = f"""
corpus = "corpus.jsonl"
methods = ["hlformer", "clip4clip"]
extract = ["keyframes"]
{SMALL_VIDEOS}
[trainers.hlformer]
hidden_size = 32
lorentz_dim = 31
blocks = 2
map_size = 8
max_ctx_l = 16
batch_size = 32
epochs = 1
[trainers.clip4clip]
mode = "frozen"
sim_header = "seqTransf"
batch_size = 64
epochs = 1
"""
OF_FEW_CAPTIONS = f"""
corpus = "{FEW}"
methods = ["lean"]
{SMALL_VIDEOS}
[extractors.vgg16]
model = "crossreel-demo"
weights = "seed:0"
[extractors.bert]
model = "crossreel-demo"
weights = "seed:0"
[extractors.triples]
package = "crossreel-small"
[trainers.lean]
hidden = 32
latent = 32
attention_hidden = 8
batch_size = 16
epochs = 1
"""


def msrvtt(folder: Path, items: int) -> list[Step]:
    """Videos with 20 captions each: 85 % to train on, 5 % to validate on, 10 % to test on, with one query a video.

    The other captions of validation and test are in the split `rest`: they are extracted and used by nobody. LEAN has
    an experiment of its own on the same store, with two captions a video, because a parse costs 5 ms.
    """
    val, test = items * 5 // 100, items * 10 // 100
    train = items - val - test
    if not is_made(folder):
        copies(folder / "media", items)
        splits = ["test"] * test + ["val"] * val + ["train"] * train
        write_videos(folder / "corpus.jsonl", splits, CAPTIONS_A_VIDEO)
        write_videos(folder / FEW, splits, CAPTIONS_FOR_LEAN)
        (folder / LEAN_EXPERIMENT).write_text(OF_FEW_CAPTIONS)
        (folder / EXPERIMENT).write_text(OF_ALL_CAPTIONS)
    texts, few = CAPTIONS_A_VIDEO * items, CAPTIONS_FOR_LEAN * items
    pairs, few_pairs = CAPTIONS_A_VIDEO * train, CAPTIONS_FOR_LEAN * train
    return [
        Step("plan, media read for their digests", "video", items, PLAN),
        stage_step("video", items, "compress"),
        stage_step("video", items, "clip", "keyframes"),
        stage_step("caption", texts, "clip_text"),
        *method_steps("hlformer", pairs, (test, test), pairs),
        *method_steps("clip4clip", pairs, (test, test), pairs),
        stage_step("video", items, "vgg16", experiment=LEAN_EXPERIMENT),
        stage_step("caption", few, "bert", experiment=LEAN_EXPERIMENT),
        stage_step("caption", few, "triples", experiment=LEAN_EXPERIMENT),
        *method_steps("lean", few_pairs, (test, test), few_pairs, LEAN_EXPERIMENT),
        *last_steps(items),
    ]


def write_videos(path: Path, splits: list[str], captions: int) -> None:
    """The manifest of videos in these splits with so many captions each; all but one of val and test are `rest`."""
    with path.open("w") as file:
        for number, split in enumerate(splits):
            texts = [
                {"id": f"v{number}#{n}", "text": sentence(CAPTIONS_A_VIDEO * number + n)}
                | ({"split": "rest"} if split != "train" and n else {})
                for n in range(captions)
            ]
            row = {"id": f"v{number}", "media": video_name(number), "split": split, "captions": texts}
            file.write(json.dumps(row) + "\n")


def video_name(number: int) -> str:
    """Path of a video in the corpus' folder."""
    return f"media/{number % 100:02d}/{number}.mp4"


def copies(media: Path, items: int) -> None:
    """Write the videos: the encodings in turn, each with a number of its own in its metadata."""
    media.mkdir(exist_ok=True)
    encodings = [encoded(number, media / f"encoding{number}.mp4") for number in range(min(items, ENCODINGS))]
    for number in range(items):
        path = media.parent / video_name(number)
        path.parent.mkdir(exist_ok=True)
        mark = f"{MARK[:-7]}{number:07d}".encode()
        path.write_bytes(encodings[number % len(encodings)].replace(MARK.encode(), mark))


def encoded(number: int, path: Path) -> bytes:
    """The bytes of a video of one of the demo's scenes, which holds MARK once."""
    (scene,) = draw(number + 1, seed=0)[-1:]
    raw = b"".join(picture for picture, _ in zip(frames(scene), range(SECONDS * FPS), strict=False))
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH_PIXELS}x{HEIGHT_PIXELS}", "-r", str(FPS)]
    target = [
        "-vf",
        f"scale=-2:{HEIGHT}",
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv420p",
        "-metadata",
        f"comment={MARK}",
    ]
    command = [find_ffmpeg(), "-nostdin", "-v", "error", "-y", *source, "-i", "pipe:0", *target, str(path)]
    run(command, input=raw, check=True)
    found = path.read_bytes()
    path.unlink()
    if found.count(MARK.encode()) != 1:
        raise SystemExit(f"the encoding {number} holds its mark {found.count(MARK.encode())} times, not once")
    return found


# ActivityNet's shape: features of 10,009 + 4,917 videos through `import features` ---------------------------------

ROWS, TOKENS, WIDTH = (16, 48), (8, 20), 1024
PARTS = {"train": (9509, 35_552), "val": (500, 1869), "test": (4917, 17_505)}  # videos and captions
FEATURES = """
corpus = "corpus.jsonl"
store = "store"
methods = ["hlformer"]
[trainers.hlformer]
video_features = "import-i3d"
text_features = "import-tokens"
hidden_size = 32
lorentz_dim = 31
blocks = 2
batch_size = 32
epochs = 1
"""


def activitynet(folder: Path, items: int) -> list[Step]:
    """A collection in the MS-SL layout, 1024 numbers a row and a token; 500 of the training videos validate."""
    share = items / 14_926
    parts = {split: [max(2, round(share * count)) for count in counts] for split, counts in PARTS.items()}
    if not is_made(folder):
        write_collection(folder / "source", parts)
        (folder / EXPERIMENT).write_text(FEATURES)
    command = [*IMPORT, "--layout", "ms-sl"]
    train, test = parts["train"], parts["test"]
    videos = sum(count for count, _ in parts.values())
    return [
        Step("import features", "video", videos, command, ("import-i3d", "import-tokens")),
        *method_steps(
            "hlformer", train[1], (test[1], test[0]), sum(captions for _, captions in parts.values())
        ),
        *last_steps(videos),
    ]


def write_collection(source: Path, parts: dict[str, list[int]]) -> None:
    """The files of a collection with numbers of videos and captions by split."""
    random = np.random.default_rng(0)
    visual, text = source / "FeatureData" / "i3d", source / "TextData"
    visual.mkdir(parents=True, exist_ok=True)
    text.mkdir(exist_ok=True)
    videos: dict[str, list[str]] = {}
    with (visual / "feature.bin").open("wb") as rows, h5py.File(text / "tokens.hdf5", "w") as tokens:
        for split, (count, captions) in parts.items():
            names = [f"v_{split}{number}" for number in range(count)]
            for name in names:
                length = int(random.integers(*ROWS))
                videos[name] = [f"{name}_{row}" for row in range(length)]
                rows.write(random.standard_normal((length, WIDTH), np.float32).tobytes())
            with (text / f"activitynet{split}.caption.txt").open("w") as file:
                for number in range(captions):
                    caption = f"{names[number % count]}#enc#{number // count}"
                    file.write(f"{caption} {sentence(number)}\n")
                    length = int(random.integers(*TOKENS))
                    tokens[caption] = random.standard_normal((length, WIDTH), np.float32)
    row_names = [row for rows_of in videos.values() for row in rows_of]
    (visual / "id.txt").write_text(" ".join(row_names))
    (visual / "shape.txt").write_text(f"{len(row_names)} {WIDTH}")
    (visual / "video2frames.txt").write_text(str(videos))


# H2ARN's shape: 8,935 pairs of published features -----------------------------------------------------------------

CLOUD_TOKENS, CLOUD_WIDTH, TEXT_TOKENS, TEXT_WIDTH = 100, 512, 77, 512
SMALL_H2ARN = """
[trainers.h2arn]
d_model = 32
nhead = 4
num_layers = 1
batch_size = 64
epochs = 1
"""
CLOUD_FEATURES = f"""
corpus = "corpus.jsonl"
store = "store"
methods = ["h2arn"]
{SMALL_H2ARN}
cloud_features = "import-elephant-dgcnn"
text_features = "import-elephant-clip"
"""


def h2arn(folder: Path, items: int) -> list[Step]:
    """Pairs of a cloud (100, 512) and a text (77, 512) in the layout of H2ARN's release, a tenth of them to test on."""
    test = items // 10
    if not is_made(folder):
        write_release(folder / "source", {"train": items - test, "test": test})
        (folder / EXPERIMENT).write_text(CLOUD_FEATURES)
    command = [*IMPORT, "--layout", "h2arn"]
    val = (items - test) // 10
    return [
        Step("import features", "pair", items, command, ("import-elephant-dgcnn", "import-elephant-clip")),
        *method_steps("h2arn", items - test - val, (test, test), items),
        *last_steps(items),
    ]


def write_release(source: Path, pairs: dict[str, int]) -> None:
    """The files of a subset with so many pairs in each split."""
    import torch

    (source / "save").mkdir(parents=True, exist_ok=True)
    for split, count in pairs.items():
        place = source / "feature" / "Elephant" / split
        place.mkdir(parents=True, exist_ok=True)
        for name, tokens, width in (
            ("pc_features_DGCNN", CLOUD_TOKENS, CLOUD_WIDTH), ("txt_features_CLIP", TEXT_TOKENS, TEXT_WIDTH),
        ):  # fmt: skip
            generator = torch.Generator().manual_seed(len(name) + len(split))
            torch.save(torch.randn(count, tokens, width, generator=generator), place / f"{name}.pt")
        links = [[["txt_features_CLIP.pt", row], ["pc_features_DGCNN.pt", row]] for row in range(count)]
        (source / "save" / f"Elephant_link_{split}.json").write_text(json.dumps(links))


# Clouds of 10,000 points by extraction -----------------------------------------------------------------------------

DRAWN = 12  # draws of the demo's 1,024 points for a cloud, of which 10,000 points are taken
CLOUDS = f"""
corpus = "corpus.jsonl"
store = "store"
methods = ["h2arn"]
[extractors.points]
colour_scale = "unit"
[extractors.dgcnn]
weights = "seed:0"
[extractors.clip_text]
model = "crossreel-demo"
weights = "seed:0"
{SMALL_H2ARN}
"""


def clouds(folder: Path, items: int) -> list[Step]:
    """Scanned solids of the demo as PLY files of 12,288 points, a caption each, a fifth to validate and to test on."""
    share = max(1, items // 5)
    if not is_made(folder):
        splits = ["test"] * share + ["val"] * share + ["train"] * (items - 2 * share)
        write_clouds(folder, splits)
        (folder / EXPERIMENT).write_text(CLOUDS)
    return [
        stage_step("cloud", items, "points"),
        stage_step("cloud", items, "dgcnn"),
        stage_step("caption", items, "clip_text"),
        *method_steps("h2arn", items - 2 * share, (share, share), items),
        *last_steps(items),
    ]


def write_clouds(folder: Path, splits: list[str]) -> None:
    """The clouds and their manifest."""
    (folder / "clouds").mkdir(exist_ok=True)
    drawn = objects.draw(len(splits), seed=0)
    with (folder / "corpus.jsonl").open("w") as file:
        for number, (found, split) in enumerate(zip(drawn, splits, strict=True)):
            parts = [objects.cloud(found, seed=DRAWN * number + n) for n in range(DRAWN)]
            xyz, rgb = (np.concatenate(column) for column in zip(*parts, strict=True))
            (folder / f"clouds/{number}.ply").write_bytes(ply(xyz, rgb))
            captions = [{"id": f"c{number}", "text": sentence(number)}]
            row = {"id": f"p{number}", "media": f"clouds/{number}.ply", "kind": "pointcloud", "split": split}
            file.write(json.dumps(row | {"captions": captions}) + "\n")


SHAPES: dict[str, Callable[[Path, int], list[Step]]] = {
    "msrvtt": msrvtt, "activitynet": activitynet, "h2arn": h2arn, "clouds": clouds,
}  # fmt: skip
SIZES = {
    "msrvtt": (100, 1000, 10_000),
    "activitynet": (150, 1493, 14_926),
    "h2arn": (90, 894, 8935),
    "clouds": (10, 55, 300),
}


def bytes_of(store: Path, stages: tuple[str, ...]) -> int:
    """Bytes on the disk of these stages, segments, files and folders, and of what packing computed for a method."""
    from pipeline.store.store import tree_bytes

    places: Iterator[Path] = (
        store / kind / stage for kind in ("segments", "files", "runs") for stage in _with_kept(stages)
    )
    return sum(tree_bytes(place) for place in places if place.exists())


def _with_kept(stages: tuple[str, ...]) -> tuple[str, ...]:
    return (*stages, *(stage.replace("pack-", "packed-") for stage in stages if stage.startswith("pack-")))
