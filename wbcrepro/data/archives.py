"""Unpack an archive that somebody else made: everything or nothing, and nothing outside its folder.

Refused before a byte is written: absolute names, ``..``, drive letters, backslashes, links, devices, the same name
twice, more files or bytes than the limits, more bytes than the disk has. Sizes are counted again while writing, as an
archive may lie about them. Permissions and owners of the archive are not taken over.
"""

import os
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from wbcrepro.errors import DataMissing

_BLOCK = 1 << 20
_RESERVE = 256 << 20  # bytes of the disk that are left free


class ArchiveError(DataMissing):
    """An archive that is damaged, hostile or too large; nothing of it was kept."""


@dataclass(frozen=True)
class Limits:
    """What one archive may unpack to."""

    files: int = 500_000
    bytes: int = 200 << 30
    ratio: int = 200
    """Unpacked over packed size; image archives are near 1, bombs above 1000."""


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    plain: bool
    folder: bool
    open: Callable[[], IO[bytes] | None]


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that holds ``folder`` (or its nearest parent that exists)."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def unpack(
    archive: Path,
    destination: Path,
    *,
    strip: int = 0,
    limits: Limits = Limits(),
    free_space: Callable[[Path], int] = free_bytes,
) -> int:
    """Unpack a zip or tar file to ``destination``, which must not exist or be empty; the number of files written.

    All is written to a hidden folder beside ``destination`` and then renamed. ``strip`` drops leading folders.

    :raises ArchiveError: for every reason above; ``destination`` is then as it was
    """
    if destination.exists() and any(destination.iterdir()):
        raise ArchiveError(f"{destination} already holds files; move them away first, nothing was overwritten")
    try:
        with _members(archive) as members:
            planned = _plan(archive, members, strip, limits)
            _check_space(archive, destination, sum(member.size for member in planned.values()), free_space)
            destination.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.partial-") as partial:
                _write_all(planned, Path(partial) / "files")
                os.replace(Path(partial) / "files", destination)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise ArchiveError(f"{archive.name} is damaged or cut short ({error}); delete it and fetch it again") from error
    except OSError as error:
        raise ArchiveError(f"{archive.name}: {error.strerror or error}; nothing came to {destination}") from error
    return len(planned)


@contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield [_zip_member(file, info) for info in file.infolist()]
    else:
        with tarfile.open(archive) as file:
            yield [
                _Member(info.name, info.size, info.isreg(), info.isdir(), lambda info=info: file.extractfile(info))
                for info in file.getmembers()
            ]


def _zip_member(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    kind = (info.external_attr >> 16) & 0o170000  # the Unix file type, 0 where the maker gave none
    return _Member(info.filename, info.file_size, kind in (0, 0o100000), info.is_dir(), lambda: file.open(info))


def _plan(archive: Path, members: list[_Member], strip: int, limits: Limits) -> dict[PurePosixPath, _Member]:
    planned: dict[PurePosixPath, _Member] = {}
    for member in members:
        path = PurePosixPath(member.name)
        bad_name = not member.name or "\\" in member.name or "\0" in member.name or re.match(r"[A-Za-z]:", member.name)
        if bad_name or path.is_absolute() or ".." in path.parts:
            raise ArchiveError(f"{archive.name} holds the unsafe name {member.name!r}; nothing was unpacked")
        if member.folder:
            continue
        if not member.plain:
            raise ArchiveError(f"{archive.name} holds {member.name!r}, a link or device; nothing was unpacked")
        if "__MACOSX" in path.parts or len(path.parts) <= strip:
            continue  # the shadow files of macOS, and files beside the folder that is stripped
        path = PurePosixPath(*path.parts[strip:])
        if path in planned:
            raise ArchiveError(f"{archive.name} holds {member.name!r} twice; nothing was unpacked")
        planned[path] = member
    if clash := {parent for path in planned for parent in path.parents} & set(planned):
        raise ArchiveError(f"{archive.name} holds {str(min(clash))!r} as file and as folder; nothing was unpacked")
    size = sum(member.size for member in planned.values())
    ceiling = min(limits.bytes, limits.ratio * max(archive.stat().st_size, _BLOCK))
    if len(planned) > limits.files or size > ceiling:
        raise ArchiveError(
            f"{archive.name} would unpack to {len(planned)} files of {size} bytes in all, more than the limits "
            f"({limits.files} files, {ceiling} bytes); nothing was unpacked"
        )
    if not planned:
        raise ArchiveError(f"{archive.name} holds no files")
    return planned


def _check_space(archive: Path, destination: Path, size: int, free_space: Callable[[Path], int]) -> None:
    free = free_space(destination.parent)
    if size + _RESERVE > free:
        raise ArchiveError(
            f"{archive.name} needs {size / 2**30:.2f} GiB below {destination.parent}, where {free / 2**30:.2f} GiB are "
            "free; make room and fetch again"
        )


def _write_all(planned: dict[PurePosixPath, _Member], folder: Path) -> None:
    for path, member in planned.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, open(target, "xb") as sink:  # "x": never through something that is there
            left = member.size
            while block := source.read(_BLOCK):
                left -= len(block)
                if left < 0:
                    raise ArchiveError(f"{member.name!r} is larger than the archive says; nothing was unpacked")
                sink.write(block)
            if left:
                raise EOFError(f"{member.name!r} ends early")
