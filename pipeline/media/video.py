"""Videos through ffmpeg, decord and PyAV: find, probe, compress, decode.

Everything here may hang or crash in native code on a broken file; callers run it in a child process
(pipeline.child). A media path only ever becomes a `file:` argument, never a URL or an option.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.child import CRASHES, Child, Send, die_with_parent, ending, is_stopped
from pipeline.errors import ItemError, ItemKilled, UserError, is_full, is_starved
from pipeline.media.timeline import announced, length_trouble, read_timeline
from pipeline.media.unsuited import stray_beginning, unread, unsuited

Frames = NDArray[np.uint8]  # (T, H, W, 3) RGB
Times = NDArray[np.float64]  # (T,) presentation times in seconds
CHUNK_FRAMES = 32  # 4.8 MB at 224 x 224; enough to amortise a message, small against memory
CONTAINERS = (
    "mov,matroska,webm,avi,mpegts,mpegtsraw,mpeg,mpegvideo,asf,asf_o,flv,live_flv,kux,ogg,gif,apng,rm,nut,mxf,gxf,dv,"
    "ivf,obu,av1,lxf,h261,h263,h264,hevc,vvc,evc,m4v,vc1,vc1test,avs2,avs3,cavsvideo,dirac,dnxhd,mjpeg,mjpeg_2000,mpjpeg,"
    "smjpeg,yuv4mpegpipe,swf,wtv,nsv,nuv,pva,pmp,ty,mtv,thp,viv,vividas,vivo,lmlm4,dhav,cine,r3d,mv,mvi,moflex,bink,"
    "smk,flic,roq,film_cpk,4xm,ea,vmd,wc3movie,rpl,ipmovie,idcin,psxstr,mlv,amv,ifv,ser,webp_anim"
)
# The formats that hold a video in one file. Others open files that a text names (hls, concat, dash, imf, sdp, image2),
# devices, or draw text as pictures (tty).
ONLY_MEDIA = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
INSTALL_TORCHCODEC = "pip install 'crossreel[torchcodec]', in the version that is built for your torch"
NAMED_FORMATS = {
    ".mjpeg": "mjpeg",
    ".mjpg": "mjpeg",
}  # ffmpeg takes the first picture of such a stream for a photo
SHORT_BYTES = (
    256 << 20
)  # memory below which a machine is short of it; compressing 4K video takes about as much


@functools.cache
def find_ffmpeg() -> str:
    """Return the path of ffmpeg: IMAGEIO_FFMPEG_EXE, else imageio-ffmpeg's own, else the system's. Raises UserError.

    Its version decides the fingerprint of every compressed video. The shipped one changes when crossreel's requirements
    are installed anew, the system's with any upgrade of the machine.
    """
    import imageio_ffmpeg

    try:
        found = str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        raise UserError(
            "no ffmpeg on this machine; install ffmpeg, or `pip install imageio-ffmpeg`"
        ) from None
    return shutil.which(found) or found


@functools.cache
def ffmpeg_version() -> str:
    """Return the version that ffmpeg prints, for instance "7.1.1"."""
    out = subprocess.run(
        [find_ffmpeg(), "-version"], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    match = re.match(r"ffmpeg version (\S+)", out.stdout)
    if not match:
        raise UserError(f"{find_ffmpeg()} does not run: {(out.stderr or out.stdout).strip()[:200]}")
    return match[1]


Decoder = Literal["decord", "torchcodec"]
"""Decoders of frames by name; PyAV reads what they cannot."""


def decoder_identity(decoder: Decoder = "decord") -> str:
    """Return name and version of a decoder of frames: part of the fingerprint of everything made from frames.

    Raises UserError if its package is not installed.
    """
    try:
        return f"{decoder} {version(decoder)}, else PyAV {version('av')}"
    except PackageNotFoundError:
        raise UserError(f"decoder = {decoder!r} needs the package {decoder}: {INSTALL_TORCHCODEC}") from None


def require_decoder(decoder: Decoder) -> None:
    """Raise UserError, with what is missing, if a decoder cannot run on this machine."""
    decoder_identity(decoder)
    if decoder == "torchcodec":
        for _ in Child("pipeline.media.video:serve_torchcodec").ask({}):
            pass


def serve_torchcodec(request: dict[str, Any], send: Send) -> None:
    """Entry of a process that only loads torchcodec. Raises UserError if it cannot be loaded."""
    _torchcodec()


def _torchcodec() -> Any:
    """The class of torchcodec's decoders. Raises UserError with what is missing."""
    try:
        from torchcodec.decoders import VideoDecoder
    except ImportError:
        raise UserError(
            f"decoder = 'torchcodec' needs the package torchcodec: {INSTALL_TORCHCODEC}"
        ) from None
    except (RuntimeError, OSError) as error:
        missing = sorted(set(re.findall(r"(lib\w+\.so[.\d]*): cannot open", str(error))))
        what = f"no {' or '.join(missing)} here" if missing else str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"decoder = 'torchcodec' cannot be loaded: {what}; it needs the shared libraries of FFmpeg 4 to 8, which "
            "the system's ffmpeg package brings, and a version built for this torch"
        ) from None
    return VideoDecoder


@dataclass(frozen=True)
class Probe:
    """The properties of a container's first video stream, as the container states them."""

    width: int
    height: int
    fps: float | None
    seconds: float | None
    codec: str


def probe(path: Path) -> Probe:
    """Return the properties of a video file's first video stream. Raises ItemError if it is no readable video."""
    import av

    _require_file(path)
    if reason := unsuited(path):
        raise ItemError(str(path), reason)
    try:
        with _open(path) as container:
            if reason := stray_beginning(path, container.format.name):
                raise ItemError(str(path), reason)
            streams = [s for s in container.streams.video if not _is_cover(s)]
            if not streams:
                raise ItemError(str(path), "it has no video stream")
            stream = streams[0]
            rate, context = stream.average_rate, stream.codec_context
            if context is None:
                raise ItemError(str(path), "its video is in a format that no decoder here knows")
            seconds = announced(container, stream).seconds
            return Probe(context.width, context.height, float(rate) if rate else None, seconds, context.name)
    except av.FFmpegError as error:
        raise ItemError(str(path), unread(path) or f"not a readable video: {error.strerror}") from None


def _open(path: Path) -> Any:
    """Open a file as a container of PyAV; never a URL. Titles in an unknown encoding are no error."""
    import av

    named = NAMED_FORMATS.get(path.suffix.lower())
    return av.open(f"file:{path}", format=named, options=dict(ONLY_MEDIA), metadata_errors="replace")


def _length_trouble(path: Path, made: float, step: float) -> str:
    """Return why the announced length shows a video of `made` decoded seconds to be damaged; "" if it is healthy."""
    with _open(path) as container:
        stream = next(s for s in container.streams.video if not _is_cover(s))
        return length_trouble(
            announced(container, stream), made, functools.partial(read_timeline, container, stream), step
        )


def _is_cover(stream: Any) -> bool:
    """Whether a video stream is the cover picture of a sound file."""
    import av

    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _require_file(path: Path) -> None:
    """Raise ItemError with the reason if the file is missing or empty."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ItemError(str(path), _file_trouble(error)) from None
    if not path.is_file():
        raise ItemError(str(path), "it is not a file" if not path.is_dir() else "it is a folder, not a file")
    if size == 0:
        raise ItemError(str(path), "the file is empty (0 bytes)")


def _file_trouble(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    return f"the file cannot be read: {error.strerror or error}"


# compress ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compression:
    """The settings of compression: frames per second, pixels of the short side, x264's quality and effort."""

    fps: float = 3.0
    short_side: int = 224
    crf: int = 23
    key_frame_every: int = 3
    preset: str = "ultrafast"


def compress_command(source: Path, target: Path, how: Compression) -> list[str]:
    """Return the ffmpeg arguments that compress a video.

    The fps filter rounds up, so that the frame at n/fps is the one on the screen at that moment
    (`-r 3` gives frames about 0.4 s late); it comes before the scaling, which then has a tenth of
    the frames to process. The short side is scaled for portrait and landscape alike, never enlarged; sides
    are even; pixels become square; rotation metadata is applied by ffmpeg; sound is dropped.
    """
    import ffmpeg

    side = f"max(2,2*trunc(min({how.short_side},min(iw*sar,ih))/2))"
    named = {"f": found} if (found := NAMED_FORMATS.get(source.suffix.lower())) else {}
    video = ffmpeg.input(f"file:{source.absolute()}", threads=1, **named, **ONLY_MEDIA)["V:0"]
    video = video.filter("fps", str(Fraction(how.fps).limit_denominator(1001)), round="up", start_time=0)
    video = video.filter(
        "scale",
        f"if(lt(iw*sar,ih),{side},max(2,2*round(iw*sar/ih*{side}/2)))",
        f"if(lt(iw*sar,ih),max(2,2*round(ih/(iw*sar)*{side}/2)),{side})",
        flags="bicubic",
    ).filter("setsar", "1")
    options = {
        "c:v": "libx264", "preset": how.preset, "crf": how.crf, "g": how.key_frame_every,
        "pix_fmt": "yuv420p", "threads": 1, "map_metadata": -1, "fflags": "+bitexact", "flags:v": "+bitexact",
        "movflags": "+faststart", "f": "mp4", "protocol_whitelist": "file",
    }  # fmt: skip
    out = ffmpeg.output(video, f"file:{target.absolute()}", **options)
    flags = ("-nostdin", "-hide_banner", "-loglevel", "error", "-filter_threads", "1")
    return list(ffmpeg.compile(out.global_args(*flags), cmd=find_ffmpeg(), overwrite_output=True))


def compress(source: Path, target: Path, how: Compression, timeout_seconds: float) -> Times:
    """Compress a video into `target`; returns the presentation times of its frames.

    Raises ItemError if the video cannot be decoded completely: no frame, or far fewer seconds than it announces
    (a truncated download); ItemKilled if ffmpeg was killed, stopped, or got no memory. There is then no target file.
    The time limit is `timeout_seconds`, or the video's playing time if that is longer.
    """
    limit = max(timeout_seconds, probe(source).seconds or 0.0)
    try:
        run = _finished(compress_command(source, target, how), limit, source)
        if run.returncode != 0 and is_full(run.stderr):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        if killed := _killed(run.returncode, run.stderr):
            raise ItemKilled(str(source), f"ffmpeg {killed[0]}", crash=killed[1])
        if run.returncode != 0:
            raise ItemError(str(source), f"ffmpeg could not read it: {_first_error(run.stderr)}")
        times = frame_times(target)
        if len(times) == 0:
            reason = _first_error(run.stderr)
            if (
                is_starved(run.stderr) and _memory_is_short()
            ):  # ffmpeg ends with 0 where a filter got no thread
                raise ItemKilled(str(source), f"ffmpeg found no memory: {reason}")
            raise ItemError(str(source), f"it holds no frame that can be decoded: {reason}")
        made = float(times[-1]) + 1.0 / how.fps
        if trouble := _length_trouble(source, made, 1.0 / how.fps):
            raise ItemError(str(source), trouble)
        return times
    except subprocess.TimeoutExpired:
        target.unlink(missing_ok=True)
        raise ItemError(str(source), f"ffmpeg was not done after {limit:.0f} s (run.item_seconds)") from None
    except (ItemError, OSError):
        target.unlink(missing_ok=True)
        raise


def _finished(command: list[str], limit_seconds: float, source: Path) -> subprocess.CompletedProcess[str]:
    """Run a command; return its exit status and its output.

    Raises TimeoutExpired; ItemKilled with the source's name if the command was stopped while it ran.
    """
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace",
        # otherwise ffmpeg would outlive a killed worker; the function that runs before exec takes no lock
        preexec_fn=functools.partial(die_with_parent, os.getpid()),  # noqa: PLW1509
    ) as process:  # fmt: skip
        try:
            out, words = process.communicate(timeout=limit_seconds)
        except subprocess.TimeoutExpired:
            if is_stopped(process.pid):
                raise ItemKilled(
                    str(source), f"ffmpeg was stopped (SIGSTOP) for {limit_seconds:.0f} s"
                ) from None
            raise
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, words)


def _killed(code: int, words: str) -> tuple[str, bool] | None:
    """Return what ended ffmpeg, and whether ffmpeg itself crashed; None if its input is at fault.

    After a signal to end (SIGTERM, SIGINT, SIGHUP) it exits with 255, after the fourth one with 123, without a
    message; if a shell around it was killed, the status is 128 + the signal's number. A lack of memory may be the
    fault of a file that announces absurd sizes, unless a memory limit is set or the machine has little memory left.
    """
    if code in (255, 123) and not words.strip():
        return "was ended by a signal", False
    signalled = (
        -code if code < 0 else code - 128 if code in (128 + signal.SIGKILL, 128 + signal.SIGTERM) else 0
    )
    if signalled:
        return f"was killed: {ending(-signalled)}", signalled in CRASHES
    if code != 0 and is_starved(words):
        return f"found no memory: {_first_error(words)}", not _memory_is_short()
    return None


def _memory_is_short() -> bool:
    """Whether this process has a memory limit, or the machine has less than SHORT_BYTES available."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return True
    found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    return found is not None and int(found[1]) * 1024 < SHORT_BYTES


def _first_error(text: str) -> str:
    """Return the first line of ffmpeg's errors, without its address; it is the cause of the lines below it."""
    lines = [re.sub(r"\[[^\]]+ @ 0x[0-9a-f]+\] ?", "", line).strip() for line in text.splitlines()]
    return next((line for line in lines if line), "no reason given")[:200]


def frame_times(path: Path) -> Times:
    """Return presentation times in seconds of a video's frames, from its packets; nothing is decoded (may be none)."""
    import av

    try:
        with _open(path) as container:
            stream = container.streams.video[0]
            packets = [p.pts for p in container.demux(stream) if p.pts is not None]
            base = float(stream.time_base or 1)
    except (av.FFmpegError, IndexError):  # a file of ffmpeg's without a frame
        return np.empty(0)
    return np.sort(np.array(packets, dtype=np.float64)) * base


# decode -----------------------------------------------------------------------------------------


def decode(path: Path, decoder: str = "decord", chunk: int = CHUNK_FRAMES) -> Iterator[tuple[Frames, Times]]:
    """Yield all frames of a video with their presentation times, in chunks, so that memory stays flat.

    `decoder` is "decord", "torchcodec" or "pyav". Raises ItemError.
    """
    _require_file(path)
    return {"decord": _decord, "torchcodec": _by_torchcodec, "pyav": _pyav}[decoder](path, chunk)


def _decord(path: Path, chunk: int) -> Iterator[tuple[Frames, Times]]:
    import decord

    if reason := unsuited(path):  # decord cannot be limited to a list of formats
        raise ItemError(str(path), reason)
    try:
        reader = decord.VideoReader(os.fspath(path), ctx=decord.cpu(0), num_threads=1)
        for start in range(0, len(reader), chunk):
            rows = list(range(start, min(start + chunk, len(reader))))
            times = reader.get_frame_timestamp(rows)[:, 0].astype(np.float64)
            yield reader.get_batch(rows).asnumpy(), times
    except (decord.DECORDError, RuntimeError) as error:
        raise ItemError(str(path), f"decord cannot read it: {_first_words(str(error))}") from None


def _first_words(text: str) -> str:
    """Return the first line of a decord error, without the time and the place in its source."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^\[[\d:]+\] \S+: ", "", lines[0])[:200] if lines else "no reason given"


def _by_torchcodec(path: Path, chunk: int) -> Iterator[tuple[Frames, Times]]:
    decoder_of = _torchcodec()
    if reason := unsuited(path):  # as decord, it opens any format that FFmpeg knows
        raise ItemError(str(path), reason)
    try:
        reader = decoder_of(os.fspath(path), dimension_order="NHWC", num_ffmpeg_threads=1)
        for start in range(0, len(reader), chunk):
            batch = reader.get_frames_in_range(start, min(start + chunk, len(reader)))
            yield batch.data.numpy(), batch.pts_seconds.numpy().astype(np.float64)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ItemError(str(path), f"torchcodec cannot read it: {_first_words(str(error))}") from None


def _pyav(path: Path, chunk: int) -> Iterator[tuple[Frames, Times]]:
    import av

    frames: list[Any] = []
    times: list[float] = []
    try:
        with _open(path) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            for frame in container.decode(stream):
                frames.append(frame.to_ndarray(format="rgb24"))
                times.append(float(frame.time) if frame.time is not None else float("nan"))
                if len(frames) == chunk:
                    yield np.stack(frames), np.array(times)
                    frames, times = [], []
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise ItemError(
            str(path), f"PyAV cannot read it: {getattr(error, 'strerror', None) or error}"
        ) from None
    if frames:
        yield np.stack(frames), np.array(times)


def serve_decode(request: dict[str, Any], send: Send) -> None:
    """Entry of a decoding child process: takes `{"path", "decoder"}`, sends chunks of frames and times.

    With each chunk come the seconds that decoding it took.
    """
    started = time.perf_counter()
    for frames, times in decode(Path(request["path"]), request["decoder"]):
        send({"seconds": time.perf_counter() - started}, {"frames": frames, "times": times})
        started = time.perf_counter()


def serve_probe(request: dict[str, Any], send: Send) -> None:
    """Entry of a probing child process: takes `{"path"}`, sends the fields of `Probe` after decoding a frame.

    It adds {"picture_seconds": end of the last frame by its packets, "trouble": why the length is wrong, or ""}.
    """
    path = Path(request["path"])
    found = probe(path)
    if next(_pyav(path, 1), None) is None:
        raise ItemError(str(path), "it holds no frame that can be decoded")
    with _open(path) as container:
        stream = next(s for s in container.streams.video if not _is_cover(s))
        timeline = read_timeline(
            container, stream, lambda: send({}, {})
        )  # reading the packets of hours of video takes long
        trouble = length_trouble(
            announced(container, stream), timeline.picture, lambda: timeline, verb="are there"
        )
    send({**vars(found), "picture_seconds": timeline.picture, "trouble": trouble}, {})
