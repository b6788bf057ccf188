"""A language model of the hub, from a small hub on this machine: what is fetched, and what is not."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from tests.conftest import Run
from tests.language_models import folder

COMMIT, REPO = "0123456789abcdef0123456789abcdef01234567", "owner/model"
FIND = """
from lexrec.errors import LmError
from lexrec.lm.sources import find
for name in ("owner/model@main", "owner/absent"):
    try:
        base = find(name)
        print(base.sha256, base.source, base.revision, *sorted(p.name for p in base.folder.iterdir()))
    except LmError as error:
        print("LmError", error)
"""


@pytest.fixture
def hub() -> Iterator[str]:
    """Serves a tiny language model, and a pickle beside it."""
    files = {path.name: path.read_bytes() for path in folder().iterdir()} | {"pytorch_model.bin": b"pickle"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlparse(self.path).path)
            if path.startswith(f"/api/models/{REPO}/tree/"):
                listing = [
                    {"type": "file", "path": f, "size": len(d), "oid": oid(d)} for f, d in files.items()
                ]
                return self.answer(200, json.dumps(listing).encode())
            if path.startswith(f"/api/models/{REPO}"):
                card = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
                return self.answer(200, json.dumps(card).encode())
            data = files.get(path.rpartition("/")[2]) if path.startswith(f"/{REPO}/resolve/") else None
            return self.answer(404 if data is None else 200, data or b"")

        do_HEAD = do_GET

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{oid(body)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def oid(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_hub_model_is_fetched_once_without_its_pickles(python: Run, hub: str, tmp_path: Path) -> None:
    places = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}
    places |= {"HF_HUB_OFFLINE": "0", "LEXREC_OFFLINE": "0"}
    first = python("-c", FIND, **places)
    sha256 = oid((folder() / "model.safetensors").read_bytes())
    found, absent = first.stdout.splitlines()
    said = found.split()
    assert said[:3] == [sha256, f"hf:{REPO}", COMMIT], first.stderr
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(said[3:])
    assert "pytorch_model.bin" not in said
    assert absent.startswith("LmError language model owner/absent")
    again = python("-c", FIND, **places | {"LEXREC_OFFLINE": "1", "HF_ENDPOINT": ""})
    assert again.stdout.splitlines()[0] == found, again.stderr
