"""The page on pretrained files: the advice that `crossreel doctor` gives, as a page."""

from __future__ import annotations

from flows.advice import ADVICE

HEAD = """# Get weights

Extraction stages and methods read pretrained networks. Nothing is downloaded unasked: a setting asks, or you copy a file.
`crossreel doctor` says which files are on this machine, and `crossreel doctor EXPERIMENT` which of them this experiment lacks.

A licence is named here where a source of this project states it; for the others read it where you take the file from. Sizes are
those of the numbers in the network.

Weights enter the fingerprint by the digest of their content: another place or name changes nothing, other weights make everything
again that was made of them. How files are read (no code in them is run, nothing is unpickled):
[weights](experiments.md#weights).
"""
TAIL = """## On a machine without a network

Copy the files on a machine that has one, and set the paths in the experiment file; a relative path begins at the folder of
the experiment file:

```toml
[extractors.clip]
model = "ViT-B/32"
weights = "weights/ViT-B-32.pt"

[trainers.gare]
backbone_weights = "weights/ViT-B-32.pt"
```

A cache of the Hugging Face hub can be copied as it is, with `HF_HOME` pointing at it.
"""


def page() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for one in ADVICE.values():
        also = " and clip_text" if one.stage == "clip" else ""
        rows = {
            "what": one.what, "size": one.size, "licence": one.licence, "place": one.place,
            "with a network": one.online, "without a network": one.offline, "to try things": one.instead,
        }  # fmt: skip
        table = "".join(
            f"| {name} | {words.replace('|', chr(92) + '|')} |\n" for name, words in rows.items() if words
        )
        parts.append(f"## {one.stage}{also}\n\n| | |\n| --- | --- |\n{table}")
    return "\n".join([*parts, TAIL])
