"""Look at every image file once: hash it, decode it completely, keep the verdict by size and modification time."""

import csv
import hashlib
import io
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import astuple, dataclass, fields
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm

from wbcrepro.data import decode
from wbcrepro.data.manifest import write_atomically

_SAVE_EVERY_SECONDS = 10.0
_CHUNK = 32


@dataclass(frozen=True)
class FileFacts:
    """What a scan learns of one file; size and mtime_ns say for which version of it. Width and height are upright."""

    path: str
    size: int
    mtime_ns: int
    width: int
    height: int
    mode: str
    sha256: str
    status: str
    reason: str


def scan(root: Path, paths: Iterable[str], cache_file: Path, *, workers: int = 2, progress: bool = True):
    """Facts of each of ``paths`` (relative to ``root``) as a dict; only new or changed files are opened.

    Threads, because reading, hashing and JPEG decoding all release the interpreter lock: measured as fast as processes
    here, and Ctrl-C ends them cleanly. What was learnt is saved every few seconds and on any interruption.
    """
    paths = list(dict.fromkeys(paths))
    known = _load(cache_file)
    facts = {path: known[path] for path in paths if path in known and _unchanged(root / path, known[path])}
    todo = iter([path for path in paths if path not in facts])
    bar = tqdm(total=len(paths), initial=len(facts), desc="checking images", unit="img", disable=not progress)
    saved, dirty = time.monotonic(), False
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        running = {pool.submit(_inspect_many, root, chunk) for chunk in _chunks(todo, 2 * max(1, workers))}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                results = future.result()
                facts.update((result.path, result) for result in results)
                bar.update(len(results))
                dirty = True
                running |= {pool.submit(_inspect_many, root, chunk) for chunk in _chunks(todo, 1)}
            if time.monotonic() - saved > _SAVE_EVERY_SECONDS:
                _save(cache_file, known | facts)
                saved, dirty = time.monotonic(), False
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        bar.close()
        if dirty:
            _save(cache_file, known | facts)
    return {path: facts[path] for path in paths}


def inspect(root: Path, path: str) -> FileFacts:
    """Hash and decode one file. A file that cannot be read at all gets size -1, so that its verdict is never kept."""
    try:
        stat = (root / path).stat()
        data = (root / path).read_bytes()
    except OSError as error:
        return FileFacts(path, -1, 0, 0, 0, "", "", "quarantined", f"cannot be read: {error.strerror or error}")
    digest = hashlib.sha256(data).hexdigest()
    try:
        decoded = decode.decode(data)
    except decode.DecodeError as error:
        return FileFacts(path, stat.st_size, stat.st_mtime_ns, 0, 0, "", digest, "quarantined", _one_line(error))
    height, width = decoded.pixels.shape[:2]
    return FileFacts(path, stat.st_size, stat.st_mtime_ns, width, height, decoded.mode, digest, "ok", "")


def _inspect_many(root: Path, paths: list[str]) -> list[FileFacts]:
    return [inspect(root, path) for path in paths]


def _chunks(paths, count: int):
    for _ in range(count):
        if chunk := list(islice(paths, _CHUNK)):
            yield chunk


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _unchanged(path: Path, facts: FileFacts) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (facts.size, facts.mtime_ns)


def _header() -> list[str]:
    return [f"decode-{decode.VERSION}", *(field.name for field in fields(FileFacts))]


def _save(cache_file: Path, facts: dict[str, FileFacts]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_header())
    writer.writerows(("", *astuple(fact)) for fact in facts.values() if fact.size >= 0)
    write_atomically(cache_file, text.getvalue().encode("utf-8", "surrogateescape"))


def _load(cache_file: Path) -> dict[str, FileFacts]:
    """The saved facts; none if the file is absent, damaged or of another version (then all is looked at anew)."""
    try:
        text = cache_file.read_bytes().decode("utf-8", "surrogateescape")
        rows = csv.reader(io.StringIO(text, newline=""))
        if next(rows, None) != _header():
            return {}
        return {row[1]: FileFacts(row[1], *map(int, row[2:6]), *row[6:]) for row in rows}
    except (OSError, ValueError, TypeError, csv.Error, IndexError):
        return {}
