"""H2ARN from files to features: a made case, whose expected values are computed here by slow means of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from torch import Tensor

from extractors.backbones import torchvision_ops
from extractors.backbones.dgcnn import Dgcnn
from pipeline.errors import UserError
from trainers.verify.h2arn_pipeline import KINDS, end_to_end

SHARED = Path(__file__).parents[4] / "shared/golden/h2arn"
KIND = "feature_extraction_end_to_end"
NUM_POINTS, K = 30, 4
CAPTIONS = {
    "elephant.train": {
        "vase": ["a tall vase", " The vase ", "a vase and " * 40],
        "ghost": ["it has no file"],
        "cup": ["a cup", ""],
        "narrow": ["it has five columns"],
        "tile": [],
        "torn": ["its third line is torn"],
        "few": ["it has fewer points than neighbours"],
        "bell": ["钟 bell"],
    },
    "elephant.test": {"dish": ["a dish"]},
    "s3dis.train": {
        "Area_1_office_1": ["an office", "a room"],
        "Area_3_lobby_1": ["no weights"],
        "kitchen": ["no area"],
        "Area_2_hall_1": ["a hall"],
    },
}
SIZES = {"vase": 61, "cup": 19, "narrow": 40, "tile": 30, "torn": 40, "few": 3, "bell": 31, "dish": 45}
KEPT = {
    "elephant.train": ["vase", "cup", "tile", "bell"],
    "elephant.test": ["dish"],
    "s3dis.train": ["Area_1_office_1", "Area_2_hall_1"],
}


def write_clouds(folder: Path) -> dict[str, np.ndarray]:
    """Caption files and point files of both data sets; returns the rows of each object."""
    rng, rows = np.random.default_rng(0), {}
    for where, captions in CAPTIONS.items():
        subset, split = where.split(".")
        elephant = subset == "elephant"
        place = folder / ("Elephant" if elephant else "S3DIS")
        place.mkdir(parents=True, exist_ok=True)
        file = f"Elephant_caption_{split}.json" if elephant else f"S3DIS_{split}_captions.json"
        (place / file).write_text(json.dumps({"result": captions}, ensure_ascii=False))
        for name in captions:
            count = SIZES.get(name, 41)
            values = np.column_stack(
                [rng.normal(size=(count, 3)), rng.integers(0, 256, (count, 3)) / 255, range(count)]
            )
            values = values[:, :5] if name == "narrow" else values
            lines = [" ".join(f"{v:.6f}" for v in row) for row in values]
            if name == "torn":
                lines[2] = "0.1 0.2 zero 0 0 0 0"
            path = place / (
                f"pcd_normalize_{split}/{name}/model.txt" if elephant else f"S3DIS_{split}_pcds/{name}.txt"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            if name != "ghost":
                path.write_text("\n".join(lines) + "\n")
                rows[name] = (
                    np.array([line.split() for line in lines]) if name == "torn" else np.loadtxt(path)
                )
    return rows


def write_encoders(folder: Path) -> None:
    """A tiny CLIP and a tiny BERT as Hugging Face publishes them."""
    torchvision_ops.ensure()
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    start, end = len(words) - 2, len(words) - 1
    (folder / "clip").mkdir()
    (folder / "clip/vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "clip/merges.txt").write_text("#version: 0.2\n")
    special = {
        "bos_token": words[start],
        "eos_token": words[end],
        "unk_token": words[end],
        "pad_token": words[end],
    }
    told = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "clip/tokenizer_config.json").write_text(json.dumps(told))
    text = {
        "vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "bos_token_id": start, "eos_token_id": end, "pad_token_id": end,
    }  # fmt: skip
    vision = text | {"image_size": 8, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder / "clip")
    (folder / "bert").mkdir()
    pieces = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    (folder / "bert/vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "bert/tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=96,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder / "bert")


def states(folder: Path, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and states of texts one at a time, by transformers alone."""
    kind = transformers.CLIPTextModel if folder.name == "clip" else transformers.AutoModel
    network = kind.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    found = []
    for text in texts:
        batch = tokenizer(text, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        with torch.inference_mode():
            out = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        found.append((batch["input_ids"][0], batch["attention_mask"][0], out.last_hidden_state[0]))
    ids, mask, tokens = (torch.stack(list(parts)) for parts in zip(*found, strict=True))
    return ids.int(), mask.int(), tokens.contiguous()


def farthest(xyz: np.ndarray, count: int) -> list[int]:
    """Farthest-point sampling a point at a time."""
    points = xyz.astype(np.float32)
    centre = points.sum(0, dtype=np.float32) / np.float32(len(points))
    taken = [int(((points - centre) ** 2).sum(1).argmax())]
    while len(taken) < count:
        apart = [min(float(((point - points[t]) ** 2).sum()) for t in taken) for point in points]
        taken.append(int(np.argmax(apart)))
    return taken


def nine(rows: np.ndarray) -> np.ndarray:
    xyz = rows[:, :3]
    unit = (xyz - xyz.min(0)) / (xyz.max(0) - xyz.min(0))
    return np.concatenate([rows[:, :6], unit], 1).astype(np.float32)


def tokens(network: Dgcnn, points: np.ndarray) -> Tensor:
    """The formulas of section 3.1 with all edges written out, in float64."""
    net = {name: module.double() for name, module in network.double().named_children()}
    x = torch.from_numpy(points).double()

    def edges(features: Tensor, by: Tensor) -> Tensor:
        near = torch.cdist(by, by).topk(K, largest=False).indices
        own = features[:, None].expand(-1, K, -1)
        return torch.cat([features[near] - own, own], -1).permute(2, 0, 1)[None]  # (1, 2C, N, K)

    with torch.inference_mode():
        x1 = net["conv2"](net["conv1"](edges(x, x[:, 6:]))).amax(-1)[0].T
        x2 = net["conv4"](net["conv3"](edges(x1, x1))).amax(-1)[0].T
        x3 = net["conv5"](edges(x2, x2)).amax(-1)[0].T
        joint = torch.cat([x1, x2, x3], 1).T[None]
        overall = net["conv6"](joint).amax(-1, keepdim=True).expand(-1, -1, len(x))
        out = torch.nn.functional.adaptive_max_pool1d(net["conv7"](torch.cat([overall, joint], 1)), 100)
    network.float()
    return out[0].T.float()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case with every edge that the page names, and what is expected of it."""
    folder = tmp_path_factory.mktemp("made")
    rows = write_clouds(folder / "data")
    write_encoders(folder)
    torch.manual_seed(1)
    network = Dgcnn(K).eval()
    for name, values in network.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            values.copy_(torch.randn_like(values) * 0.1)
    weights = {
        f"state.{name}": v.clone() for name, v in network.state_dict().items() if "num_batches" not in name
    }
    save_file(weights, folder / "weights.safetensors")
    shifted = Dgcnn(K).eval()
    shifted.load_state_dict(network.state_dict())
    shifted.state_dict()["conv7.1.bias"].add_(0.5)
    expected: dict[str, Tensor] = {}
    links = {}
    for where, kept in KEPT.items():
        texts = [text for name in kept for text in CAPTIONS[where][name]]
        links[where] = [
            [row, cloud]
            for row, cloud in enumerate(c for c, name in enumerate(kept) for _ in CAPTIONS[where][name])
        ]
        clouds = []
        for name in kept:
            some = 0 if where.startswith("s3dis") else NUM_POINTS
            taken = (
                farthest(rows[name][:, :3], some)
                if 0 < some < len(rows[name])
                else list(range(len(rows[name])))
            )
            points = nine(rows[name][taken])
            clouds.append(tokens(shifted if name.startswith("Area_2") else network, points))
            if some:
                expected[f"{where}.{name}.fps"] = torch.tensor(taken, dtype=torch.int32)
                expected[f"{where}.{name}.points9"] = torch.from_numpy(points)
        expected[f"{where}.pc"] = torch.stack(clouds)
        expected[f"{where}.link"] = torch.tensor(links[where], dtype=torch.int32)
        for encoder in ("clip", "bert"):
            ids, mask, hidden = states(folder / encoder, texts)
            expected[f"{where}.txt.{encoder.upper()}"] = hidden
            expected |= {f"{where}.{encoder}_ids": ids, f"{where}.{encoder}_mask": mask}
    save_file(expected, folder / "expected.safetensors")
    case = {
        "case": "made", "kind": KIND, "num_points": NUM_POINTS, "k": K, "emb_dims": 1024, "links": links,
        "dgcnn_weights": (
            "weights.safetensors (state.*, cast to float32); used for Elephant and for S3DIS area 1; for S3DIS area 2 "
            "the same weights with 0.5 added to bn7.bias (= conv7.1.bias); no weights for other areas"
        ),
        "tolerance": "links, ids, fps exact; points9 abs 1e-6; features abs 3e-4 + rel 1e-4",
    }  # fmt: skip
    (folder / "case.json").write_text(json.dumps(case))
    return folder


def failures(folder: Path, **changes: Any) -> dict[str, str]:
    """The quantities of the case that fail, after some changes to what it says."""
    case = json.loads((folder / "case.json").read_text()) | changes
    return {q.name: str(q) for q in end_to_end(folder / "case.json", case) if not q.ok}


def test_every_quantity_of_a_made_case_agrees_with_slow_means(made: Path) -> None:
    case = json.loads((made / "case.json").read_text())
    names = [quantity.name for quantity in end_to_end(made / "case.json", case)]
    assert failures(made) == {}
    assert {*load_file(made / "expected.safetensors")} <= {*names}
    assert {"links of elephant.train", "links of s3dis.train"} <= {*names}
    assert len(load_file(made / "expected.safetensors")["elephant.train.txt.CLIP"]) == 6  # an empty one too


@pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded cases are not beside this checkout")
def test_all_recorded_cases_agree() -> None:
    paths = [path for path in SHARED.rglob("*.json") if path.name == "case.json"]
    cases = {path: json.loads(path.read_text()) for path in paths}
    assert cases
    for path, case in cases.items():
        assert [str(quantity) for quantity in KINDS[case["kind"]](path, case) if not quantity.ok] == []


def changed(made: Path, folder: Path, by: dict[str, Tensor | None]) -> Path:
    """A copy of the case in which some tensors are others, or gone; the rest is linked."""
    for path in made.iterdir():
        if path.name != "expected.safetensors":
            (folder / path.name).symlink_to(path)
    tensors: dict[str, Tensor | None] = {**load_file(made / "expected.safetensors"), **by}
    save_file({name: t for name, t in tensors.items() if t is not None}, folder / "expected.safetensors")
    return folder


def test_what_differs_is_named_and_nothing_else(made: Path, tmp_path: Path) -> None:
    recorded = load_file(made / "expected.safetensors")
    touched = {
        "elephant.train.pc": 1e-3, "elephant.test.txt.BERT": 1e-3, "elephant.train.vase.points9": 2e-6,
        "elephant.test.dish.fps": 1, "s3dis.train.link": 1, "elephant.train.clip_ids": 1, "elephant.train.bert_mask": 1,
    }  # fmt: skip
    by: dict[str, Tensor | None] = {}
    for name, amount in touched.items():
        values = recorded[name].clone()
        values.view(-1)[-1] += amount
        by[name] = values
    by["elephant.train.something"] = torch.ones(1)
    found = failures(changed(made, tmp_path, by))
    assert {*found} == {*by} and "not understood" in found["elephant.train.something"]


def test_a_missing_cloud_text_or_link_is_a_failure(made: Path, tmp_path: Path) -> None:
    recorded = load_file(made / "expected.safetensors")
    by: dict[str, Tensor | None] = {
        name: recorded[name][:-1].clone()
        for name in ("elephant.train.pc", "elephant.train.txt.CLIP", "s3dis.train.link")
    }
    found = failures(changed(made, tmp_path, by))
    assert {*found} == {*by} and "shape" in found["elephant.train.pc"]
    links = json.loads((made / "case.json").read_text())["links"]
    assert {*failures(made, links=links | {"elephant.test": [[0, 1]]})} == {"links of elephant.test"}
    assert {*failures(made, links=links | {"zebra.test": [[0, 1]]})} == {"links of zebra.test"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tolerance": "as it comes"}, "'as it comes' is not understood"),
        ({"dgcnn_weights": "some weights"}, "'some weights' is not understood"),
        ({"dgcnn_weights": "weights.safetensors; used for Zebra"}, "'used for Zebra' is not understood"),
        (
            {"dgcnn_weights": "weights.safetensors; for S3DIS area 2 the same weights with a twist"},
            "'for S3DIS area 2 the same weights with a twist' is not understood",
        ),
    ],
)
def test_words_that_are_not_understood_are_quoted(made: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        failures(made, **changes)


def test_other_sizes_than_there_are_fail(made: Path) -> None:
    assert "emb_dims" in failures(made, emb_dims=512)
    assert "elephant.train.vase.fps" in failures(made, num_points=NUM_POINTS - 1)
    assert {"elephant.train.pc", "s3dis.train.pc"} <= {*failures(made, k=K + 1)}
