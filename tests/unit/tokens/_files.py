"""Weights files made on the spot, sound and otherwise."""

import json
import struct
import zipfile
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

V, W = 12, 32


def weight(seed: int = 0, rows: int = V, width: int = W) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def words(n: int = V) -> list[str]:
    return [f"\u2581word{i}" for i in range(n)]


def tokenizer_json(tokens: list[str], added: dict[str, int] | None = None) -> str:
    vocab = {token: i for i, token in enumerate(tokens)}
    extra = [{"id": i, "content": content} for content, i in (added or {}).items()]
    return json.dumps({"model": {"type": "BPE", "vocab": vocab}, "added_tokens": extra})


def safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path)
    return path


def safetensors_raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def gguf_file(path: Path, tensor: torch.Tensor, quant: str = "F32", tokens: list[str] | None = None) -> Path:
    """Written by the gguf library, with a small tensor before the wanted one."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.license", "apache-2.0")
    writer.add_token_scores([0.5] * len(tensor))
    writer.add_array("tokenizer.ggml.merges", ["a b", "c d"])
    if tokens is not None:
        writer.add_token_list(tokens)
    writer.add_tensor("output_norm.weight", np.ones(7, dtype=np.float32))
    kind = gguf.GGMLQuantizationType[quant]
    data = tensor.numpy() if quant == "F32" else gguf.quantize(tensor.numpy(), kind)
    writer.add_tensor("token_embd.weight", data, raw_dtype=None if quant == "F32" else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def checkpoint_with(path: Path, pickled: bytes, members: dict[str, bytes] | None = None) -> Path:
    """A torch zip checkpoint whose pickle is `pickled`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in (members or {}).items():
            archive.writestr(f"archive/{name}", data)
    return path


def wheel(folder: Path, name: str, version: str, members: dict[str, bytes]) -> Path:
    """A wheel pip accepts, with these files in it."""
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return path
