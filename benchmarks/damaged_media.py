"""Videos damaged at random, in many ways: is each one compressed as it should be, or one named failure?

    python benchmarks/damaged_media.py 1000 --seed 0

Renders a few clips in many containers, makes N files of them by the seed, each with one kind of damage (none, bits
flipped, cut, zeroed, spliced ..., or no video at all), and runs `crossreel stage compress` over all of them. Nothing is
kept. Prints a line a kind: files, compressed, failed, the commonest reason; then the outcomes that are wrong, each with
its file, and the counts as JSON. Wrong is: a healthy file that failed, a file without a video that was compressed, a
file with neither an artifact nor a reason, an artifact whose frames are not as many as were recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from flows.project import open_project
from pipeline.corpus.manifest import Caption, Item, write_manifest
from pipeline.media.video import decode, find_ffmpeg

EXPERIMENT = (
    'corpus = "corpus.jsonl"\nextract = ["compress"]\n[run]\nitem_seconds = 30\nworkers = {workers}\n'
)
CONTAINERS = {  # suffix -> arguments of ffmpeg for its codecs
    ".mp4": ("-c:v", "libx264", "-preset", "ultrafast", "-movflags", "+faststart"),
    ".mov": ("-c:v", "libx264", "-preset", "ultrafast"),
    ".mkv": ("-c:v", "libx264", "-preset", "ultrafast"),
    ".ts": ("-c:v", "libx264", "-preset", "ultrafast"),
    ".avi": ("-c:v", "mpeg4"),
    ".mpg": ("-c:v", "mpeg2video"),
    ".flv": ("-c:v", "flv1"),
    ".webm": ("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8"),
}
SECONDS = 3
HEAD_BYTES = 2000  # where most containers keep what they say of themselves
Chance = random.Random
Made = Callable[[bytes, bytes, Chance], bytes]


def place(content: bytes, chance: Chance, most_share: float = 0.2) -> tuple[int, int]:
    """The two ends of a random stretch of a file, of at most a share of it."""
    length = max(1, int(len(content) * chance.uniform(0.001, most_share)))
    start = chance.randrange(max(1, len(content) - length))
    return start, start + length


def flipped(content: bytes, chance: Chance, within: int) -> bytes:
    """A file with up to 100 bits flipped in its first bytes."""
    out = bytearray(content)
    for _ in range(chance.randint(1, 100)):
        out[chance.randrange(min(within, len(out)))] ^= 1 << chance.randrange(8)
    return bytes(out)


def replaced(content: bytes, chance: Chance, by: Callable[[int], bytes]) -> bytes:
    """A file with a random stretch replaced; `by` gives the bytes for its length."""
    start, end = place(content, chance)
    return content[:start] + by(end - start) + content[end:]


def spliced(content: bytes, other: bytes, chance: Chance) -> bytes:
    """The beginning of one file, and the end of another."""
    return content[: chance.randrange(1, len(content))] + other[chance.randrange(1, len(other)) :]


def archive(content: bytes, other: bytes, chance: Chance) -> bytes:
    """A zip file that holds the video."""
    out = BytesIO()
    with zipfile.ZipFile(
        out, "w", zipfile.ZIP_DEFLATED
    ) as file:  # ffmpeg finds an MPEG stream that is stored plainly
        file.writestr("video.mp4", content)
    return out.getvalue()


DAMAGES: dict[str, Made] = {
    "bits flipped": lambda c, o, r: flipped(c, r, len(c)),
    "bits of the head flipped": lambda c, o, r: flipped(c, r, HEAD_BYTES),
    "cut": lambda c, o, r: c[: r.randrange(1, len(c))],
    "beginning lost": lambda c, o, r: c[r.randrange(1, len(c)) :],
    "stretch zeroed": lambda c, o, r: replaced(c, r, bytes),
    "stretch of noise": lambda c, o, r: replaced(c, r, r.randbytes),
    "stretch lost": lambda c, o, r: replaced(c, r, lambda n: b""),
    "spliced with another": spliced,
    "another behind it": lambda c, o, r: c + o,
    "halves swapped": lambda c, o, r: c[len(c) // 2 :] + c[: len(c) // 2],
}
NO_VIDEO: dict[str, Made] = {
    "empty": lambda c, o, r: b"",
    "noise": lambda c, o, r: r.randbytes(r.randint(1, 20_000)),
    "zeros": lambda c, o, r: bytes(r.randint(1, 20_000)),
    "text": lambda c, o, r: f"no video {r.random()}\n".encode() * r.randint(1, 200),
    "HTML page": lambda c, o, r: f"<!DOCTYPE html><html><body>404 {r.random()}</body></html>".encode(),
    "Git LFS pointer": lambda c, o, r: (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{r.randbytes(32).hex()}\nsize {len(c)}\n".encode()
    ),
    "archive": archive,
    "playlist": lambda c, o, r: f"#EXTM3U\n#EXTINF:{r.random()},\nfile:///etc/passwd\n".encode(),
    "concatenation": lambda c, o, r: f"ffconcat version 1.0\nfile /etc/passwd\n# {r.random()}\n".encode(),
}
KINDS = {"healthy": None, **DAMAGES, **NO_VIDEO}


def rendered(folder: Path, chance: Chance) -> dict[str, list[bytes]]:
    """Healthy clips by suffix, three of each container."""
    out: dict[str, list[bytes]] = defaultdict(list)
    for suffix, codec in CONTAINERS.items():
        for _ in range(3):
            path = folder / f"source{suffix}"
            source = f"testsrc2=duration={SECONDS}:size=96x64:rate=15,hue=h={chance.randrange(360)}"
            command = [
                find_ffmpeg(),
                "-y",
                "-v",
                "error",
                "-f",
                "lavfi",
                "-i",
                source,
                "-pix_fmt",
                "yuv420p",
                *codec,
            ]
            subprocess.run([*command, str(path)], check=True, stdin=subprocess.DEVNULL)
            out[suffix].append(path.read_bytes())
            path.unlink()
    return out


def healthy(content: bytes, suffix: str, folder: Path, number: int) -> bytes:
    """A clip remuxed with a title of its own: no two files of a corpus should be equal."""
    source, target = folder / f"in{suffix}", folder / f"out{suffix}"
    source.write_bytes(content)
    named = ["-metadata", f"title=clip {number}", "-output_ts_offset", f"{number / 1000:.3f}"]
    command = [find_ffmpeg(), "-y", "-v", "error", "-i", str(source), "-c", "copy", *named, str(target)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return target.read_bytes()


def make_corpus(folder: Path, count: int, chance: Chance) -> dict[str, str]:
    """Write the files, their manifest and the experiment; the kind of each item."""
    clips = rendered(folder, chance)
    kinds: dict[str, str] = {}
    items = []
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        suffix = chance.choice(list(CONTAINERS))
        content, other = chance.choice(clips[suffix]), chance.choice(clips[chance.choice(list(CONTAINERS))])
        make = KINDS[kind]
        name = f"{number:04} {kind}"
        data = make(content, other, chance) if make else healthy(content, suffix, folder, number)
        (folder / f"{name}{suffix}").write_bytes(data)
        kinds[name] = kind
        items.append(Item(name, "train", (Caption(f"{number}#0", f"file {number}"),), f"{name}{suffix}"))
    write_manifest(folder / "corpus.jsonl", items)
    return kinds


def outcomes(folder: Path) -> tuple[dict[str, str], dict[str, str], int]:
    """Run the stage: the reason of each item that failed, the trouble of each artifact, and the exit status."""
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "flows.cli", "stage", "compress", "experiment.toml", "--json"],
        cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if ended.returncode not in (0, 3):
        raise SystemExit(f"the run ended with {ended.returncode}:\n{ended.stderr}")
    told = json.loads(ended.stdout)
    failed = {f["name"]: f["reason"] for f in told["stages"][0]["failures"]} | told["unreadable"]
    project = open_project(folder / "experiment.toml")
    state = project.survey()["compress"]
    fp, reader = state.fingerprint.hex, project.store.reader("compress", state.fingerprint.hex)
    made: dict[str, str] = {}
    for item_id, key in project.contents.names("items").items():
        if key in state.places:
            path = project.store.item_file("compress", fp, key, ".mp4")
            frames = sum(len(chunk) for chunk, _ in decode(path, "pyav"))
            recorded = reader.length(key, "time")
            made[item_id] = "" if frames == recorded > 0 else f"{frames} frames, {recorded} recorded"
        elif key in state.failed and item_id not in failed:
            failed[item_id] = state.failed[key].reason  # of an item with the same bytes
    project.store.index.close()
    return failed, made, ended.returncode


def wrong(kind: str, reason: str | None, trouble: str | None) -> str:
    """What is wrong with an outcome; "" if nothing is."""
    if reason is None and trouble is None:
        return "neither compressed nor failed"
    if reason is not None:
        return (
            f"healthy, and failed: {reason}"
            if kind == "healthy"
            else ""
            if reason.strip()
            else "no reason given"
        )
    if kind in NO_VIDEO:
        return "no video, and compressed"
    return trouble or ""


def main() -> None:
    """Print the counts by kind, what is wrong, and all counts as JSON; status 1 if anything is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crossreel-damaged-") as root:
        folder = Path(root)
        kinds = make_corpus(folder, asked.files, random.Random(asked.seed))
        (folder / "experiment.toml").write_text(EXPERIMENT.format(workers=asked.workers), encoding="utf-8")
        began = time.monotonic()
        failed, made, _ = outcomes(folder)
        seconds = time.monotonic() - began
    faults = {n: said for n, kind in kinds.items() if (said := wrong(kind, failed.get(n), made.get(n)))}
    for kind in KINDS:
        names = [name for name, its in kinds.items() if its == kind]
        reasons = Counter(failed[name][:60] for name in names if name in failed)
        commonest = f"  {reasons.most_common(1)[0][0]}" if reasons else ""
        compressed = sum(name in made for name in names)
        print(
            f"{kind:26} {len(names):4} files {compressed:4} compressed {sum(reasons.values()):4} failed{commonest}"
        )
    for name, said in faults.items():
        print(f"WRONG {name}: {said}")
    counts = {"files": len(kinds), "compressed": len(made), "failed": len(failed), "wrong": len(faults)}
    print(json.dumps(counts | {"seconds": round(seconds, 1)}))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
