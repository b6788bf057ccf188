"""`hf:repo@rev#file:tensor`: one tensor of a model on the hub, by byte range.

Only the header of the weights file, the one tensor and the tokenizer are fetched, never the model.
HF_ENDPOINT names another server with the same interface, HF_TOKEN an access token for gated models.
"""

import json
import os
import re
import urllib.parse
from typing import Any

from lexrec.errors import TokensError
from lexrec.tokens import reading
from lexrec.tokens.entry import Entry
from lexrec.tokens.sources import _weights
from lexrec.tokens.sources._http import Client, HttpFile
from lexrec.tokens.sources.base import TokenSource
from lexrec.tokens.table import TokenTable

_ENDPOINT = "https://huggingface.co"
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_MAX_LISTING = 32 << 20


class HfSource(TokenSource):
    """Models on the hub. A revision that moves (a branch) is resolved to a commit first."""

    is_remote = True

    def read(self, entry: Entry) -> TokenTable:
        repo, _, revision = entry.location.partition("@")
        if not _REPO.fullmatch(repo):
            raise TokensError(
                f"source {entry.source!r}: {repo!r} is not a model's name; write hf:owner/model@rev"
            )
        client = Client(os.environ.get("HF_TOKEN", "").strip())
        endpoint = (os.environ.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")
        if not endpoint.startswith(("http://", "https://")):
            raise TokensError(f"HF_ENDPOINT {endpoint!r} is not an http or https address")
        listing = _listing(client, endpoint, repo, revision or "main")
        commit = listing["sha"]
        base = f"{endpoint}/{repo}/resolve/{commit}"
        folder = _weights.Folder(
            name=f"{repo}@{commit[:12]}",
            files={record["rfilename"] for record in listing["siblings"]},
            open=lambda file: HttpFile(client, f"{base}/{urllib.parse.quote(file)}", f"{repo}/{file}"),
        )
        file, tensor = _file_and_tensor(entry.fragment)
        file = file or _weights.find(folder, tensor)
        found = reading.read_tensor(folder.open(file), entry, tensor)
        tokens, tokenizer = _weights.texts(folder, entry, file, found)
        return TokenTable(
            name=entry.name,
            weight_VW=found.weight_VW,
            tokens=tokens,
            source=f"hf:{repo}@{commit}#{file}:{found.tensor}",
            revision=commit,
            sha256=found.sha256,
            licence=entry.licence or _licence(listing) or found.licence,
            tokenizer=tokenizer,
        )


def _listing(client: Client, endpoint: str, repo: str, revision: str) -> dict[str, Any]:
    """The hub's record of a model at a revision: its commit, files and card."""
    url = f"{endpoint}/api/models/{repo}/revision/{urllib.parse.quote(revision, safe='')}"
    try:
        listing: Any = json.loads(client.read(url, _MAX_LISTING))
        sound = _COMMIT.fullmatch(listing["sha"]) and all(
            isinstance(s["rfilename"], str) for s in listing["siblings"]
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise TokensError(f"{url}: not a model's record (it has no commit and files)")
    return dict(listing)


def _file_and_tensor(fragment: str) -> tuple[str, str]:
    """`file:tensor`, `file` or `tensor`; either part may be left out."""
    file, colon, tensor = fragment.rpartition(":")
    if not colon and _weights.is_weights(fragment):
        return fragment, ""
    return file, tensor


def _licence(listing: dict[str, Any]) -> str:
    card = listing.get("cardData")
    named = card.get("license") if isinstance(card, dict) else None
    return named if isinstance(named, str) else ""
