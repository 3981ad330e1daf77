"""Kaggle and Hugging Face tokens from the places where their own clients keep them; never shown, logged or stored.

A token leaves this module only inside a request header to its own host over HTTPS (``requests`` drops that header when
a redirect leads to another host). Its object prints as ``hidden``, and no error carries file content.
"""

import base64
import json
import os
from pathlib import Path
from urllib.parse import urlsplit

from requests import PreparedRequest
from requests.auth import AuthBase

HOSTS = {"kaggle": ("https", "kaggle.com"), "huggingface": ("https", "huggingface.co")}
PLACES = {
    "kaggle": "KAGGLE_USERNAME and KAGGLE_KEY, or ~/.kaggle/kaggle.json",
    "huggingface": "HF_TOKEN, or ~/.cache/huggingface/token",
}


class Credential(AuthBase):
    """An Authorization header for one service."""

    def __init__(self, service: str, header: str):
        self.service = service
        self._header = header

    def __repr__(self) -> str:
        return f"Credential({self.service}, hidden)"

    def __reduce__(self):
        raise TypeError("a credential is not stored")

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        scheme, host = HOSTS[self.service]
        address = urlsplit(request.url or "")
        name = address.hostname or ""
        if address.scheme == scheme and (name == host or name.endswith(f".{host}")):
            request.headers["Authorization"] = self._header
        return request


def credential(service: str) -> Credential | None:
    """The user's credential for ``kaggle`` or ``huggingface``, or None where there is none."""
    return {"kaggle": _kaggle, "huggingface": _hugging_face}[service]()


def _kaggle() -> Credential | None:
    user, key = os.environ.get("KAGGLE_USERNAME"), os.environ.get("KAGGLE_KEY")
    if not (user and key):
        folder = Path(os.environ.get("KAGGLE_CONFIG_DIR") or Path.home() / ".kaggle")
        try:
            content = json.loads((folder / "kaggle.json").read_text("utf-8"))
            user, key = content["username"], content["key"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return Credential("kaggle", "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode())


def _hugging_face() -> Credential | None:
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
        try:
            token = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").read_text("utf-8").strip()
        except (OSError, ValueError):
            return None
    return Credential("huggingface", f"Bearer {token}") if token else None
