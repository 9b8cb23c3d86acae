"""Train the small English parser that is shipped as `crossreel-small`, for tests and the demo.

Run `python train.py UD_FOLDER TARGET` with a folder that holds the English Web
Treebank as en_ewt-train.conllu.gz and en_ewt-dev.conllu.gz. A tokenizer, a tagger and a dependency parser
are trained one after the other by stanza's own trainers (about half an hour on one core), without
pretrained vectors, and written as a stanza resources folder with weights in half precision.

Captions are plain sentences in the present tense, often in lower case and without a full stop, which is not
how the treebank's mails and reviews are written. So a share of its sentences is made so, and to these come
sentences that are drawn from a small grammar of captions with the treebank's words: their trees are right,
what they say is not ("a blue office is eating the letter with two dogs").

There is no lemmatizer: the parser learns with lemmas that are all unknown to it, so that stanza's "identity"
serves. Multi-word tokens ("don't") are taken apart: each word has its own characters.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from stanza.models import parser as depparse
from stanza.models import tagger, tokenizer
from stanza.models.depparse.data import DataLoader, InfiniteBatch
from stanza.models.depparse.trainer import Trainer
from stanza.utils.conll import CoNLL
from stanza.utils.datasets import prepare_tokenizer_data

PACKAGE = "small"
SEED = 20
LOWER, PLAIN = 0.5, 0.5  # shares of sentences in lower case, and without their final punctuation
DRAWN = 3000  # sentences of the grammar beside the treebank's
LONGEST = 40  # words of a training sentence; captions are shorter, and long ones cost the most
COMMON = ["--lang", "en", "--shorthand", "en_small", "--no_pretrain", "--device", "cpu", "--seed", str(SEED)]
SMALL = ["--word_emb_dim", "64", "--word_cutoff", "3", "--char_emb_dim", "32", "--char_hidden_dim", "96",
         "--tag_emb_dim", "24", "--transformed_dim", "64", "--dropout", "0.25", "--word_dropout", "0.2",
         "--optim", "adam", "--lr", "0.003", "--beta2", "0.95", "--no_second_optim"]  # fmt: skip

Word = list[str]  # the ten columns of CoNLL-U
Sentence = list[Word]


def read(path: Path) -> Iterator[tuple[bool, Sentence]]:
    """The sentences of a treebank, each with whether it begins a paragraph."""
    new, rows = False, []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("# newpar"):
                new = True
            elif line.strip() and not line.startswith("#"):
                rows.append(line.rstrip("\n").split("\t"))
            elif not line.strip() and rows:
                yield new, apart(rows)
                new, rows = False, []


def apart(rows: list[Word]) -> Sentence:
    """The words of a sentence; those of a multi-word token follow each other without a space."""
    words: Sentence = []
    glued: set[str] = set()
    for row in rows:
        if "-" in row[0]:
            first, last = (int(part) for part in row[0].split("-"))
            glued |= {str(i) for i in range(first, last)}
            if "SpaceAfter=No" in row[9]:
                glued.add(str(last))
        elif "." not in row[0]:
            tight = row[0] in glued or "SpaceAfter=No" in row[9]
            words.append(
                [row[0], row[1], "_", *row[3:5], "_", *row[6:8], "_", "SpaceAfter=No" if tight else "_"]
            )
    return words


def as_caption(sentence: Sentence, draw: random.Random) -> Sentence:
    """The sentence, perhaps in lower case, perhaps without its final punctuation."""
    words = [list(word) for word in sentence]
    if draw.random() < LOWER:
        words = [[word[0], word[1].lower(), *word[2:]] for word in words]
    last = words[-1]
    bare = last[3] == "PUNCT" and len(words) > 1 and all(word[6] != last[0] for word in words)
    if bare and draw.random() < PLAIN:
        words = words[:-1]
        words[-1][9] = "_"
    return words


@dataclass
class Node:
    """A word of a drawn sentence with the words that hang on it."""

    text: str
    upos: str
    xpos: str
    relation: str
    before: list[Node] = field(default_factory=list)
    after: list[Node] = field(default_factory=list)

    def __iter__(self) -> Iterator[Node]:
        for child in self.before:
            yield from child
        yield self
        for child in self.after:
            yield from child

    def sentence(self) -> Sentence:
        """The ten columns of each word."""
        nodes = list(self)
        place = {id(node): str(number) for number, node in enumerate(nodes, start=1)}
        heads = {id(child): place[id(node)] for node in nodes for child in (*node.before, *node.after)}
        return [
            [place[id(n)], n.text, "_", n.upos, n.xpos, "_", heads.get(id(n), "0"), n.relation, "_", "_"]
            for n in nodes
        ]


class Grammar:
    """Captions drawn at random: noun phrases, clauses, fragments, with words that the treebank has often."""

    def __init__(self, sentences: Iterable[Sentence], draw: random.Random) -> None:
        seen = Counter((w[1].lower(), w[4], w[3]) for s in sentences for w in s if w[1].isalpha())
        kinds = {
            "NN": "NOUN",
            "NNS": "NOUN",
            "JJ": "ADJ",
            "VBG": "VERB",
            "VBZ": "VERB",
            "VBP": "VERB",
            "VBN": "VERB",
        }
        self.draw = draw
        self.words = {
            kind: [word for (word, xpos, upos), n in sorted(seen.items()) if n > 2 and (xpos, upos) == pair]
            for kind, pair in ((kind, (kind, upos)) for kind, upos in kinds.items())
        }

    def often(self, share: float) -> bool:
        """True in this share of cases."""
        return self.draw.random() < share

    def word(self, xpos: str, upos: str, relation: str) -> Node:
        """A word of the treebank."""
        return Node(self.draw.choice(self.words[xpos]), upos, xpos, relation)

    def noun(self, relation: str, case: str = "", depth: int = 0, plural: bool | None = None) -> Node:
        """A noun phrase: determiner or number, adjectives, compound, noun, and what may follow it."""
        plural = self.often(0.25) if plural is None else plural
        node = self.word("NNS" if plural else "NN", "NOUN", relation)
        if case:
            node.before.append(Node(case, "ADP", "IN", "case"))
        if plural:
            number = Node(self.draw.choice(["two", "three", "four"]), "NUM", "CD", "nummod")
            node.before += [number] if self.often(0.4) else []
        else:
            node.before.append(Node(self.draw.choice(["a", "a", "the", "one"]), "DET", "DT", "det"))
        for _ in range(self.draw.choice([0, 0, 1])):
            node.before.append(self.word("JJ", "ADJ", "amod"))
        if self.often(0.2):
            node.before.append(self.word("NN", "NOUN", "compound"))
        if depth == 0:
            node.after += self.followers(plural)
        return node

    def followers(self, plural: bool) -> list[Node]:
        """What may follow a noun: a phrase, a clause, another noun."""
        kind = self.draw.random()
        if kind < 0.1:
            return [self.noun("nmod", "of", 1)]
        if kind < 0.2:
            return [self.noun("nmod", self.draw.choice(["in", "on", "with", "at", "near"]), 1)]
        if kind < 0.3:
            return [self.rest(self.word("VBG", "VERB", "acl"))]
        if kind < 0.35:
            verb = self.rest(self.word("VBP" if plural else "VBZ", "VERB", "acl:relcl"))
            verb.before.append(Node("who", "PRON", "WP", "nsubj"))
            return [verb]
        return [self.joined(self.noun("conj", "", 1))] if kind < 0.4 else []

    def joined(self, node: Node) -> Node:
        """With "and" before it."""
        node.before.insert(0, Node("and", "CCONJ", "CC", "cc"))
        return node

    def place(self) -> Node:
        """A prepositional phrase of a verb."""
        cases = [
            "in",
            "on",
            "with",
            "at",
            "into",
            "over",
            "across",
            "through",
            "from",
            "to",
            "around",
            "behind",
        ]
        return self.noun("obl", self.draw.choice(cases), 1)

    def rest(self, verb: Node) -> Node:
        """The verb with what follows it."""
        if self.often(0.6):
            verb.after.append(self.noun("obj", "", 1))
        if self.often(0.5):
            verb.after.append(self.place())
        return verb

    def clause(self) -> Node:
        """Subject and verb: progressive, present or passive; perhaps a second verb, perhaps another clause."""
        plural = self.often(0.25)
        be = Node("are" if plural else "is", "AUX", "VBP" if plural else "VBZ", "aux")
        present = "VBP" if plural else "VBZ"
        form = self.draw.choice(["VBG", "VBG", present, present, "VBN"])
        verb = self.word(form, "VERB", "root")
        subject = self.noun("nsubj:pass" if form == "VBN" else "nsubj", plural=plural)
        if form == "VBN":
            be.relation = "aux:pass"
            verb.after += [self.noun("obl:agent", "by", 1)] if self.often(0.5) else [self.place()]
        else:
            self.rest(verb)
        verb.before += [subject] if form == present else [subject, be]
        if form != "VBN" and self.often(0.2):
            verb.after.append(self.joined(self.rest(self.word(form, "VERB", "conj"))))
        if self.often(0.15):
            verb.after.append(self.rest(self.word("VBG", "VERB", "advcl")))
        return verb

    def caption(self) -> Sentence:
        """A clause, a noun phrase, what a noun is, or what there is."""
        kind, plural = self.draw.random(), self.often(0.25)
        be = Node("are" if plural else "is", "VERB", "VBP" if plural else "VBZ", "root")
        if kind < 0.65:
            return self.clause().sentence()
        if kind < 0.8:
            return self.noun("root").sentence()
        if kind < 0.9:
            be.before, be.after = [Node("there", "PRON", "EX", "expl")], [self.noun("nsubj", plural=plural)]
            return be.sentence()
        be.upos, be.relation = "AUX", "cop"
        what = self.draw.choice([self.word("JJ", "ADJ", "root"), self.noun("root", "in", 1)])
        what.before = [self.noun("nsubj", plural=plural), be, *what.before]
        return what.sentence()


def text_of(sentence: Sentence) -> str:
    """The characters of a sentence."""
    return "".join(word[1] + ("" if "SpaceAfter=No" in word[9] else " ") for word in sentence).strip()


def write(path: Path, paragraphs: list[list[Sentence]]) -> None:
    """CoNLL-U, each lemma seen once, beside plain text and the tokenizer's labels of it."""
    lemma = count()
    blocks = [
        "".join("\t".join([*word[:2], f"lemma{next(lemma)}", *word[3:]]) + "\n" for word in sentence)
        for block in paragraphs
        for sentence in block
    ]
    path.with_suffix(".conllu").write_text("\n".join(blocks) + "\n", encoding="utf-8")
    texts = [" ".join(text_of(s) for s in block) for block in paragraphs]
    path.with_suffix(".txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    names = [str(path.with_suffix(end)) for end in (".txt", ".conllu", ".labels", ".mwt")]
    prepare_tokenizer_data.main([names[0], names[1], "-o", names[2], "-m", names[3]])


def prepare(treebank: Path, work: Path) -> None:
    """Training and development files of the three trainers."""
    draw = random.Random(SEED)
    for split, step in (("train", 1), ("dev", 4)):
        read_all = [
            pair for n, pair in enumerate(read(treebank / f"en_ewt-{split}.conllu.gz")) if n % step == 0
        ]
        paragraphs: list[list[Sentence]] = [[]]
        for new, sentence in read_all:
            if len(sentence) > LONGEST:
                continue
            if paragraphs[-1] and (new or paragraphs[-1][-1][-1][3] != "PUNCT"):  # no stop, no next sentence
                paragraphs.append([])
            paragraphs[-1].append(as_caption(sentence, draw) if split == "train" else sentence)
        if split == "train":
            grammar = Grammar((sentence for _, sentence in read_all), draw)
            paragraphs += [[grammar.caption()] for _ in range(DRAWN)]
        write(work / split, paragraphs)


def train_tokenizer(work: Path, steps: int) -> None:
    """The tokenizer, which also finds the sentences."""
    tokenizer.main([
        "--txt_file", str(work / "train.txt"), "--label_file", str(work / "train.labels"),
        "--dev_txt_file", str(work / "dev.txt"), "--dev_label_file", str(work / "dev.labels"),
        "--dev_conll_gold", str(work / "dev.conllu"), "--conll_file", str(work / "tokens.conllu"),
        "--mwt_json_file", str(work / "train.mwt"), "--no_use_mwt",
        "--lang", "en", "--shorthand", "en_small", "--device", "cpu", "--seed", str(SEED),
        "--steps", str(steps), "--save_dir", str(work), "--save_name", "tokenize.pt",
    ])  # fmt: skip


def train_tagger(work: Path, steps: int) -> None:
    """The tagger, and both files with its tags, which the parser learns on."""
    files = ["--train_file", str(work / "train.conllu"), "--save_dir", str(work), "--save_name", "pos.pt"]
    tagger.main([*COMMON, *SMALL, *files, "--eval_file", str(work / "dev.conllu"), "--hidden_dim", "96",
                 "--num_layers", "1", "--batch_size", "40", "--deep_biaff_hidden_dim", "96",
                 "--composite_deep_biaff_hidden_dim", "48", "--max_steps", str(steps), "--eval_interval", "200",
                 "--fix_eval_interval"])  # fmt: skip
    for name in ("train", "dev"):
        tagger.main([*COMMON, *files, "--mode", "predict", "--eval_file", str(work / f"{name}.conllu"),
                     "--output_file", str(work / f"{name}-tagged.conllu")])  # fmt: skip


def train_parser(work: Path, steps: int) -> None:
    """The dependency parser, on the treebank's own tags."""
    depparse.main([*COMMON, *SMALL, "--train_file", str(work / "train.conllu"),
                   "--eval_file", str(work / "dev.conllu"), "--save_dir", str(work), "--no_checkpoint",
                   "--hidden_dim", "128", "--num_layers", "2", "--deep_biaff_hidden_dim", "64",
                   "--deep_biaff_output_dim", "64", "--no_xpos", "--no_ufeats", "--batch_size", "1200",
                   "--max_steps", str(steps), "--eval_interval", "100",
                   "--save_name", "depparse.pt"])  # fmt: skip


def polish_parser(work: Path, steps: int) -> None:
    """Some steps more, on the tags that the tagger gives, and what comes of it on such tags.

    Not by `--continue_from`: that numbers the tags anew by how often they are, which is not the same here.
    """
    trainer = Trainer.load(str(work / "depparse.pt"), None, args={"lr": 0.001}, device="cpu")
    document = CoNLL.conll2doc(input_file=str(work / "train-tagged.conllu"))
    batches = InfiniteBatch(
        DataLoader(document, 1200, trainer.args, None, vocab=trainer.vocab, evaluation=False)
    )
    for step in range(steps):
        loss, _ = trainer.update(batches.next_batch(), eval=False)
        if step % 20 == 0:
            print(f"polishing, step {step} of {steps}: loss {loss:.3f}", flush=True)
    trainer.save(str(work / "polished.pt"))
    depparse.main([*COMMON, "--mode", "predict", "--eval_file", str(work / "dev-tagged.conllu"),
                   "--output_file", str(work / "parsed.conllu"), "--save_dir", str(work),
                   "--save_name", "polished.pt"])  # fmt: skip


def halved(value: Any) -> Any:
    """The same nest of plain data, its float tensors in half precision; stanza widens them as it loads."""
    if isinstance(value, torch.Tensor):
        return value.half() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: halved(part) for key, part in value.items()}
    return value


def publish(work: Path, target: Path) -> None:
    """A stanza resources folder with the three models, and the list of what is in it."""
    kinds = {"tokenize": "tokenize.pt", "pos": "pos.pt", "depparse": "polished.pt"}
    for kind, trained in kinds.items():
        state = torch.load(work / trained, map_location="cpu", weights_only=True)
        state = {key: part for key, part in state.items() if "optimizer" not in key and "history" not in key}
        state["config"] = {k: v for k, v in state["config"].items() if str(work) not in str(v)}
        path = target / "en" / kind / f"{PACKAGE}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(halved(state), path)
    package = {kind: PACKAGE for kind in kinds} | {"lemma": "identity"}
    english: dict[str, Any] = {kind: {PACKAGE: {}} for kind in kinds}
    english |= {"lang_name": "English", "packages": {"default": package}}
    (target / "resources.json").write_text(json.dumps({"en": english}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Prepare, train, publish."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("treebank", type=Path, help="folder of en_ewt-{train,dev}.conllu.gz")
    arguments.add_argument("target", type=Path, help="folder to write")
    arguments.add_argument(
        "--work", type=Path, default=Path("small-parser-work"), help="for files on the way"
    )
    arguments.add_argument("--steps", type=int, default=1600, help="training steps of the parser")
    given = arguments.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    prepare(given.treebank, given.work)
    train_tokenizer(given.work, 5 * given.steps // 2)
    train_tagger(given.work, given.steps)
    train_parser(given.work, given.steps)
    polish_parser(given.work, given.steps // 5)
    publish(given.work, given.target)


if __name__ == "__main__":
    main()
