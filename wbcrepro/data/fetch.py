"""Download the datasets whose licence allows it; for the others, say exactly what to do by hand."""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import pooch

from wbcrepro.data.archives import free_bytes, unpack
from wbcrepro.data.catalog import Dataset
from wbcrepro.data.download import ResumingDownloader
from wbcrepro.data.sources import find_layout
from wbcrepro.data.tokens import PLACES, credential
from wbcrepro.errors import DataMissing


def fetch(
    entry: Dataset,
    data_root: Path,
    *,
    say: Callable[[str], None] = print,
    progress: bool = True,
    free_space: Callable[[Path], int] = free_bytes,
    **downloader_options,
) -> Path:
    """Bring ``entry`` below ``data_root`` in its published layout; its folder. Does nothing where it is there already.

    Archives go to ``data_root/.downloads`` and are deleted once unpacked. A wrong checksum or a damaged archive leaves
    nothing behind, a lost connection only the part that the next call continues.

    :raises DataMissing: cannot be downloaded (the message is the manual steps), or the download failed
    """
    folder = Path(data_root) / entry.folder
    if find_layout(entry, data_root) is not None:
        say(f"{entry.name} is already in {folder}; check it with: wbcrepro data verify {entry.name}")
        return folder
    say(f"{entry.title}\n  licence:  {entry.licence['name']}\n  cite:     {entry.citation}")
    if not entry.downloads:
        raise DataMissing(by_hand(entry, data_root))
    downloads = Path(data_root) / ".downloads"
    for item in entry.downloads:
        target = folder / item["extract_to"]
        if target.exists() and any(target.iterdir()):
            raise DataMissing(by_hand(entry, data_root, f"{target} holds other files, which are never overwritten."))
        auth = credential(item["auth"]) if "auth" in item else None
        if "auth" in item and auth is None:
            raise DataMissing(by_hand(entry, data_root, f"No token found ({PLACES[item['auth']]})."))
        options = {"credential": auth, "progress": progress, "free_space": free_space} | downloader_options
        try:
            downloader = ResumingDownloader(downloads / f"{item['file']}.part", **options)
            archive = _download(item, downloads, downloader, say)
            files = unpack(archive, target, strip=item.get("strip", 0), free_space=free_space)
        except DataMissing as error:
            (downloads / item["file"]).unlink(missing_ok=True)  # wrong, damaged or hostile: not to be used again
            raise DataMissing(by_hand(entry, data_root, f"The download failed: {error}.")) from None
        finally:
            _tidy(downloads)
        archive.unlink()
        _tidy(downloads)
        say(f"unpacked {files} files to {target}")
    if find_layout(entry, data_root) is None:
        reason = f"The archive was unpacked to {folder}, but has another layout than the published one."
        raise DataMissing(by_hand(entry, data_root, reason))
    say(f"next: wbcrepro data verify {entry.name}")
    return folder


def by_hand(entry: Dataset, data_root: Path, reason: str = "") -> str:
    """The manual steps as one message, after ``reason``."""
    why = {
        "open": "It can be downloaded by hand:",
        "manual": "It has to be downloaded by hand:",
        "gated": "It is given only to people who accept its agreement, and is never redistributed:",
        "private": "It is private:",
    }[entry.access]
    after = "" if entry.private else f"\nThen check it with: wbcrepro data verify {entry.name}"
    return f"{entry.name}: {reason}{' ' if reason else ''}{why}\n{entry.instructions(data_root)}{after}"


def _tidy(folder: Path) -> None:
    """Remove ``folder`` if nothing is left in it (a part that the next call continues may be)."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def _download(item: dict, folder: Path, downloader: ResumingDownloader, say: Callable[[str], None]) -> Path:
    say(f"downloading {item['file']} to {folder}")
    pooch.get_logger().setLevel("WARNING")  # what it says about unknown checksums is said below, for users
    expected = item["sha256"]
    try:
        path = pooch.retrieve(
            item["url"],
            known_hash=f"sha256:{expected}" if expected else None,
            fname=item["file"],
            path=folder,
            downloader=downloader,
        )
    except ValueError:  # pooch's answer to a wrong checksum; it has deleted the file
        raise DataMissing(f"{item['file']} does not have the sha256 {expected}, so it was deleted") from None
    if not expected:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        say(f"sha256 {digest} (not compared with anything: {item['note']})")
    return Path(path)
