"""The web application: what it answers, what it refuses, and what it costs; through real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import uvicorn
from numpy.typing import NDArray
from PIL import Image

from flows.project import Project, open_project
from flows.results.report.frames import FRAMES
from flows.results.report.shapes import AZIMUTHS
from flows.search.calibration import Calibration
from flows.search.hits import CaptionHit, Hit, Ranked, Scale
from flows.search.query import MOST_CHARACTERS
from flows.serve import safety, searching, uploads, vendor
from flows.serve.app import STATIC, application, caption_at
from flows.serve.catalogue import Catalogue, Searchable, Split
from flows.serve.durations import seconds_of
from flows.serve.lifecycle import Address, bounded, prepare
from flows.serve.look_site import LookSite
from flows.serve.media import Gallery, Remembered, Strip
from flows.serve.memory import FIRST_GUESS_BYTES, MARGIN
from flows.serve.query_site import QuerySite
from flows.serve.ranks.tables import Tables
from flows.serve.report_site import ReportSite
from flows.serve.safety import HEADERS, LOOPBACK_NAMES, MOST_TARGET_BYTES, allowed_hosts
from flows.serve.searching import MOST_WAITING, Searchers, TooSlow
from pipeline.child import ChildDied
from pipeline.corpus.manifest import Caption, Item, write_manifest
from pipeline.errors import ItemError, UserError
from pipeline.store.fingerprint import Fingerprint

SERVE = "import typer; from flows.commands.serve import serve; typer.run(serve)"
EXTRACT = (
    'corpus = "corpus.jsonl"\nextract = ["{stage}"]\n[extractors.points]\nsample = 64\n[run]\nworkers = 1\n'
)
UNKNOWN = "0" * 32


@dataclass
class FakeSearcher:
    """Stands for a searcher: finds all items in order; the text "wait" blocks until `go` is set."""

    keys: list[str]
    go: threading.Event = field(default_factory=threading.Event)
    closed: bool = False
    texts: list[str] = field(default_factory=list)
    files: list[tuple[Path, bytes]] = field(default_factory=list)
    warmed: int = 0
    pid: int | None = None

    def warm(self) -> None:
        self.warmed += 1

    def rank(self, text: str, top: int = 10, first: int = 1, item: str = "") -> Ranked:
        self.texts.append(text)
        if text == "wait":
            self.go.wait(60)
        if text == "die":
            raise ChildDied("SIGKILL in /a/folder")
        every = [Hit(n + 1, f"item {n}", key, 0.5, (text,), (0.5, 1.0)) for n, key in enumerate(self.keys)]
        shown = every[first - 1 : first - 1 + top]
        right = tuple(every[2:3]) if text == "a clip" else ()
        asked = next((hit for hit in every if hit.key == item), None)
        scale = Scale(0.0, 0.5, 0.25, (1, len(every) - 1))
        return Ranked(tuple(shown), right, asked, len(every), scale, 0.5 if len(shown) < len(every) else None)

    def search_media(self, path: Path, top: int = 10) -> list[CaptionHit]:
        self.files.append((path, path.read_bytes()))
        if self.files[-1][1].startswith(b"broken"):
            raise ItemError("upload", f"ffmpeg: {path}: it is no video")
        return [CaptionHit(1, "clip00#0", "a clip", "1" * 32, 0.5, "clip00", self.keys[0])]

    def calibrate(self) -> Calibration:
        scores = np.arange(2 * len(self.keys), dtype=np.float32).reshape(2, -1) % 5
        return Calibration("train", scores, np.sort(scores.max(1)))

    caption_count = 6

    def own_captions(self, item: str) -> list[CaptionHit]:
        return [
            CaptionHit(place, f"c{place}", f"caption {place}", "1" * 32, 0.5, "x", item) for place in (2, 5)
        ]

    @property
    def item_keys(self) -> list[str]:
        return self.keys

    def explain(self, text: str, keys: list[str]) -> dict[str, NDArray[Any]]:
        return {"clip_scores": np.array([[0.123456789, np.nan]], np.float32), "frame_count": np.array([3]),
                "long": np.zeros((1, 5000), np.float32)}  # fmt: skip

    def close(self) -> None:
        self.closed = True


@dataclass
class Site:
    """A server in a thread of this process."""

    port: int
    project: Project
    searcher: FakeSearcher

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return self.searcher.keys[0]

    def get(self, path: str, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.get(self.url + path, headers=named, timeout=30)

    def raw(self, request: bytes, seconds: float = 10) -> bytes:
        """What comes back for these very bytes, until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(request)
            out = b""
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    out += part
        return out

    def line(self, target: str, host: str | None = None) -> bytes:
        """A request for a target that no client library would send as it is."""
        name = f"127.0.0.1:{self.port}" if host is None else host
        return self.raw(
            f"GET {target} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode("latin-1")
        )


def extracted(folder: Path, stage: str, media: list[str]) -> Project:
    kind = "pointcloud" if stage == "points" else "video"
    items = [
        Item(Path(name).stem, "test", (Caption(f"{name}#0", f"this is {name}"), Caption(f"{name}#1", "a clip")),
             name, kind=kind)
        for name in media
    ]  # fmt: skip
    write_manifest(folder / "corpus.jsonl", items)
    (folder / "experiment.toml").write_text(EXTRACT.format(stage=stage))
    project = open_project(folder / "experiment.toml")
    runner = project.runner()
    try:
        runner.bring_up_to_date(stage)
    finally:
        runner.close()
    return project


def lengths(keys: Collection[str]) -> NDArray[np.float32]:
    return np.ones(len(keys), np.float32)


@contextlib.contextmanager
def served(project: Project) -> Iterator[Site]:
    searcher = FakeSearcher(list(project.contents.items()))
    methods = (
        Searchable("one", ("test", "val")),
        Searchable("two", ("test",)),
        Searchable("three", missing="no"),
    )
    catalogue = Catalogue("trial", methods, (Split("test", 3, 6, ("a clip",)), Split("val", 0, 0, ())))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        gallery, searchers = Gallery(project, project.survey()), Searchers(lambda *name: searcher)  # type: ignore[arg-type,return-value]
        tables = Tables(project.store, project.contents, {}, lengths, {}, project.experiment.path.parent)
        report = ReportSite(project.store, project.experiment.name)
        looking = LookSite(catalogue, gallery, searchers, tables)
        more = [route for one in (QuerySite(tables, "test"), looking, report) for route in one.routes]
        app = application(
            catalogue, gallery, searchers, allowed_hosts(LOOPBACK_NAMES, port), more, lambda: report.exists
        )
        server = uvicorn.Server(bounded(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        site = Site(port, project, searcher)
        while not server.started:
            time.sleep(0.01)
        yield site
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
    assert searcher.closed or not searcher.texts, "ending the server closes its searchers"


@pytest.fixture(scope="module")
def site(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("videos")
    names = ["clip00.mp4", "clip01.mp4", "clip02.mp4"]
    for name in names:
        (folder / name).write_bytes((rendered / name).read_bytes())
    with served(extracted(folder, "compress", names)) as site:
        yield site


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("clouds")
    for seed in range(2):
        drawn = np.random.default_rng(seed)
        rows = np.hstack([drawn.normal(size=(200, 3)), drawn.integers(0, 256, (200, 3))])
        np.savetxt(folder / f"cloud{seed}.txt", rows)
    with served(extracted(folder, "points", ["cloud0.txt", "cloud1.txt"])) as site:
        yield site


# what it answers --------------------------------------------------------------------------------------


def test_the_page_and_what_it_loads_come_from_this_server_alone(site: Site) -> None:
    page = site.get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    loaded = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text)
    assert len(loaded) >= 3
    for path in loaded:
        assert site.get(path).status_code == 200, path
    ours = [path for path in STATIC.glob("*.*") if path.suffix in (".html", ".js", ".css")]
    for path in ours:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text, path.name
        assert "innerHTML" not in text and " style=" not in text, path.name  # nothing the policy would refuse


def test_static_files_have_their_types_and_are_sent_once(site: Site) -> None:
    reply = site.get("/static/main.js")
    assert reply.headers["content-type"] == "text/javascript; charset=utf-8"
    again = site.get("/static/main.js", if_none_match=reply.headers["etag"])
    assert again.status_code == 304 and again.content == b""


def test_about_names_methods_splits_and_what_is_missing(site: Site) -> None:
    about = site.get("/api/about").json()
    assert [(one["name"], one["splits"], one["missing"]) for one in about["methods"]] == [
        ("one", ["test", "val"], ""), ("two", ["test"], ""), ("three", [], "no"),
    ]  # fmt: skip
    assert about["most_characters"] == MOST_CHARACTERS and about["splits"][0]["examples"] == ["a clip"]


def test_a_video_that_is_not_what_was_stored_is_named_without_its_path(site: Site) -> None:
    key = site.searcher.keys[2]
    path = Gallery(site.project, site.project.survey()).video(key)
    assert path is not None
    path.write_bytes(bytes(path.stat().st_size))
    found = site.get(f"/api/item/{key}").json()
    reason = "it is damaged in the store; crossreel store verify --repair drops it"
    assert (found["reason"], found["pictures"]) == (reason, []) and str(path) not in str(found)


def test_a_search_answers_hits_with_what_can_be_shown_of_them(site: Site) -> None:
    found = site.get("/api/search?q=%20a%20clip%20&method=two&split=test&top=2").json()
    assert (found["query"], found["method"], found["split"]) == ("a clip", "two", "test")
    assert [(hit["place"], hit["kind"], hit["moment"]) for hit in found["hits"]] == [
        (1, "video", [0.5, 1.0]), (2, "video", [0.5, 1.0]),
    ]  # fmt: skip
    assert (found["gallery"], found["following"], found["scale"]["counts"]) == (3, 0.5, [1, 2])
    assert [hit["percentile"] for hit in found["hits"]] == [100.0, 50.0]


def test_the_right_item_is_told_beyond_the_places_that_are_shown(site: Site) -> None:
    found = site.get("/api/search?q=a%20clip&top=1&from=2").json()
    assert [(hit["place"], hit["right"]) for hit in found["hits"]] == [(2, False)]
    assert [(hit["place"], hit["key"], hit["right"]) for hit in found["right"]] == [
        (3, site.searcher.keys[2], True)
    ]
    assert site.get("/api/search?q=other").json()["right"] == []


def test_the_place_of_one_item_can_be_asked_for(site: Site) -> None:
    key = site.searcher.keys[1]
    assert site.get(f"/api/search?q=other&top=1&key={key}").json()["asked"]["place"] == 2
    assert site.get(f"/api/search?q=other&key={UNKNOWN}").status_code == 404


def test_the_caption_of_a_hit_is_the_one_at_its_best_moment() -> None:
    captions = [
        Caption("a", "first", 0.0, 4.0),
        Caption("b", "second", 3.0, 9.0),
        Caption("c", "without times"),
    ]
    assert caption_at(captions, (4.0, 8.0)) is captions[1]
    assert caption_at(captions, (0.0, 2.0)) is captions[0]
    assert caption_at(captions, (20.0, 30.0)) is captions[0] and caption_at(captions, None) is captions[0]
    assert caption_at([], (0.0, 1.0)) is None


def test_a_scale_has_the_best_scores_of_captions_of_other_items_in_order(site: Site) -> None:
    found = site.get("/api/scale?method=two").json()
    assert (found["captions_of"], found["best"]) == ("train", [2.0, 4.0])


def test_an_item_has_similar_ones_and_its_captions_by_rank(site: Site) -> None:
    near = site.get(f"/api/similar?key={site.key}").json()["items"]
    assert {one["key"] for one in near} == set(site.searcher.keys) - {site.key}
    assert near[0]["likeness"] >= near[1]["likeness"]
    ranked = site.get(f"/api/captions?key={site.key}").json()
    assert [(one["place"], one["text"]) for one in ranked["captions"]] == [(2, "caption 2"), (5, "caption 5")]


def test_items_are_browsed_and_found_by_a_word_of_their_captions(site: Site) -> None:
    every = site.get("/api/items?count=2").json()
    assert (every["total"], [one["item"] for one in every["items"]]) == (3, ["clip00", "clip01"])
    found = site.get("/api/items?text=is%20clip02").json()
    assert [one["item"] for one in found["items"]] == ["clip02"]
    assert "has no split 'none'; it has test" in site.get("/api/items?split=none").json()["error"]


def test_a_map_has_a_point_for_every_item(site: Site) -> None:
    found = site.get("/api/map").json()
    assert [point["key"] for point in found["points"]] == site.searcher.keys and found["by"] == "pca"
    assert 0 < sum(found["explained"]) <= 1.0001
    assert "no map by 'tsne'" in site.get("/api/map?by=tsne").json()["error"]


def test_queries_that_nobody_evaluated_are_listed_all_the_same(site: Site) -> None:
    found = site.get("/api/queries?text=clip01").json()
    assert (found["total"], found["of"], found["runs"]) == (2, 6, [])
    assert "no run 'four' is evaluated" in site.get("/api/queries?a=four").json()["error"]
    assert "words='x' is not a span" in site.get("/api/queries?words=x").json()["error"]
    assert (
        "count='999' is not possible; from 1 to 200 is" in site.get("/api/queries?count=999").json()["error"]
    )


def test_a_report_is_served_with_its_own_policy_and_leads_back_to_this_server(site: Site) -> None:
    assert not site.get("/api/about").json()["report"]
    assert site.get("/report").json()["error"] == "the experiment has no report; `crossreel report` draws it"
    store, fingerprint = site.project.store, Fingerprint("ab" * 10, {})
    work = store.work_folder("report", fingerprint.hex)
    work.mkdir(parents=True)
    (work / "report.html").write_text('<a href="http://127.0.0.1:8600/?q=a">x</a><style>a{}</style>')
    store.publish("report", fingerprint, 1.0, {"experiment": site.project.experiment.name})
    reply = site.get("/report")
    assert reply.text.startswith('<a href="/?q=a">') and site.get("/api/about").json()["report"]
    policy = reply.headers["content-security-policy"]
    assert (
        "script-src" not in policy and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    )


def test_the_lengths_of_videos_are_read_from_the_times_of_their_frames(site: Site) -> None:
    keys = [*site.project.contents.items(), UNKNOWN]
    found = seconds_of(keys, site.project.store, site.project.survey())
    assert found[:3] == pytest.approx([2, 2, 2], abs=0.4) and np.isnan(found[3])


def test_a_run_is_named_by_its_method_or_any_beginning_of_its_digest() -> None:
    usual, further = (
        Searchable("one", ("test",), run="ab" * 10), Searchable("one@cdcdcdcd", ("test",), run="cd" * 10),
    )  # fmt: skip
    catalogue = Catalogue("trial", (usual, further), ())
    for word, name in (
        ("", "one"),
        ("one", "one"),
        ("one@abababab", "one"),
        ("one@cdcdcdcdcd", "one@cdcdcdcd"),
    ):
        assert catalogue.named(word, "") == (name, "test"), word
    for word in ("one@ab", "one@efefefef", "two", "two@cdcdcdcd"):
        with pytest.raises(
            UserError, match=r"no method or run of that name can be searched; one, one@cdcdcdcd can"
        ):
            catalogue.named(word, "")


def test_which_searchers_are_loaded_is_told(site: Site) -> None:
    site.get("/api/search?q=a%20clip&method=two")
    found = site.get("/api/loading").json()
    assert found["searchers"]["two test"]["state"] == "ready" and found["kept"] >= 1 <= found["room"]
    assert found["searchers"]["one val"] == {"state": "closed", "seconds": 0.0, "usual": 0.0, "says": ""}


def send(site: Site, body: bytes, path: str = "/api/upload?name=a.mp4", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(site.url + path, content=body, headers={"origin": site.url} | named, timeout=30)


def test_a_file_is_searched_with_and_removed(site: Site) -> None:
    reply = send(site, b"these are bytes of a video", "/api/upload?name=../../x.MP4&method=two&top=3")
    assert [(hit["text"], hit["item_key"]) for hit in reply.json()["hits"]] == [("a clip", site.key)]
    path, body = site.searcher.files[-1]
    assert (path.name, body) == ("upload.mp4", b"these are bytes of a video") and not path.parent.exists()
    assert (
        send(site, b"broken").json()["error"] == "ffmpeg: the file: it is no video"
        and not site.searcher.files[-1][0].exists()
    )
    assert "the file is empty" in send(site, b"").json()["error"]


def test_a_picture_is_made_a_short_video_and_a_broken_one_is_refused(site: Site) -> None:
    out = io.BytesIO()
    Image.new("RGB", (33, 21), "red").save(out, "PNG")
    assert send(site, out.getvalue(), "/api/upload?name=a.png").status_code == 200
    path, body = site.searcher.files[-1]
    assert path.name == "still.mp4" and body[4:8] == b"ftyp"
    reply = send(site, out.getvalue()[:40], "/api/upload?name=a.png")
    assert (reply.status_code, reply.json()["error"]) == (400, "it cannot be read as a picture")


def test_only_our_own_page_sends_files_and_none_that_is_too_large(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert send(site, b"a", origin="http://evil.example").status_code == 403
    assert httpx.post(f"{site.url}/api/upload", content=b"a").status_code == 403
    assert send(site, b"a", sec_fetch_site="cross-site").status_code == 403
    head = f"POST /api/upload HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nOrigin: {site.url}\r\nConnection: close\r\n"
    large = f"{head}Content-Length: {uploads.MOST_BYTES + 1}\r\n\r\n"
    assert site.raw(large.encode()).startswith(b"HTTP/1.1 413 ")
    assert site.raw(f"{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode()).startswith(
        b"HTTP/1.1 411 "
    )
    monkeypatch.setattr(uploads, "MOST_BYTES", 3)
    assert send(site, b"four").status_code == 413
    assert httpx.get(f"{site.url}/api/upload").status_code == 405


def test_an_explanation_has_numbers_of_few_digits_and_none_that_json_cannot_say(site: Site) -> None:
    said = site.get(f"/api/explain?q=a%20clip&key={site.key}").json()
    assert said["arrays"] == {"clip_scores": [0.12346, None], "frame_count": 3}


def test_an_item_has_its_captions_and_pictures(site: Site) -> None:
    found = site.get(f"/api/item/{site.key}").json()
    assert found["kind"] == "video" and found["seconds"] == pytest.approx(2, abs=0.4)
    assert [caption["text"] for caption in found["captions"]] == ["this is clip00.mp4", "a clip"]
    assert len(found["pictures"]) == FRAMES
    for picture in found["pictures"]:
        reply = site.get(picture["source"])
        assert reply.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(reply.content)).size == (picture["width"], picture["height"])
    assert site.get(f"/thumb/{site.key}/{FRAMES}").status_code == 404
    assert site.get(f"/view/{site.key}/0").status_code == 404, "a video has no views"


def test_a_cloud_is_sent_as_the_stage_made_it(clouds: Site) -> None:
    body = clouds.get(f"/points/{clouds.key}").content
    states = clouds.project.survey()
    rows = clouds.project.store.reader("points", states["points"].fingerprint.hex).rows(clouds.key, "points")
    count = len(body) // 15
    assert count == len(rows) == 64 and len(body) == 15 * count
    assert np.array_equal(np.frombuffer(body, "<f4", 3 * count).reshape(-1, 3), rows[:, :3])
    assert np.frombuffer(body, np.uint8, offset=12 * count).reshape(-1, 3).std() > 0
    found = clouds.get(f"/api/item/{clouds.key}").json()
    assert found["kind"] == "cloud" and [picture["at"] for picture in found["pictures"]] == list(AZIMUTHS)
    assert clouds.get(found["pictures"][0]["source"]).content[:2] == b"\xff\xd8"
    assert clouds.get(f"/media/{clouds.key}").json()["error"] == "the store has no video of it"


@pytest.mark.parametrize(
    ("span", "first", "last"),
    [("bytes=0-9", 0, 9), ("bytes=10-10", 10, 10), ("bytes=100-", 100, -1), ("bytes=-7", -7, -1)],
)
def test_a_part_of_a_video_is_that_part_of_it(site: Site, span: str, first: int, last: int) -> None:
    whole = site.get(f"/media/{site.key}")
    assert (whole.status_code, whole.headers["content-type"], whole.headers["accept-ranges"]) == (
        200,
        "video/mp4",
        "bytes",
    )
    size = len(whole.content)
    part = site.get(f"/media/{site.key}", range=span)
    first, last = first % size, last % size
    assert part.status_code == 206 and part.content == whole.content[first : last + 1]
    assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"


def test_a_part_beyond_the_end_of_a_video_is_refused(site: Site) -> None:
    reply = site.get(f"/media/{site.key}", range="bytes=99999999-")
    assert reply.status_code == 416 and reply.headers["content-range"].startswith("bytes */")
    assert site.get(f"/media/{site.key}", range="lines=1-2").status_code == 400
    assert httpx.head(f"{site.url}/media/{site.key}").content == b""


# what it refuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/api/about", "/nothing", "/api/search", f"/media/{UNKNOWN}", "/static/none"]
)
def test_every_answer_carries_the_policy(site: Site, path: str) -> None:
    reply = site.get(path)
    assert {name: reply.headers[name] for name in HEADERS} == HEADERS
    assert "set-cookie" not in reply.headers and "server" not in reply.headers
    assert not any(name.startswith("access-control") for name in reply.headers)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:{port}", ""]
)
def test_a_foreign_host_is_refused(site: Site, host: str) -> None:
    reply = site.line("/api/about", host.format(port=site.port))
    assert reply.startswith(b"HTTP/1.1 421 ") and b"--allow-host" in reply


def test_our_own_names_are_answered(site: Site) -> None:
    for name in ("127.0.0.1", "LOCALHOST", "[::1]"):
        assert site.line("/api/about", f"{name}:{site.port}").startswith(b"HTTP/1.1 200 "), name
    assert allowed_hosts(["a.example"], 80) == {"a.example", "a.example:80"}


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/api/about", {"origin": "http://evil.example"}, 403),
        ("/api/about", {"origin": "null"}, 403),
        ("/api/about", {"origin": "{url}"}, 200),
        ("/api/about", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ("/api/about", {"sec-fetch-site": "same-site"}, 403),
        ("/api/about", {"sec-fetch-site": "same-origin"}, 200),
        ("/", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 200),
        ("/queries", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 200),
        ("/", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, 403),
        ("/api/about", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
    ],
)  # fmt: skip
def test_pages_of_other_sites_are_refused(
    site: Site, path: str, headers: dict[str, str], status: int
) -> None:
    sent = {name: value.format(url=site.url) for name, value in headers.items()}
    assert httpx.get(site.url + path, headers=sent).status_code == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_can_be_written(site: Site, method: str) -> None:
    reply = httpx.request(method, f"{site.url}/api/search?q=a")
    assert reply.status_code == 405 and reply.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "target",
    [
        "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd", "/static/",
        "/static/vendor", "/media/../../../../etc/passwd", "/media/..%2f..%2f..%2fetc%2fpasswd", "//etc/passwd",
        "/media/%2fetc%2fpasswd", "/media/{key}/../{key}", "/media/{upper}", "/media/{key}%00", "/media/{key}.mp4",
        "/thumb/{key}/-1", "/thumb/{key}/00", "/thumb/{key}/\xb2", "/thumb/{key}/1e1", "/points/..", "/api/item/%2e%2e",
        "/media/" + UNKNOWN, "/api/item/" + UNKNOWN, "/view/" + UNKNOWN + "/0",
    ],
)  # fmt: skip
def test_no_path_reaches_the_file_system(site: Site, target: str) -> None:
    reply = site.line(target.format(key=site.key, upper=site.key.upper()))
    assert re.match(rb"HTTP/1.1 40[04] ", reply), reply[:100]
    assert b"root:" not in reply and b"import" not in reply


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("q=", "the query is empty"), ("", "the query is empty"), ("q=%00", "control character"),
        ("q=" + "a" * (MOST_CHARACTERS + 1), "at most 1000 are possible"),
        ("q=a&method=four", "no method or run of that name can be searched; one, two can"),
        ("q=a&method=three", "can be searched: no; one, two can"),
        ("q=a&from=0", "from 1 to 1000000 is"),
        ("q=a&method=two&split=val", "by two; test can"),
        ("q=a&top=0", "from 1 to 50"), ("q=a&top=51", "from 1 to 50"), ("q=a&top=x", "from 1 to 50"),
        ("q=a&top=%D9%A1", "from 1 to 50"), ("q=a&top=-1", "from 1 to 50"), ("q=a&top=9999999999", "from 1 to 50"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_in_a_sentence(site: Site, query: str, said: str) -> None:
    reply = site.get(f"/api/search?{query}")
    assert reply.status_code == 400 and said in reply.json()["error"]


def test_oversized_and_malformed_requests_are_refused(site: Site) -> None:
    assert site.line("/api/search?q=" + "a" * MOST_TARGET_BYTES).startswith(b"HTTP/1.1 414 ")
    host = f"Host: 127.0.0.1:{site.port}\r\nConnection: close\r\n"
    for request in (
        f"GET / HTTP/1.1\r\n{host}X: {'a' * 100_000}\r\n\r\n",
        f"GET /{'a' * 100_000} HTTP/1.1\r\n{host}\r\n",
        "\x16\x03\x01 this is not HTTP\r\n\r\n",
        f"GET / HTTP/1.1\r\n{host}Host: other\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
    ):
        assert re.match(rb"HTTP/1.1 (400|414|421|431) ", site.raw(request.encode())), request[:40]
    body = f"GET /api/about HTTP/1.1\r\n{host}Content-Length: 5\r\n\r\nhello"
    assert site.raw(body.encode()).startswith(b"HTTP/1.1 413 ")
    assert site.get("/api/about").status_code == 200


def test_a_client_that_sends_nothing_is_sent_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety, "SLOW_SECONDS", 0.1)
    assert site.raw(b"") == b"" and site.raw(b"GET / HTTP/1.1\r\nHost: ") == b""


def test_the_death_of_a_searching_process_is_reported_without_its_words(site: Site) -> None:
    reply = site.get("/api/search?q=die")
    assert reply.status_code == 503 and "/a/folder" not in reply.text


# how much at once -------------------------------------------------------------------------------------


def test_beyond_the_bound_a_search_is_asked_to_come_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "MOST_WAITING", 2)
    site.searcher.go.clear()
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(site.get, "/api/search?q=wait") for _ in range(2)]
        until(lambda: site.searcher.texts.count("wait") == 2)
        busy = site.get("/api/search?q=a")
        site.searcher.go.set()
        assert [one.result().status_code for one in waiting] == [200, 200]
    assert busy.status_code == 503 and int(busy.headers["retry-after"]) > 0
    assert site.get("/api/search?q=a").status_code == 200


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_search_that_takes_too_long_is_given_up_and_keeps_its_place_until_it_ends() -> None:
    searcher = FakeSearcher([])
    searchers = Searchers(lambda *name: searcher, most=1)  # type: ignore[arg-type,return-value]
    with pytest.raises(TooSlow):
        asyncio.run(searchers.ask(("one", "test"), lambda searcher: searcher.rank("wait"), 0.1))
    assert searchers.waiting == 1
    searcher.go.set()
    until(lambda: searchers.waiting == 0)
    searchers.close()
    assert searcher.closed


def test_the_searcher_not_used_for_longest_is_closed_and_none_in_use() -> None:
    made: list[tuple[str, FakeSearcher]] = []

    def make(method: str, split: str, say: object) -> Any:
        made.append((method, FakeSearcher([])))
        return made[-1][1]

    async def both() -> None:
        slow = asyncio.create_task(searchers.ask(("a", "test"), lambda searcher: searcher.rank("wait")))
        while not (made and made[0][1].texts):
            await asyncio.sleep(0.01)
        for method in ("b", "b", "c"):
            await searchers.ask((method, "test"), lambda searcher: searcher.rank("x"))
        assert [(method, searcher.closed) for method, searcher in made] == [
            ("a", False),
            ("b", True),
            ("c", False),
        ]
        made[0][1].go.set()
        await slow

    searchers = Searchers(make, most=2)
    asyncio.run(both())
    searchers.close()
    assert all(searcher.closed for _, searcher in made)


def test_searchers_are_kept_as_long_as_memory_allows_and_the_first_is_loaded_before_anybody_asks() -> None:
    made: list[tuple[str, FakeSearcher]] = []
    free = [10 << 30]

    def make(method: str, split: str, say: object) -> Any:
        made.append((method, FakeSearcher([])))
        return made[-1][1]

    searchers = Searchers(make, free=lambda: free[0])
    assert searchers.loading(("a", "test")).state == "closed"
    searchers.start(("a", "test"))
    until(lambda: searchers.loading(("a", "test")).state == "ready")
    assert made[0][1].warmed == 1 and made[0][1].texts == []
    for method in ("b", "c"):
        asyncio.run(searchers.ask((method, "test"), lambda searcher: searcher.rank("x")))
    assert searchers.room() == (3, 3 + (10 << 30) // int(MARGIN * FIRST_GUESS_BYTES))
    free[0] = 0
    asyncio.run(searchers.ask(("d", "test"), lambda searcher: searcher.rank("x")))
    assert [(method, searcher.closed) for method, searcher in made] == [
        ("a", True), ("b", False), ("c", False), ("d", False),
    ]  # fmt: skip
    assert searchers.room() == (3, 3)
    searchers.close()


def test_a_searcher_that_did_not_open_is_tried_again() -> None:
    tries = []

    def make(method: str, split: str, say: object) -> Any:
        tries.append(method)
        if len(tries) == 1:
            raise UserError("not yet")
        return FakeSearcher([])

    searchers = Searchers(make)
    with pytest.raises(UserError, match="not yet"):
        asyncio.run(searchers.ask(("a", "test"), lambda searcher: searcher.rank("x")))
    assert asyncio.run(searchers.ask(("a", "test"), lambda searcher: searcher.rank("x"))).hits == ()
    searchers.close()


def test_strips_are_made_once_and_forgotten_when_they_take_too_much() -> None:
    made: list[str] = []
    remembered = Remembered(3 * Strip().size)

    def ask(key: str) -> Strip:
        def make() -> Strip:
            made.append(key)
            time.sleep(0.02)
            return Strip(reason=key)

        return remembered.get(key, make)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, ["a"] * 8))
    assert made == ["a"]
    for key in ("b", "c", "a", "d"):  # b was not asked for longest
        ask(key)
    assert made == ["a", "b", "c", "d"]
    assert ask("a").reason == "a" and made[-1] == "d"
    ask("b")
    assert made[-1] == "b"


# the command ------------------------------------------------------------------------------------------


def test_a_strip_whose_decoder_was_killed_is_made_again() -> None:
    remembered, made = Remembered(1000), []

    def make() -> Strip:
        made.append(len(made))
        return Strip(reason="its decoder was killed", passing=len(made) == 1)

    assert [remembered.get("key", make).passing for _ in range(3)] == [True, False, False]
    assert made == [0, 1]


def test_other_machines_are_let_in_by_name_alone() -> None:
    with pytest.raises(UserError, match=r"--host 0.0.0.0 lets other machines in; .* --allow-host NAME"):
        Address("0.0.0.0", 8600).require_names()
    Address("127.0.0.1", 8600).require_names()
    assert "lab.example:8600" in Address("0.0.0.0", 8600, ("lab.example",)).hosts(8600)


def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is taken; name another one with --port"):
            Address("127.0.0.1", port).listen()
    with pytest.raises(UserError, match=r"192.0.2.1:0 cannot be listened on"):
        Address("192.0.2.1", 0).listen()


def test_without_a_trained_method_it_says_what_to_run(rendered: Path, tmp_path: Path) -> None:
    for name in ("clip00.mp4", "clip01.mp4", "clip02.mp4"):
        (tmp_path / name).write_bytes((rendered / name).read_bytes())
    items = [
        Item(name, split, (Caption(f"{name}#0", f"the {name}"),), f"{name}.mp4")
        for name, split in (("clip00", "train"), ("clip01", "test"), ("clip02", "val"))
    ]
    write_manifest(tmp_path / "corpus.jsonl", items)
    path = tmp_path / "experiment.toml"
    path.write_text('corpus = "corpus.jsonl"\nextract = ["compress"]\n')
    with pytest.raises(UserError, match="names no methods"):
        prepare(open_project(path), [], lambda sentence: None)
    path.write_text('corpus = "corpus.jsonl"\nmethods = ["hlformer"]\n[extractors.clip]\nmodel = "crossreel-demo"\n'
                    'weights = "seed:0"\n')  # fmt: skip
    with pytest.raises(UserError, match=re.escape("`crossreel run experiment.toml --methods hlformer`")):
        prepare(open_project(path), [], lambda sentence: None)
    with pytest.raises(UserError, match="split 'none'"):
        prepare(open_project(path), ["none"], lambda sentence: None)


def test_what_is_shipped_of_three_is_what_was_bundled() -> None:
    record = json.loads((vendor.FOLDER / vendor.RECORD).read_text(encoding="utf-8"))
    assert (record["package"], record["integrity"]) == (vendor.THREE, vendor.INTEGRITY)
    for name, digest in record["sha256"].items():
        assert hashlib.sha256((vendor.FOLDER / name).read_bytes()).hexdigest() == digest, name
    assert "The MIT License" in (vendor.FOLDER / vendor.LICENCE).read_text(encoding="utf-8")


@contextlib.contextmanager
def command(lab: Any, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`crossreel serve` in a lab, and the address it prints."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", SERVE, "experiment.toml", "--port", "0", *arguments],
        cwd=lab.folder, env=os.environ | {"CROSSREEL_TEST_MARK": lab.mark}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("http"):
            pytest.fail(line + process.communicate()[1])
        yield line.split("/ ")[0], process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.long
def test_200_clients_at_once_see_no_error_and_memory_stays_flat(made: Any) -> None:
    with command(made) as (url, process):
        about = httpx.get(f"{url}/api/about", timeout=120).json()
        queries = [*about["splits"][0]["examples"], "a red square", "something moves"]
        first = httpx.get(f"{url}/api/search", params={"q": "a red square"}, timeout=120)
        keys = [hit["key"] for hit in first.json()["hits"]]
        assert first.status_code == 200 and first.json()["hits"][0]["moment"] is not None
        codes = asyncio.run(crowd(url, queries, keys, clients=200))
        before, started = resident(process.pid), time.monotonic()
        codes += asyncio.run(crowd(url, queries, keys, clients=200))
        took, grown = time.monotonic() - started, resident(process.pid) - before
        print(
            f"200 clients, {len(codes) // 2} requests in {took:.1f} s, {before >> 20} MiB and {grown >> 20} more"
        )
        assert set(codes) <= {200, 206}, sorted(set(codes))
        assert grown < 16 << 20, f"{grown / 2**20:.1f} MiB more"
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert made.gone_within(30) == []


async def crowd(url: str, queries: list[str], keys: list[str], clients: int) -> list[int]:
    """The statuses of many clients that search, look at an item, and play a part of a video, all at once."""
    everybody = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)

    async def one(client: httpx.AsyncClient, number: int) -> list[int]:
        key, text = keys[number % len(keys)], queries[number % len(queries)]
        asked: list[tuple[str, dict[str, str], dict[str, str]]] = [
            ("/api/search", {"q": text, "top": "5"}, {}),
            (f"/api/item/{key}", {}, {}),
            (f"/thumb/{key}/0", {}, {}),
            (f"/media/{key}", {}, {"range": "bytes=0-4095"}),
        ]
        if number % 10 == 0:
            asked.append(("/api/explain", {"q": text, "key": key}, {}))
        return [
            (await client.get(path, params=params, headers=headers)).status_code
            for path, params, headers in asked
        ]

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=everybody) as client:
        found = await asyncio.gather(*(one(client, number) for number in range(clients)))
    return [code for codes in found for code in codes]


def resident(pid: int) -> int:
    """Bytes of a process and everything below it."""
    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))


def test_as_many_searches_may_wait_as_clients_are_promised() -> None:
    assert MOST_WAITING >= 200
