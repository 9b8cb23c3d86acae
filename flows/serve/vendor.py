"""Brings three.js into `static/vendor/three`: what the viewer of point clouds uses of it, as one module.

Run by whoever takes another release, never by a user: `python -m flows.serve.vendor`. Needs node and npm. The release
and the tool that bundles it are pinned, the package is checked against its digest, and the same input gives the same
bytes, so that `vendor.json` can say what was made.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from pipeline.errors import UserError
from pipeline.store.store import write_json

THREE, ESBUILD = "three@0.187.0", "esbuild@0.28.2"
INTEGRITY = "sha512-Qiu7R+Cmh8CstZsY1uJOSWnVlfo7ZtNLV7mF8Jltk3LB3AtDu9cRZlcnRKkAk8Y4z6KKw35z7Y7Urd7jWY8etA=="
ENTRY = """\
export {
  BufferAttribute, BufferGeometry, Fog, PerspectiveCamera, Points, PointsMaterial, Scene, WebGLRenderer,
} from "three";
export { OrbitControls } from "three/addons/controls/OrbitControls.js";
"""
FOLDER = Path(__file__).parent / "static" / "vendor" / "three"
BUNDLE, LICENCE, RECORD = "three.module.min.js", "LICENSE", "vendor.json"


def main() -> None:
    """Fetch, check, bundle, and write down what came out."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        _npm(work, "pack", "--silent", THREE)
        (package,) = work.glob("*.tgz")
        _require_integrity(package)
        _npm(
            work,
            "install",
            "--silent",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            f"./{package.name}",
            ESBUILD,
        )
        (work / "entry.js").write_text(ENTRY, encoding="utf-8")
        FOLDER.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["node_modules/.bin/esbuild", "entry.js", "--bundle", "--minify", "--format=esm",
             "--legal-comments=inline", "--log-level=warning", f"--outfile={FOLDER / BUNDLE}"],
            cwd=work, check=True,
        )  # fmt: skip
        shutil.copyfile(work / "node_modules" / "three" / LICENCE, FOLDER / LICENCE)
    files = {name: hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() for name in (BUNDLE, LICENCE)}
    write_json(
        FOLDER / RECORD,
        {"package": THREE, "integrity": INTEGRITY, "bundled_by": ESBUILD, "licence": "MIT", "sha256": files},
    )


def _npm(folder: Path, *arguments: str) -> None:
    subprocess.run(["npm", *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def _require_integrity(package: Path) -> None:
    """Raise UserError where the package is not the one that was looked at."""
    found = "sha512-" + base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    if found != INTEGRITY:
        raise UserError(
            f"{THREE} has the digest {found}, not {INTEGRITY}: {json.dumps(package.name)} is not used"
        )


if __name__ == "__main__":
    main()
