"""A downloader for pooch that goes on where a dropped connection stopped (HTTP Range), which pooch's own does not."""

import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm.auto import tqdm

from wbcrepro.data.archives import free_bytes
from wbcrepro.data.manifest import write_atomically
from wbcrepro.data.tokens import Credential
from wbcrepro.errors import DataMissing, Locked

_BLOCK = 1 << 14  # a dropped connection loses the block that it cuts
_TIMEOUT = (15, 60)


class _Retry(Exception):
    """This attempt ended early; the next may go on from what it left."""


class ResumingDownloader:
    """``downloader(url, output_file, pooch)`` as pooch calls it.

    The bytes go to ``part`` with the server's version tag beside it; both stay when the connection is lost for good, so
    that the next call goes on. A server that has another version by then, or that knows no ranges, starts afresh.

    :raises DataMissing: refused, lost after all retries, or the disk is full (then the part is removed)
    :raises Locked: another process downloads the same file
    """

    def __init__(
        self,
        part: Path,
        *,
        credential: Credential | None = None,
        retries: int = 5,
        progress: bool = True,
        wait: Callable[[float], None] = time.sleep,
        free_space: Callable[[Path], int] = free_bytes,
    ):
        self.part, self.tag = part, part.with_name(part.name + ".json")
        self.credential, self.retries, self.progress = credential, retries, progress
        self.wait, self.free_space = wait, free_space

    def __call__(self, url: str, output_file, pooch=None, check_only: bool = False) -> None:
        """Download ``url`` completely, then move it to ``output_file``."""
        with self._alone():
            failures, size = 0, -1
            while True:
                try:
                    self._attempt(url)
                    break
                except _Retry as reason:
                    now = self._size()
                    failures, size = (failures + 1 if now <= size else 0), max(size, now)
                    if failures >= self.retries:
                        raise DataMissing(
                            f"{_shown(url)}: {reason}; {now} bytes are kept in {self.part}, from where the same "
                            "command goes on"
                        ) from None
                    self.wait(min(2**failures, 30))
                except OSError as error:
                    self._disk_error(error)
            self.part.replace(output_file)
            self.tag.unlink(missing_ok=True)

    def _attempt(self, url: str) -> None:
        have, headers = self._size(), {"Accept-Encoding": "identity"}
        known = self._known_tag(url)
        if have and known:
            headers |= {"Range": f"bytes={have}-", "If-Range": known}
        try:
            with requests.get(url, headers=headers, auth=self.credential, stream=True, timeout=_TIMEOUT) as response:
                self._refuse(url, response)
                if response.headers.get("Content-Range") == f"bytes */{have}":
                    return  # the part was complete already
                if response.status_code == 416:  # the part is longer than the file, or is not of it
                    self.part.unlink(missing_ok=True)
                    raise _Retry("the server has another version by now")
                start = have if _starts_at(response) == have and response.status_code == 206 else 0
                self._write(url, response, start)
        except requests.RequestException as error:
            # The error itself holds the request with its headers, so only the name of its class goes on.
            raise _Retry(f"the connection was lost ({type(error).__name__})") from None

    def _write(self, url: str, response: requests.Response, start: int) -> None:
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        if total is not None and total - start > (free := self.free_space(self.part.parent)):
            self._remove()
            where = self.part.parent
            raise DataMissing(f"{_shown(url)}: needs {total - start} more bytes in {where}, where {free} are free")
        tag = _version(response)
        write_atomically(self.tag, json.dumps({"url": _shown(url), "tag": tag}).encode())
        look = {"unit": "B", "unit_scale": True, "desc": self.part.stem, "disable": not self.progress}
        with open(self.part, "r+b" if start else "wb") as file, tqdm(total=total, initial=start, **look) as bar:
            file.truncate(start)
            file.seek(start)
            for block in response.iter_content(_BLOCK):
                file.write(block)
                bar.update(len(block))
        if total is not None and self._size() != total:
            raise _Retry(f"the connection ended after {self._size()} of {total} bytes")

    def _refuse(self, url: str, response: requests.Response) -> None:
        code = response.status_code
        if urlsplit(url).scheme == "https" and urlsplit(response.url).scheme != "https":
            raise DataMissing(f"{_shown(url)}: the server leads to an unencrypted address; download it by hand")
        if code == 429 or code >= 500:
            raise _Retry(f"the server answered {code}")
        if code not in (200, 206, 416):
            raise DataMissing(f"{_shown(url)}: the server answered {code} {response.reason}")

    def _known_tag(self, url: str) -> str | None:
        try:
            known = json.loads(self.tag.read_text("utf-8"))
            return known["tag"] if known["url"] == _shown(url) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _remove(self) -> None:
        self.part.unlink(missing_ok=True)
        self.tag.unlink(missing_ok=True)

    def _disk_error(self, error: OSError) -> None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            self._remove()
            raise DataMissing(f"no space left on the disk of {self.part.parent}; make room and fetch again") from error
        raise DataMissing(f"{self.part}: {error.strerror or error}") from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.part.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.part.parent, os.O_RDONLY)  # a lock on the folder leaves no lock file behind
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise Locked(f"another process downloads to {self.part.parent}; wait for it, or stop it") from None
        finally:
            os.close(folder)


def _starts_at(response: requests.Response) -> int:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else 0


def _version(response: requests.Response) -> str | None:
    """What If-Range needs: a strong ETag or the date; without either a part is never continued."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _shown(url: str) -> str:
    """The address without user, password and query, which may hold secrets."""
    address = urlsplit(url)
    return f"{address.scheme}://{address.hostname or ''}{f':{address.port}' if address.port else ''}{address.path}"
