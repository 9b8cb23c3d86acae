"""Writes examples/published/: the experiment file of each published experiment, as `crossreel init` writes it.

A test compares them; run this where a recipe, a setting's comment or the writing itself changed.
"""

from __future__ import annotations

from pathlib import Path

from flows.drafting.published import every_example

FOLDER = Path(__file__).parents[1] / "examples" / "published"

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    texts = dict(every_example())
    for path in FOLDER.glob("*.toml"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"{len(texts)} experiment files in {FOLDER}")
