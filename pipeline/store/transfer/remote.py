"""The remote side of a transfer: objects below a URL that fsspec can open, and the errors they can raise."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import UserError
from pipeline.store.transfer.entry import MOST_ENTRY_BYTES, Where

EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
}  # protocol -> the extra of crossreel that installs its package
WHOLE_PUTS = {
    "s3",
    "s3a",
    "gs",
    "gcs",
    "abfs",
    "az",
    "memory",
}  # protocols where an object appears complete or not at all
PART_BYTES = 16 << 20
PUT_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "chunksize": PART_BYTES,
        "max_concurrency": 2,
    },  # the default of s3fs keeps ten parts of 50 MB in memory
    "s3a": {"chunksize": PART_BYTES, "max_concurrency": 2},
    "gs": {"chunksize": PART_BYTES},
    "gcs": {"chunksize": PART_BYTES},
}
TROUBLES = {  # exceptions of the packages besides OSError; looked up only if the package is loaded
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "aiohttp": ("ClientError",),
    "gcsfs.retry": ("HttpError",),
    "google.auth.exceptions": ("GoogleAuthError",),
    "paramiko": ("SSHException",),
}
Moved = Callable[[int], None]  # is called with the number of bytes transferred since the last call


class RemoteTrouble(Exception):
    """The remote side does not answer, refuses a request, or lacks an object that it announced."""


class Remote:
    """Objects below a URL. Every method may be called from several threads."""

    def __init__(self, fs: Any, root: str, protocol: str, url: str) -> None:
        self.fs, self.root, self.protocol, self.url = fs, root.rstrip("/"), protocol, url

    @classmethod
    def open(cls, url: str, endpoint_url: str | None = None) -> Remote:
        """Open the place that a URL names. Raises UserError for an invalid URL or a missing package."""
        protocol = urlsplit(url).scheme if "://" in url else "file"
        if "::" in url or urlsplit(url).password:
            raise UserError(
                f"the URL {url.rpartition('@')[2]!r} chains file systems or holds a password; name one place, "
                "and give credentials in the environment"
            )
        options: dict[str, Any] = {"auto_mkdir": True} if protocol == "file" else {}
        if endpoint_url is not None:
            if EXTRAS.get(protocol) != "s3":
                raise UserError(f"--endpoint-url is for s3:// URLs, not {url!r}")
            options["client_kwargs"] = {"endpoint_url": endpoint_url}
        from fsspec.core import url_to_fs  # this import takes 0.1 s, which other verbs should not pay

        try:
            fs, root = url_to_fs(url, **options)
        except ImportError as error:
            extra = EXTRAS.get(protocol)
            hint = f'`pip install "crossreel[{extra}]"`' if extra else str(error)
            raise UserError(f"{url} needs a package that is not installed: {hint}") from None
        except (ValueError, OSError) as error:
            raise UserError(f"the URL {url!r} cannot be opened: {error}") from None
        return cls(fs, root, protocol, url.rstrip("/"))

    @contextmanager
    def _speaking(self, path: str) -> Iterator[None]:
        """Turn every error of the file system into a RemoteTrouble that names the object."""
        try:
            yield
        except FileNotFoundError:
            raise RemoteTrouble(f"{self.url}/{path} is not there") from None
        except _troubles() as error:
            reason = str(error).strip() or type(error).__name__
            raise RemoteTrouble(f"{self.url}/{path} cannot be used: {reason}") from error

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}"

    def entries(self) -> dict[Where, int]:
        """Return every published segment and folder with the bytes of its entry.

        Raises UserError if the remote side does not answer.
        """
        try:
            with self._speaking("entries"):
                self.fs.invalidate_cache()
                listed = self.fs.find(self._full("entries"), detail=True)
        except RemoteTrouble as trouble:
            raise UserError(str(trouble)) from None
        sizes = {Where.of(path[len(self.root) + 1 :]): int(info["size"]) for path, info in listed.items()}
        return {where: size for where, size in sizes.items() if where is not None}

    def read(self, path: str, size: int) -> bytes:
        """Return the content of a small object of `size` bytes."""
        if size > MOST_ENTRY_BYTES:
            raise RemoteTrouble(f"{self.url}/{path} has {size} bytes, which no entry has")
        return self.part(path, 0, size)

    def part(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes `start` to `stop` of an object; fewer if the object is shorter."""
        if start == stop:
            return b""
        with self._speaking(path):
            return bytes(self.fs.cat_file(self._full(path), start=start, end=stop))

    def size(self, path: str) -> int | None:
        """Return the size of an object in bytes; None if there is no such object."""
        with self._speaking(path):
            try:
                return int(self.fs.info(self._full(path))["size"])
            except FileNotFoundError:
                return None

    def put(self, local: Path, path: str, moved: Moved) -> None:
        """Upload a file. An incomplete upload is never visible under `path`."""
        from fsspec.callbacks import Callback

        reported = [0]

        class Reporter(Callback):
            def relative_update(self, inc: int = 1) -> None:
                reported[0] += inc
                moved(inc)

        size = local.stat().st_size
        with self._speaking(path), self._aside(path) as target:
            self.fs.put_file(str(local), target, callback=Reporter(), **PUT_OPTIONS.get(self.protocol, {}))
        moved(size - reported[0])  # some file systems report no progress

    def write(self, path: str, content: bytes) -> None:
        """Upload a small object. An incomplete upload is never visible under `path`."""
        with self._speaking(path), self._aside(path) as target:
            self.fs.pipe_file(target, content)

    def remove(self, path: str) -> None:
        """Remove an object."""
        with self._speaking(path):
            self.fs.rm_file(self._full(path))

    @contextmanager
    def _aside(self, path: str) -> Iterator[str]:
        """Yield the path to write an object to.

        It is a temporary path, renamed at the end, unless the protocol never shows incomplete objects.
        """
        target = self._full(path)
        if self.protocol in WHOLE_PUTS:
            yield target
            return
        aside = self._full(f"aside/{uuid.uuid4().hex}")
        for folder in (aside, target):
            self.fs.makedirs(folder.rpartition("/")[0], exist_ok=True)
        try:
            yield aside
            self.fs.mv(aside, target)
        except BaseException:
            with contextlib.suppress(OSError):
                self.fs.rm_file(aside)
            raise


def _troubles() -> tuple[type[Exception], ...]:
    """Return the exception types that file systems can raise, including those of the loaded packages."""
    kinds: list[type[Exception]] = [OSError, NotImplementedError]
    for module, names in TROUBLES.items():
        if module.partition(".")[0] in sys.modules:
            with contextlib.suppress(ImportError):
                kinds += [getattr(importlib.import_module(module), name) for name in names]
    return tuple(kinds)


def as_json(value: Any) -> bytes:
    """Return compact JSON with sorted keys, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
