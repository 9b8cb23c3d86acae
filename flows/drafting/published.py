"""The experiment file of a published experiment: every setting with its value, its meaning, and where it is from.

Settings that the recipe gives stand behind a `#`: a value that is written out would stay when the recipe, or its
trajectory, is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.drafting.explanations import explanations
from flows.drafting.lines import Line, Table, text
from flows.graph import EVERY_EXTRACTOR
from pipeline.corpus.importers.published import PAPERS
from pipeline.errors import UserError, nearest
from pipeline.settings import Tree
from trainers.recipes import STABLE, PublishedRecipe, Trajectory, dataset_name, every_recipe, protocol_name
from trainers.registry import METHODS
from trainers.stages import EvaluateParams

SPOKEN = {
    "release": "run with the authors' own command or configuration",
    "paper": "built from the paper's words; the authors published no command for it",
    "command published, cannot run": "the authors' command is published, and their code fails on it",
    "none": "nobody published how; the settings are ours",
}
RELEASE: Trajectory = "release"
OF_TRAINING = {  # settings that decide nothing where nothing is trained
    "base_encoder", "batch_size", "lr", "coef_lr", "warmup_proportion", "weight_decay", "max_grad_norm", "clip_norm",
    "encoder_grad_scale", "freeze_layer_num", "mask_same_video", "select_by",
}  # fmt: skip
COLLECTIONS = {  # of MS-SL: the names of its features of videos and of captions
    "tvr": ("i3d_resnet", "roberta_tvr_query_feat"),
    "activitynet": ("i3d", "roberta_activitynet_query_feat"),
    "charades": ("i3d_rgb_lgi", "roberta_charades_query_feat"),
}
WEIGHTS_FILES = {  # networks whose weights are a file of the user's, by data set ("" for any) and stage
    ("", "vgg16"): ("vgg16.npy", "tensorflow-vgg's conversion of the Caffe network; a file of yours"),
    ("elephant", "dgcnn"): ("DGCNN_best_model_scannet.pth", "DGCNN trained on ScanNet; a file of yours"),
    ("s3dis", "dgcnn"): (
        "dgcnn_semseg_s3dis_area{area}.t7",
        "DGCNN trained on S3DIS, for each area the network that has not seen it; files of yours",
    ),
}


@dataclass(frozen=True)
class Draft:
    """What an experiment file of a published row says besides the row: its files, and the validation videos.

    features: the imported stages of videos and of captions, where features are read that somebody else extracted.
    name: of the file, where it is not the usual one.
    """

    row: PublishedRecipe
    corpus: str
    store: str = "store"
    val: str = PAPERS
    trajectory: Trajectory = "release"
    features: tuple[str, str] | None = None
    name: str = ""


def find_row(name: str) -> PublishedRecipe:
    """The row called METHOD/RECIPE. Raises UserError with the nearest one."""
    rows = {f"{row.method}/{row.name}": row for row in every_recipe()}
    for row in every_recipe():
        rows |= {f"{row.method}/{alias}": row for alias in row.aliases}
    if name not in rows:
        raise UserError(
            f"there is no experiment {name!r} (`crossreel init --list` shows all); {nearest(name, rows)}"
        )
    return rows[name]


def usual_val(row: PublishedRecipe) -> str:
    """What --val is unless it is given: the test split, as the papers chose their epoch, but for a row that did not."""
    return "" if row.selection.split == "val" else PAPERS


def manifest_name(row: PublishedRecipe, val: str) -> str:
    """The name of the manifest that an import under a row's protocol gets, for instance "msrvtt-1k-A-papers.jsonl"."""
    parts = [row.dataset, row.protocols[0], row.captions, val if val in ("", PAPERS) else f"val{val}"]
    return "-".join(part for part in parts if part) + ".jsonl"


def features_manifest(row: PublishedRecipe) -> str:
    """The name of the manifest that the published features of a row bring."""
    return f"{row.dataset}-features.jsonl"


def experiment_name(row: PublishedRecipe) -> str:
    """The name of a row's experiment file."""
    return f"{row.method}-{row.name}.toml"


def written(draft: Draft) -> str:
    """The experiment file of a published row."""
    row, beside = draft.row, _zero_shot(draft.row)
    rows = [beside, row] if beside else [row]
    tables = [_top(draft, rows)]
    tables += _extractors(rows, draft)
    for each in rows:
        tables.append(_method(each, draft))
    tables.append(evaluation())
    return text(list(_head(draft)), tables)


def _head(draft: Draft) -> Iterator[str]:
    row, name = draft.row, draft.name or experiment_name(draft.row)
    title = f"{row.method} on {protocol_name(row)}"
    yield f"{title}: a published experiment." if row.published else f"{title}, which nobody published."
    yield (
        f"Source: {row.source}; {SPOKEN[row.status]}."
        if row.source
        else f"{SPOKEN[row.status].capitalize()}."
    )
    if row.note:
        yield f"Note: {row.note}."
    for choice in row.free:
        yield f"Left open by the source: {choice}."
    yield from _sizes(row)
    if row.imported and not draft.features:
        yield f"Not the published features ({row.backbone}), which --features takes: here CLIP's are extracted."
    yield ""
    if draft.features:
        yield f"  crossreel init {row.method}/{row.name} --features path/to/{row.dataset}   wrote this file"
    else:
        yield f"  crossreel init {row.method}/{row.name} --annotations annotations --media media   wrote this file"
    yield f"  crossreel plan {name}   says what a run would do, and what this machine lacks"
    yield f"  crossreel run {name}"
    yield "Settings behind a # are those of the recipe: remove the # to set another value."


def _sizes(row: PublishedRecipe) -> Iterator[str]:
    """The published sizes of the splits, where the source states them."""
    parts = []
    for split in ("train", "val", "test"):
        size = getattr(row, split)
        numbers = [
            f"{count:,} {noun}"
            for count, noun in ((size.items, "items"), (size.captions, "captions"))
            if count
        ]
        parts += [f"{split} {' and '.join(numbers)}"] if numbers else []
    if parts:
        yield f"Published sizes: {'; '.join(parts)}."


def _top(draft: Draft, rows: Sequence[PublishedRecipe]) -> Table:
    row = draft.row
    methods: list[str] = list(dict.fromkeys(each.method for each in rows))
    first = " clip4clip, zero-shot, is to be looked at first" if len(methods) > 1 else ""
    return Table(lines=[
        Line("corpus", draft.corpus, f"the manifest: {protocol_name(row)}{_validated(draft)}"),
        Line("store", draft.store, "the folder of all that is made; experiments share what is the same in them"),
        Line("methods", methods, f"trained, evaluated and compared in this order;{first}" if first
             else "trained, evaluated and compared"),
    ])  # fmt: skip


def _validated(draft: Draft) -> str:
    """Which videos choose the epoch, and whether the paper did so too."""
    row, val = draft.row, draft.val
    if draft.features:
        return "; the epoch is chosen on the split `val` of the collection"
    if val == PAPERS:
        as_paper = " as its authors did" if row.selection.split == "test" else ""
        return f"; the epoch is chosen on the test split{as_paper}" if row.trained else ""
    held = "training videos that are held out" if val else "its validation videos"
    if row.selection.split == "test":
        return f"; the epoch is chosen on {held}, not on the test split as its authors did"
    return f"; the epoch is chosen on {held}"


def _zero_shot(row: PublishedRecipe) -> PublishedRecipe | None:
    """The row of zero-shot CLIP on the same data, which shows whether everything before a training is right."""
    if row.method == "clip4clip" or "clip" not in row.networks or row.settings.get("mode") != "finetune":
        return None
    return next(
        (
            each
            for each in every_recipe()
            if each.method == "clip4clip"
            and not each.trained
            and each.dataset == row.dataset
            and row.protocols[0] in each.protocols
        ),
        None,
    )


def _extractors(rows: Sequence[PublishedRecipe], draft: Draft) -> Iterator[Table]:
    """The networks of the stages that extract, and what the recipe sets of them."""
    networks: dict[str, Tree] = {}
    given: dict[str, Tree] = {}
    for row in rows:
        if (
            row.settings.get("mode") != "finetune" and not draft.features
        ):  # else the towers are the method's own
            networks |= row.networks
        given |= row.extractors
        if row.method == "h2arn":
            networks |= {"dgcnn": {}}
    for stage in dict.fromkeys([*networks, *given]):
        words = explanations(EVERY_EXTRACTOR.find(stage).settings)
        lines: list[Line | str] = [
            Line(key, value, words.get(key, "")) for key, value in networks.get(stage, {}).items()
        ]
        lines += [
            Line(key, value, words.get(key, ""), given=True) for key, value in given.get(stage, {}).items()
        ]
        file = WEIGHTS_FILES.get((rows[-1].protocols[0], stage)) or WEIGHTS_FILES.get(("", stage))
        lines += [Line("weights", *file)] if file else []
        yield Table(f"extractors.{stage}", lines=lines)


def _method(row: PublishedRecipe, draft: Draft) -> Table:
    own = row is draft.row
    trajectory: Trajectory = draft.trajectory if own else RELEASE
    model, settings = METHODS.find(row.method).config, settings_of(row, trajectory)
    words = explanations(model)
    table = Table(f"trainers.{row.method}", row.note if not own else "")
    table.lines.append(Line("recipe", row.name, f"gives the settings below: {_given_by(row)}"))
    if settings_of(row, RELEASE) != settings_of(row, STABLE):
        table.lines.append(Line(
            "trajectory", draft.trajectory if own else RELEASE,
            f"{RELEASE}: the authors' precision and gradients; {STABLE}: float32 and true gradients, as we recommend",
        ))  # fmt: skip
    table.lines += _selection(row, settings, words) if row.trained else []
    if row.networks.get("clip") and row.settings.get("mode") == "finetune":
        table.lines.append(
            Line("backbone_weights", row.networks["clip"]["weights"], words["backbone_weights"])
        )
    if draft.features and own:
        for key, stage in zip(("video_features", "text_features"), draft.features, strict=True):
            table.lines.append(Line(key, stage, words[key]))
    table.lines += [
        Line(key, value, words.get(key, ""), given=True)
        for key, value in settings.items()
        if key not in _keys(table)
    ]
    return table


def _keys(table: Table) -> set[str]:
    """The settings that a table has already."""
    return {line.key for line in table.lines if isinstance(line, Line)}


def settings_of(row: PublishedRecipe, trajectory: Trajectory) -> Tree:
    """The settings of a row that decide something: those of training only where something is trained."""
    return {key: v for key, v in row.filled(trajectory).items() if row.trained or key not in OF_TRAINING}


def _given_by(row: PublishedRecipe) -> str:
    return f"{dataset_name(row.dataset)}, {row.source}" if row.published else "ours, nobody published any"


def _selection(row: PublishedRecipe, settings: Mapping[str, Any], words: Mapping[str, str]) -> Iterator[Line]:
    """The figure that chose the epoch, unless the recipe gives it."""
    if row.selection.figure and "select_by" not in settings:
        yield Line("select_by", row.selection.figure, f"{words['select_by']}; as its authors did")


def evaluation() -> Table:
    """The settings of the evaluation that users change most."""
    words, usual = explanations(EvaluateParams), EvaluateParams()
    return Table("evaluate", lines=[
        Line("split", usual.split, "the split whose captions and items are ranked"),
        Line("directions", usual.directions, words["directions"]),
        Line("v2t_rank", usual.v2t_rank, f"of an item with several captions; {words['v2t_rank']}"),
    ])  # fmt: skip


def every_example() -> Iterator[tuple[str, str]]:
    """The name and text of the experiment file of every published row, with the usual options."""
    for row in every_recipe():
        if not row.published:
            continue
        if row.imported:
            videos, captions = COLLECTIONS[row.dataset]
            features = (f"import-{videos}", f"import-{captions}")
            draft = Draft(row, features_manifest(row), features=features)
        else:
            val = usual_val(row)
            draft = Draft(row, manifest_name(row, val), val=val)
        yield experiment_name(row), written(draft)
