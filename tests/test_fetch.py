"""Fetching from a loopback server that serves a published layout, and everything that can go wrong on the way."""

import errno
import hashlib
import io
import json
import logging
import os
import shutil
import tarfile
import threading
import traceback
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from wbcrepro.data import archives, catalog, download, tokens
from wbcrepro.data.archives import ArchiveError, Limits, unpack
from wbcrepro.data.download import ResumingDownloader
from wbcrepro.data.fetch import fetch
from wbcrepro.data.sources import open_dataset
from wbcrepro.errors import DataMissing, Locked


class Handler(BaseHTTPRequestHandler):
    """One file with ranges and an ETag, and a list of faults that are used up one a request."""

    def do_GET(self):
        server = self.server
        server.requests.append(dict(self.headers))
        fault = server.faults.pop(0) if server.faults else None
        body, start = server.body, 0
        if fault in (404, 403, 500, 503, 429):
            return self._answer(fault, b"no")
        wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if wanted and server.ranges and condition == server.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                return self._answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        headers = {"ETag": server.etag} if server.etag else {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if isinstance(fault, tuple):  # ("drop", n): send n bytes of what was promised, then hang up
            return self._answer(206 if start else 200, body[start : start + fault[1]], headers, len(body) - start)
        self._answer(206 if start else 200, body[start:], headers)

    def _answer(self, code, body, headers=None, promised=None):
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if promised is None else promised))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.faults, server.ranges, server.etag, server.body = [], [], True, '"v1"', b""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}/sets/archive.zip"
    yield server
    server.shutdown()
    server.server_close()


def png(number):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def zipped(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


PUBLISHED = {
    "PBC_dataset_normal_DIB/basophil/BA_1.jpg": png(1),
    "PBC_dataset_normal_DIB/neutrophil/SNE_2.jpg": png(2),
    "__MACOSX/PBC_dataset_normal_DIB/._x": b"shadow",
}


@pytest.fixture
def entry(server):
    server.body = zipped(PUBLISHED)
    item = {"url": server.url, "file": "archive.zip", "extract_to": "."}
    item["sha256"] = hashlib.sha256(server.body).hexdigest()
    return replace(catalog.dataset("acevedo20"), downloads=(item,))


@pytest.fixture
def get(entry, tmp_path, monkeypatch):
    """Fetch into ``tmp_path/data``; what it says is collected in ``get.said``."""

    def run(entry=entry, **options):
        options = {"wait": lambda seconds: None, "retries": 3} | options
        return fetch(entry, tmp_path / "data", say=run.said.append, progress=False, **options)

    monkeypatch.setattr(download, "_BLOCK", 10)
    run.said, run.root = [], tmp_path / "data"
    return run


def left(root):
    """Every file below ``root``, hidden ones too."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


IMAGES = ["acevedo20/PBC_dataset_normal_DIB/basophil/BA_1.jpg", "acevedo20/PBC_dataset_normal_DIB/neutrophil/SNE_2.jpg"]


def test_fetch_unpacks_the_published_layout_and_leaves_nothing_else(get, server, tmp_path):
    get()
    assert left(get.root) == IMAGES and [path.name for path in get.root.iterdir()] == ["acevedo20"]
    manifest = open_dataset("acevedo20", get.root, tmp_path / "cache", progress=False).manifest
    assert manifest.counts()["BA"] == manifest.counts()["SNE"] == 1
    assert any("CC BY 4.0" in line for line in get.said) and any("data verify" in line for line in get.said)
    get()
    assert len(server.requests) == 1 and "already" in get.said[-1]


def test_dropped_connection_goes_on_where_it_stopped(get, server):
    server.faults = [("drop", 100), ("drop", 50), 503]
    get()
    assert left(get.root) == IMAGES
    assert [request.get("Range") for request in server.requests] == [None, "bytes=100-", "bytes=150-", "bytes=150-"]


def test_connection_lost_for_good_keeps_the_part_for_the_next_call(get, server):
    server.faults = [("drop", 100)] + [500] * 10
    with pytest.raises(DataMissing, match="(?s)100 bytes are kept.*by hand") as error:
        get()
    assert error.value.exit_code == 3
    assert left(get.root) == [".downloads/archive.zip.part", ".downloads/archive.zip.part.json"]
    server.faults, server.requests = [], []
    get()
    assert left(get.root) == IMAGES and server.requests[0]["Range"] == "bytes=100-"


@pytest.mark.parametrize("change", ["version", "ranges", "tag"])
def test_a_part_is_never_joined_to_another_file(get, server, entry, change):
    server.faults = [("drop", 100)] + [500] * 10
    if change == "tag":
        server.etag = ""  # a server that names no version: its parts are never continued
    with pytest.raises(DataMissing):
        get()
    server.faults, server.body = [], zipped(PUBLISHED | {"PBC_dataset_normal_DIB/basophil/BA_3.jpg": png(3)})
    server.etag, server.ranges = {"version": '"v2"', "ranges": '"v1"', "tag": ""}[change], change != "ranges"
    digest = hashlib.sha256(server.body).hexdigest()
    get(replace(entry, downloads=(entry.downloads[0] | {"sha256": digest},)))
    assert len(left(get.root)) == 3


def test_a_complete_part_is_not_downloaded_again(server, tmp_path):
    server.body = b"x" * 1000
    part, tag = tmp_path / "f.part", tmp_path / "f.part.json"
    part.write_bytes(server.body), tag.write_text(json.dumps({"url": server.url, "tag": '"v1"'}))
    ResumingDownloader(part, progress=False)(server.url, tmp_path / "f", None)
    assert (tmp_path / "f").read_bytes() == server.body and len(server.requests) == 1 and not part.exists()


def test_wrong_checksum_leaves_nothing(get, entry):
    wrong = replace(entry, downloads=(entry.downloads[0] | {"sha256": "0" * 64},))
    with pytest.raises(DataMissing, match=f"does not have the sha256 {'0' * 64}"):
        get(wrong)
    assert left(get.root) == []


def test_unknown_checksum_is_shown_as_not_compared(get, server, entry):
    get(replace(entry, downloads=(entry.downloads[0] | {"sha256": None, "note": "nobody computed it"},)))
    digest = hashlib.sha256(server.body).hexdigest()
    assert any(digest in line and "not compared" in line for line in get.said)


def served(entry, server, body):
    server.body = body
    return replace(entry, downloads=(entry.downloads[0] | {"sha256": hashlib.sha256(body).hexdigest()},))


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.99])
def test_truncated_archive_leaves_nothing(get, server, entry, kept):
    cut = server.body[: int(kept * len(server.body))]
    with pytest.raises(DataMissing, match="damaged or cut short"):
        get(served(entry, server, cut))
    assert left(get.root) == []


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "PBC_dataset_normal_DIB/../../../evil.jpg", "/tmp/evil.jpg", "a\\..\\evil", "C:/evil"]
)
def test_archive_with_names_that_lead_out_leaves_nothing(get, server, entry, tmp_path, name):
    with pytest.raises(DataMissing, match="unsafe name"):
        get(served(entry, server, zipped(PUBLISHED | {name: b"evil"})))
    assert left(get.root) == [] and not [path for path in tmp_path.rglob("*evil*")]


def test_full_disk_before_the_download(get):
    with pytest.raises(DataMissing, match="needs .* more bytes"):
        get(free_space=lambda folder: 10)
    assert left(get.root) == []


def test_full_disk_before_unpacking(get, server):
    with pytest.raises(DataMissing, match="GiB are free"):
        get(free_space=lambda folder: len(server.body) + 10)
    assert left(get.root) == []


def test_full_disk_during_the_download(get, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(path, mode, real=open):
        return Full(path, mode) if str(path).endswith(".part") else real(path, mode)

    monkeypatch.setattr(download, "open", opened, raising=False)
    with pytest.raises(DataMissing, match="no space left"):
        get()
    assert left(get.root) == []


def test_full_disk_during_unpacking(get, monkeypatch):
    real, opened = open, []

    def full(path, mode):
        if opened:
            raise OSError(errno.ENOSPC, "No space left on device")
        opened.append(path)
        return real(path, mode)

    monkeypatch.setattr(archives, "open", full, raising=False)
    with pytest.raises(DataMissing, match="No space left"):
        get()
    assert opened and left(get.root) == []


def test_refused_by_the_server_tells_what_to_do_by_hand(get, server):
    server.faults = [404]
    with pytest.raises(DataMissing, match="(?s)404.*PBC_dataset_normal_DIB.zip"):
        get()
    assert len(server.requests) == 1 and left(get.root) == []


def test_other_files_are_never_overwritten(get, server):
    mine = get.root / "acevedo20" / "mine.txt"
    mine.parent.mkdir(parents=True), mine.write_text("mine")
    with pytest.raises(DataMissing, match="never overwritten"):
        get()
    assert mine.read_text() == "mine" and not server.requests


def test_two_downloads_at_once_are_refused(server, tmp_path):
    server.body = b"x"
    downloader = ResumingDownloader(tmp_path / "f.part", progress=False)
    with downloader._alone(), pytest.raises(Locked):
        downloader(server.url, tmp_path / "f", None)


@pytest.mark.parametrize("name", ["matek19", "raabin-wbc", "ldwbc", "lisc", "int20", "sysu3h", "chula500", "raabin500"])
def test_what_cannot_be_downloaded_gets_its_manual_steps(tmp_path, name):
    entry = catalog.dataset(name)
    with pytest.raises(DataMissing) as error:
        fetch(entry, tmp_path, say=lambda text: None)
    assert str(tmp_path / entry.folder) in str(error.value) and error.value.exit_code == 3
    assert ("private" in str(error.value)) == entry.private


# --- archives on their own


def tarred(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def member(name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


@pytest.fixture
def put(tmp_path):
    def unpacked(data, **options):
        (tmp_path / "a").write_bytes(data)
        return unpack(tmp_path / "a", tmp_path / "out", **options)

    unpacked.left = lambda: sorted(path.name for path in tmp_path.iterdir())
    return unpacked


def test_tar_is_unpacked_with_stripping_and_without_its_permissions(put, tmp_path):
    folder, inner = member("top", type=tarfile.DIRTYPE), member("top/d/x", b"123", mode=0o6777)
    data = tarred([folder, inner, member("top/y", b"4"), member("z", b"")])
    assert put(data, strip=1) == 2
    assert (tmp_path / "out" / "d" / "x").read_bytes() == b"123" and not (tmp_path / "out" / "z").exists()
    assert (tmp_path / "out" / "d" / "x").stat().st_mode & 0o7000 == 0


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_tar_links_and_devices_are_refused(put, kind):
    with pytest.raises(ArchiveError, match="link or device"):
        put(tarred([member("ok", b"1"), member("bad", type=kind, linkname="/etc/passwd")]))
    assert put.left() == ["a"]


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_tar_names_that_lead_out_are_refused(put, name):
    with pytest.raises(ArchiveError, match="unsafe name"):
        put(tarred([member("ok", b"1"), member(name, b"2")]))
    assert put.left() == ["a"]


def test_zip_links_are_refused(put):
    file, info = io.BytesIO(), zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ArchiveError, match="link or device"):
        put(file.getvalue())
    assert put.left() == ["a"]


def test_bombs_are_refused_by_ratio_size_and_number(put):
    with pytest.raises(ArchiveError, match="more than the limits"):
        put(zipped({"big": b"\0" * (3 << 20)}), limits=Limits(ratio=2))
    with pytest.raises(ArchiveError, match="more than the limits"):
        put(zipped({"a": b"12345", "b": b"6"}), limits=Limits(bytes=5))
    with pytest.raises(ArchiveError, match="more than the limits"):
        put(zipped({str(number): b"" for number in range(11)}), limits=Limits(files=10))
    assert put.left() == ["a"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_ambiguous_archives_are_refused(put):
    with pytest.raises(ArchiveError, match="as file and as folder"):
        put(zipped({"a": b"1", "a/b": b"2"}))
    with pytest.raises(ArchiveError, match="twice"):
        put(zipped({"a/b": b"1", "a//b": b"2"}))
    with pytest.raises(ArchiveError, match="holds no files"):
        put(zipped({}))


def test_flipped_bytes_are_noticed(put):
    data = bytearray(zipped({"a": os.urandom(5000)}))
    data[2000] ^= 255
    with pytest.raises(ArchiveError, match="damaged"):
        put(bytes(data))
    assert put.left() == ["a"]


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_truncated_tar_is_refused(put, kept):
    data = tarred([member(str(number), os.urandom(9000)) for number in range(5)])
    with pytest.raises(ArchiveError, match="damaged"):
        put(data[: int(kept * len(data))])
    assert put.left() == ["a"]


# --- tokens

SECRET = "s3cr3t-t0ken"


@pytest.fixture
def clean(monkeypatch, tmp_path):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR", "HF_TOKEN", "HF_HOME", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_tokens_come_from_their_usual_places(clean, monkeypatch):
    assert tokens.credential("kaggle") is None and tokens.credential("huggingface") is None
    (clean / ".kaggle").mkdir(parents=True)
    (clean / ".kaggle" / "kaggle.json").write_text(json.dumps({"username": "me", "key": SECRET}))
    (clean / ".cache" / "huggingface").mkdir(parents=True)
    (clean / ".cache" / "huggingface" / "token").write_text(f"{SECRET}\n")
    assert tokens.credential("kaggle")._header.startswith("Basic ")
    assert tokens.credential("huggingface")._header == f"Bearer {SECRET}"
    (clean / ".kaggle" / "kaggle.json").write_text(f'{{"username": "me", "key": "{SECRET}"')
    assert tokens.credential("kaggle") is None
    monkeypatch.setenv("KAGGLE_USERNAME", "me"), monkeypatch.setenv("KAGGLE_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", "other")
    assert tokens.credential("kaggle") and tokens.credential("huggingface")._header == "Bearer other"


def test_gated_data_without_a_token_names_the_places_and_the_steps(clean, tmp_path):
    with pytest.raises(DataMissing, match="(?s)KAGGLE_KEY.*agreement.*rules.*patient_hash"):
        fetch(catalog.dataset("wbcbench2026"), tmp_path, say=lambda text: None)


@pytest.mark.parametrize("faults", [[], [403], [500] * 20, [("drop", 5)] * 20])
def test_tokens_go_to_their_host_only_and_are_never_shown(
    clean, get, server, entry, monkeypatch, caplog, capfd, faults
):
    monkeypatch.setenv("KAGGLE_USERNAME", "me"), monkeypatch.setenv("KAGGLE_KEY", SECRET)
    hidden = (SECRET, tokens.credential("kaggle")._header.removeprefix("Basic "))
    guarded = replace(entry, downloads=(entry.downloads[0] | {"auth": "kaggle"},))
    caplog.set_level(logging.DEBUG)
    shown = []
    for hosts, sends in (({"kaggle": ("http", "127.0.0.1")}, True), (tokens.HOSTS, False)):
        server.faults, server.requests = list(faults), []
        monkeypatch.setattr(tokens, "HOSTS", hosts)
        try:
            get(guarded, retries=2)
        except DataMissing as error:
            shown += [traceback.format_exc(), repr(error), repr(error.__cause__), repr(vars(error))]
        sent = [request.get("Authorization") for request in server.requests]
        assert sent and all((value is not None) == sends for value in sent)
        shown += get.said + [repr(tokens.credential("kaggle")), str(vars(entry))]
        for path in get.root.rglob("*"):
            shown.append(path.read_bytes().decode("latin1") if path.is_file() else "")
        shutil.rmtree(get.root, ignore_errors=True)
    everything = "\n".join(shown) + caplog.text + "".join(capfd.readouterr())
    assert not [secret for secret in hidden if secret in everything]


def test_addresses_are_shown_without_secrets():
    assert download._shown("https://me:pw@host.org:8/a/b?key=1#x") == "https://host.org:8/a/b"
