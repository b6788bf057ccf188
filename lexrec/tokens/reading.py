"""From a file of any known format to one token table in bf16: find the tensor, read it, convert it.

Dimension key: V tokens, W width of the language model.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lexrec.errors import TokensError
from lexrec.tokens._bytes import ByteFile
from lexrec.tokens.entry import Entry
from lexrec.tokens.formats import gguf_file, npy, safetensors_file, torch_zip
from lexrec.tokens.formats.base import ITEM_BYTES, Contents, TensorEntry

USUAL_NAMES = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "token_embd.weight",
    "tok_embeddings.weight",
    "embed_in.weight",
    "shared.weight",
    "embedding.weight",
    "embeddings.weight",
)
"""How language models call their token embeddings; a tensor's name equals one or ends with `.` and one."""

_MAX_BYTES = 8 << 30
"""The largest token table in use (128256 x 16384 in bf16) is half of this."""
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Found:
    """One tensor, read and checked, with what its file says about it."""

    weight_VW: Tensor
    """bf16."""
    sha256: str
    """Of the bytes as the file stores them."""
    tensor: str
    tokens: tuple[str, ...]
    """Token strings, where the format carries them (GGUF)."""
    licence: str


def read_tensor(file: ByteFile, entry: Entry, tensor: str) -> Found:
    """Find, read and check the one tensor an entry asks for.

    Args:
        file: the file that holds it, in any known format.
        entry: its shape and sha256 must be met where they are given.
        tensor: its name; empty picks the one that looks like token embeddings.

    Raises:
        TokensError: not found, ambiguous, of another shape or content, or the file is not sound.
    """
    contents = scan(file)
    chosen = choose(contents.entries, tensor, file.name)
    if entry.shape is not None and chosen.shape != entry.shape:
        raise TokensError(
            f"{file.name}: tensor {chosen.name!r} has shape {list(chosen.shape)}, "
            f"{entry.name} is {list(entry.shape)}"
        )
    weight_VW, sha256 = read_weight(file, chosen)
    if entry.sha256 and sha256 != entry.sha256:
        raise TokensError(
            f"{file.name}: tensor {chosen.name!r} has sha256 {sha256}, {entry.name} is {entry.sha256}: "
            "it changed or was damaged on the way"
        )
    return Found(weight_VW, sha256, chosen.name, contents.tokens, contents.licence)


def scan(file: ByteFile) -> Contents:
    """List a file's tensors; the format is told by its first bytes, not by its name.

    Raises:
        TokensError: no known format, or a file that contradicts itself.
    """
    head = file.read(0, min(9, file.size))
    if head.startswith(gguf_file.MAGIC):
        return gguf_file.scan(file)
    if head.startswith(torch_zip.MAGIC):
        return torch_zip.scan(file)
    if head.startswith(npy.MAGIC):
        return npy.scan(file)
    # A safetensors header may be 640 bytes long, which begins like a pickle of protocol 2.
    if head.startswith(b"\x80") and head[8:] != b"{":
        raise TokensError(
            f"{file.name}: a pickle, which is never loaded (it could run code); save it again with "
            "safetensors, or with torch.save of PyTorch 1.6 or later"
        )
    return safetensors_file.scan(file)


def choose(entries: Sequence[TensorEntry], tensor: str, where: str) -> TensorEntry:
    """The named tensor; without a name, the only one that looks like token embeddings.

    Raises:
        TokensError: no such tensor, or several could be meant; the message lists them.
    """
    if tensor:
        named = [entry for entry in entries if entry.name == tensor]
        if not named:
            raise TokensError(f"{where}: no tensor {tensor!r}; it has: {_listing(entries)}")
        return named[0]
    usual = [entry for entry in entries if is_usual(entry.name)]
    matrices = [entry for entry in entries if len(entry.shape) == 2]
    # Tied weights appear under several names over the same bytes: they are one candidate.
    places = {(e.zip_header, e.offset, e.n_bytes or e.name): e for e in reversed(usual or matrices)}
    candidates = list(places.values())[::-1]
    if not candidates:
        raise TokensError(f"{where}: no tensor is a matrix; it has: {_listing(entries)}")
    if len(candidates) > 1:
        raise TokensError(
            f"{where}: several tensors could be the token table; name one after '#': {_listing(candidates)}"
        )
    return candidates[0]


def read_weight(file: ByteFile, entry: TensorEntry) -> tuple[Tensor, str]:
    """Read one tensor.

    Returns:
        weight_VW in bf16, and the sha256 of the bytes as the file stores them.

    Raises:
        TokensError: not a matrix, a type that is no float or known quantisation, not finite, truncated.
    """
    if len(entry.shape) != 2 or 0 in entry.shape:
        raise TokensError(
            f"{file.name}: tensor {entry.name!r} has shape {list(entry.shape)}; "
            "a token table is a [V, W] matrix"
        )
    _check_dtype(file, entry)
    if entry.n_bytes > _MAX_BYTES:
        raise TokensError(
            f"{file.name}: tensor {entry.name!r} has {entry.n_bytes} bytes; at most {_MAX_BYTES}"
        )
    start = entry.offset
    if entry.zip_header is not None:
        start += torch_zip.data_start(file, entry.zip_header)
    if start + entry.n_bytes > file.size:
        raise TokensError(
            f"{file.name}: truncated: tensor {entry.name!r} ends at byte {start + entry.n_bytes} "
            f"of a file of {file.size}"
        )
    raw = np.empty(entry.n_bytes, dtype=np.uint8)
    file.read_into(start, raw.data)
    return _to_bf16(raw, entry, file.name), hashlib.sha256(raw.data).hexdigest()


def is_usual(name: str) -> bool:
    """True for a name that language models give their token embeddings."""
    return any(name == usual or name.endswith(f".{usual}") for usual in USUAL_NAMES)


def _listing(entries: Sequence[TensorEntry], limit: int = 10) -> str:
    shown = [f"{entry.name} {list(entry.shape)} {entry.dtype}" for entry in entries[:limit]]
    more = f" and {len(entries) - limit} more" if len(entries) > limit else ""
    return (", ".join(shown) or "nothing") + more


def _check_dtype(file: ByteFile, entry: TensorEntry) -> None:
    """Refuse a type that cannot be decoded before its bytes are read."""
    if entry.dtype in ITEM_BYTES:
        return
    import gguf

    try:
        quant = gguf.GGMLQuantizationType[entry.dtype]
        one_block = np.zeros((1, gguf.GGML_QUANT_SIZES[quant][1]), dtype=np.uint8)
        gguf.dequantize(one_block, quant)
    except (KeyError, NotImplementedError):
        raise TokensError(
            f"{file.name}: tensor {entry.name!r} has dtype {entry.dtype}; a token table is one of "
            f"{', '.join(ITEM_BYTES)} or a GGUF block type such as Q8_0"
        ) from None


def _to_bf16(raw: NDArray[np.uint8], entry: TensorEntry, where: str) -> Tensor:
    n_rows, width = entry.shape
    row_bytes = entry.n_bytes // n_rows
    weight_VW = torch.empty(n_rows, width, dtype=torch.bfloat16)
    # By blocks of rows: a quantised table of 10^8 numbers never stands in float32 as a whole.
    step = max(1, _BLOCK // width)
    for start in range(0, n_rows, step):
        block = raw[start * row_bytes : (start + step) * row_bytes]
        rows_NW = _decode(block.reshape(-1, row_bytes), entry.dtype)
        weight_VW[start : start + step] = rows_NW
        if not bool(weight_VW[start : start + step].isfinite().all()):
            raise TokensError(f"{where}: tensor {entry.name!r} holds numbers that are not finite")
    return weight_VW


def _decode(raw_NB: NDArray[np.uint8], dtype: str) -> Tensor:
    if dtype == "BF16":
        return torch.from_numpy(raw_NB.view(np.int16)).view(torch.bfloat16)
    if dtype in ITEM_BYTES:
        return torch.from_numpy(raw_NB.view(f"<f{ITEM_BYTES[dtype]}"))
    import gguf

    with np.errstate(all="ignore"):
        rows_NW: NDArray[np.float32] = gguf.dequantize(raw_NB, gguf.GGMLQuantizationType[dtype])
    return torch.from_numpy(rows_NW)
