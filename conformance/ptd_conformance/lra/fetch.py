"""Downloads for users who have a network: official addresses, checksums, and nothing kept that does not match."""

from __future__ import annotations

import hashlib
import http.client
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

#: Seconds within which a server has to answer.
PATIENCE = 1.0
#: What a server answers that is asked to go on at or after a file's end.
NOTHING_BEYOND = 416


class File(NamedTuple):
    """A file of a task: its place in the data folder, address, and MD5 as its publisher or users' libraries give it."""

    name: str
    url: str
    md5: str


_CIFAR = [
    File(
        "cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
    )
]
_REVIEWS = [
    File(
        "aclImdb_v1.tar.gz",
        "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
        "7c2ac02c03563afcf9b574c7e56c153a",
    )
]
_DIGITS = [
    File(f"mnist/{name}-ubyte.gz", f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}-ubyte.gz", md5)
    for name, md5 in (
        ("train-images-idx3", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        ("train-labels-idx1", "d53e105ee54ea40749a09fcbcd1e9432"),
        ("t10k-images-idx3", "9fb629c4189551a2d022fa330f9573f3"),
        ("t10k-labels-idx1", "ec29112dd5afa0611ce80d1b7f02629c"),
    )
]

FILES: dict[str, list[File]] = {
    "image": _CIFAR,
    "scifar": _CIFAR,
    "text": _REVIEWS,
    "same-film": _REVIEWS,
    "mnist": _DIGITS,
    "pmnist": _DIGITS,
}

#: What cannot be fetched, and what to do instead.
ELSEWHERE = {
    "retrieval": "its publisher gives no checksum: unpack "
    "https://storage.googleapis.com/long-range-arena/lra_release.gz in the data folder",
    "listops": "it is generated: ptd data make listops",
    "pathfinder": "it is generated: ptd data make pathfinder",
    "pathx": "it is generated: ptd data make pathx",
}


def fetch(
    base: Path, task: str, report: Callable[[str, int, int], None] = lambda name, done, total: None
) -> list[Path]:
    """Download a task's files into a data folder; those that are there and right are kept, a cut one is continued.

    Args:
        base: the data folder.
        task: a task's name.
        report: called with (name, bytes, bytes in all or 0).

    Raises:
        ValueError: the task has none, or what came is not the published file.
        OSError: the server does not answer, or not to the end.
    """
    if task in ELSEWHERE:
        raise ValueError(f"{task}: expected a task with files to fetch, got one without; {ELSEWHERE[task]}")
    return [_file(base / file.name, file, report) for file in FILES[task]]


def _file(path: Path, file: File, report: Callable[[str, int, int], None]) -> Path:
    if path.exists() and _md5(path) == file.md5:
        return path
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (part.exists() and _md5(part) == file.md5):  # whole, where only its name was missing
        if not _through_proxy(file.url):
            reach(file.url)
        _continue(part, file, report)
    if (got := _md5(part)) != file.md5:
        part.unlink()
        raise ValueError(f"{file.name}: expected MD5 {file.md5}, got {got}; the file was discarded, fetch it again")
    return part.replace(path)


def _continue(part: Path, file: File, report: Callable[[str, int, int], None]) -> None:
    """Download what a part lacks.

    Raises:
        OSError: the server does not answer, or closes early; the part stays.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(file.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with (
            urllib.request.urlopen(request, timeout=30) as answer,
            part.open("ab" if answer.status == 206 else "wb") as out,
        ):
            total = out.tell() + int(answer.headers.get("Content-Length", 0))
            while block := answer.read(1 << 20):
                out.write(block)
                report(file.name, out.tell(), total)
            if (got := out.tell()) < total:
                raise ConnectionError(f"{got} of {total} bytes")
    except urllib.error.HTTPError as error:
        if error.code != NOTHING_BEYOND or not have:
            raise _cut(file, error) from error
        part.unlink()  # as long as the file or longer, and another
        _continue(part, file, report)
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _cut(file, error) from error


def _cut(file: File, error: Exception) -> OSError:
    return OSError(f"{file.name}: expected {file.url} to answer, got {error}; try again, it goes on from here")


def _through_proxy(url: str) -> bool:
    """Whether somebody else looks up the server and connects to it."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(str(parts.hostname))


def reach(url: str) -> None:
    """Raise OSError within about a second unless the server of url accepts a connection."""
    parts = urllib.parse.urlsplit(url)
    outcome: list[BaseException | None] = []

    def attempt() -> None:
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((str(parts.hostname), port), PATIENCE).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    # Looking up a name cannot be given a time limit, a thread can be left behind.
    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not outcome or outcome[0] is not None:
        why = f"{outcome[0]}" if outcome else f"no answer in {PATIENCE:g} s"
        raise OSError(
            f"network: expected {parts.hostname} to answer, got {why}; copy the file into the data folder by hand"
        )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
