"""Words of reports and tables for numbers, times, places and ranked items; independent of their sections."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

NOUNS = {"video": "video", "pointcloud": "cloud"}  # kind of the corpus -> noun for an item


def titles(kind: str) -> dict[str, str]:
    """The title of a direction in tables, for instance "Text to cloud"."""
    noun = NOUNS[kind]
    return {"t2v": f"Text to {noun}", "v2t": f"{noun.capitalize()} to text", "both": "Both directions"}


def member(kind: str) -> str:
    """The noun for one ranked item: "item" or "cloud"."""
    return "cloud" if kind == "pointcloud" else "item"


def common_member(kinds: Iterable[str]) -> str:
    """The noun for one item of any of these kinds: "item" where they are several."""
    nouns = {member(kind) for kind in kinds}
    return nouns.pop() if len(nouns) == 1 else "item"


def short_title(direction: str, kind: str) -> str:
    """A direction in three letters: "t2v", or "t2c" where clouds are ranked."""
    return direction.replace("v", NOUNS[kind][0]) if direction != "both" else direction


def counted(number: int, noun: str) -> str:
    """A number with its noun, for instance "1 item", "1,250 items", "2 queries"."""
    if number != 1:
        noun = noun.removesuffix("y") + "ies" if noun.endswith("y") else noun + "s"
    return f"{number:,} {noun}"


def duration(seconds: float) -> str:
    """Seconds in words, for instance "0.4 s", "1 min 35 s", "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def listed(words: list[str]) -> str:
    """Words as a list in a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def plain(value: Any) -> str:
    """A setting as a person would write it: text without quotes, lists with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value in ("", []):
        return "–"
    if isinstance(value, list):
        return ", ".join(plain(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def without_places(value: Any, folder: Path) -> Any:
    """Plain data whose texts name files relative to `folder`, and the home folder `~`.

    A report is sent around: whose machine it was made on is nobody's business.
    """
    if isinstance(value, dict):
        return {key: without_places(entry, folder) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_places(entry, folder) for entry in value]
    if not isinstance(value, str):
        return value
    return value.replace(f"{folder}/", "").replace(f"{Path.home()}/", "~/")
