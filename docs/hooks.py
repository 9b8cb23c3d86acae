"""What mkdocs does beside building docs/: pages made from the program, and links that lead out of docs/.

Pages of the reference are made when the site is built, so that none of them can differ from the program.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from reference_pages import library, measures, methods, settings, verbs, weights

ROOT = Path(__file__).parents[1]
GENERATED = {
    "reference/command-line.md": verbs.page,
    "reference/settings.md": settings.page,
    "reference/metrics.md": measures.page,
    "reference/methods.md": methods.methods,
    "reference/library.md": library.page,
    "hardware.md": methods.hardware,
    "papers.md": methods.papers,
    "weights.md": weights.page,
}
COPIED = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md"}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)")


def generated() -> dict[str, str]:
    """The text of every page that no file of docs/ holds, by its path in the site."""
    made = {path: page() for path, page in GENERATED.items()}
    return made | {path: (ROOT / name).read_text(encoding="utf-8") for path, name in COPIED.items()}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    for path, text in generated().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    """Replace a link out of docs/ by the path in the source tree, or by the page that was copied from there."""
    copied = page.file.src_uri in COPIED
    folder = ROOT if copied else (ROOT / "docs" / page.file.src_uri).parent
    return LINK.sub(lambda found: _link(found, folder, page.file.src_uri, copied), markdown)


def _link(found: re.Match[str], folder: Path, page: str, copied: bool) -> str:
    words, target, anchor = found[1], found[2], found[3] or ""
    path = (folder / target).resolve()
    if path.is_relative_to(ROOT / "docs"):
        inside = path.relative_to(ROOT / "docs").as_posix()
        return f"[{words}]({inside}{anchor})" if copied else found[0]
    if not path.is_relative_to(ROOT):
        return found[0]
    name = path.relative_to(ROOT).as_posix()
    for made, source in COPIED.items():
        if source == name:
            return f"[{words}]({'../' * page.count('/')}{made}{anchor})"
    return f"{words} (`{name}`)" if words.strip("`") != name else f"`{name}`"
