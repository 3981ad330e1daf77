"""A lock with a heartbeat: two processes on one cell run it once, and a lock whose owner died is reclaimed.

The lock is a file created exclusively. Its owner touches it every ``BEAT`` seconds from a thread; a lock that was not
touched for ``STALE`` seconds, or whose process here is gone, may be taken over. "Here" is more than a host's name,
which two containers may share while neither sees the other's processes. This works on shared file systems, where the
locks of the operating system often do not, and on those without hard links.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from functools import cache
from pathlib import Path

from wbcrepro.errors import Locked

BEAT = 5.0
STALE = 60.0


class CellLock:
    """``with CellLock(folder):`` runs the block alone, or raises ``Locked`` at once, naming the owner."""

    def __init__(self, folder: Path, *, beat: float = BEAT, stale: float = STALE):
        self.path = folder / "lock"
        self.beat, self.stale = beat, stale
        self._stop = threading.Event()
        self._token = uuid.uuid4().hex

    def __enter__(self) -> CellLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._create():
            self._reclaim()
        self._thread = threading.Thread(target=self._heartbeat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._owner().get("token") == self._token:
            self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        content = {"pid": os.getpid(), "host": socket.gethostname(), "here": _here(), "token": self._token}
        temporary = self.path.with_name(f"lock.{self._token}")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        try:
            return self._publish(temporary)
        finally:
            temporary.unlink()

    def _publish(self, written: Path) -> bool:
        """Give a file the lock's name; False when there is a lock."""
        try:
            os.link(written, self.path)  # the content is never seen half-written
            return True
        except FileExistsError:
            return False
        except OSError:  # a drive without hard links; a reader of half the content sees a fresh lock of nobody
            pass
        try:
            with open(self.path, "x", encoding="utf-8") as file:
                file.write(written.read_text(encoding="utf-8"))
            return True
        except FileExistsError:
            return False

    def _owner(self, path: Path | None = None) -> dict:
        try:
            return json.loads((path or self.path).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _is_stale(self, owner: dict) -> bool:
        try:
            age = time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return True
        if owner.get("here") == _here() and not _alive(owner.get("pid")):
            return True
        return age > self.stale

    def _reclaim(self) -> None:
        owner = self._owner()
        if self._is_stale(owner):
            aside = self.path.with_name(f"lock.stale.{self._token}")
            try:
                os.rename(self.path, aside)  # of several that try, one succeeds
            except FileNotFoundError:
                aside = None
            if aside and self._owner(aside).get("token") != owner.get("token"):
                # Somebody reclaimed it between our look and our rename: the lock is theirs, give it back.
                self._publish(aside)
                owner = self._owner()
            elif self._create():
                if aside:
                    aside.unlink(missing_ok=True)
                return
            else:
                owner = self._owner()
            if aside:
                aside.unlink(missing_ok=True)
        raise Locked(
            f"{self.path.parent.name} is being run by process {owner.get('pid', '?')} on {owner.get('host', '?')}. "
            f"Wait for it; a lock left by a dead process is taken over after {self.stale:.0f} s."
        )

    def _heartbeat(self) -> None:
        while not self._stop.wait(self.beat):
            try:
                os.utime(self.path)
            except OSError:
                pass


@cache
def _here() -> str:
    """A name for the processes that ours can see: of the host, its boot, and on Linux the container's namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        parts = [socket.gethostname(), boot, os.readlink("/proc/self/ns/pid")]
    except OSError:  # where Linux does not say, trust no process number: only a lock that went silent is taken over
        parts = [socket.gethostname(), uuid.uuid4().hex if sys.platform == "linux" else ""]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _alive(pid: int | None) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    return True
