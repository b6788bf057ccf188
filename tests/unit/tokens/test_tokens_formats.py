"""safetensors, GGUF and .npy: what is written by their libraries reads back, what lies is refused."""

import struct

import gguf
import numpy as np
import pytest
import torch

from lexrec.errors import TokensError
from lexrec.tokens import reading
from lexrec.tokens._bytes import ByteFile, Joined, LocalFile
from lexrec.tokens.entry import Entry
from tests.unit.tokens import _files

ENTRY = Entry(name="t", source="file:t")


class Counting(ByteFile):
    """A file that remembers how much of it was read."""

    def __init__(self, path):
        self.inner, self.n_read = LocalFile(path), 0
        self.name, self.size = self.inner.name, self.inner.size

    def _fill(self, offset, view):
        self.n_read += view.nbytes
        self.inner.read_into(offset, view)


def read(path, tensor=""):
    return reading.read_tensor(LocalFile(path), ENTRY, tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_safetensors_of_every_float_type(tmp_path, dtype):
    weight_VW = _files.weight().to(dtype)
    path = _files.safetensors(tmp_path / "m.safetensors", {"embed_tokens.weight": weight_VW})
    found = read(path)
    assert torch.equal(found.weight_VW, weight_VW.to(torch.bfloat16))
    assert found.tensor == "embed_tokens.weight"


def test_sha256_is_that_of_the_stored_bytes(tmp_path):
    import hashlib

    weight_VW = _files.weight()
    path = _files.safetensors(tmp_path / "m.safetensors", {"a.wte.weight": weight_VW})
    assert read(path).sha256 == hashlib.sha256(weight_VW.numpy().tobytes()).hexdigest()


def test_only_header_and_tensor_are_read(tmp_path):
    tensors = {"wte.weight": _files.weight(), "h.0.mlp": torch.zeros(500_000)}
    file = Counting(_files.safetensors(tmp_path / "m.safetensors", tensors))
    reading.read_tensor(file, ENTRY, "")
    assert file.n_read < _files.V * _files.W * 4 + 1000 < file.size


def test_a_safetensors_header_that_begins_like_a_pickle(tmp_path):
    record = {"wte.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}
    text = str(record).replace("'", '"').encode().ljust(640)
    path = _files.safetensors_raw(tmp_path / "m.safetensors", text, struct.pack("<2f", 1, 2))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert read(path).weight_VW.tolist() == [[1, 2]]


def record(**changes):
    return {"wte.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes}


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (b"not json at all", "header is no JSON"),
        (b"[" * 100_000, "header is no JSON"),
        (b"[1, 2]", "header is a list"),
        (record(shape=[2, -2]), "malformed"),
        (record(shape=[2, 2.0]), "malformed"),
        (record(shape=3), "malformed"),
        (record(dtype=None), "malformed"),
        (record(data_offsets=[16, 0]), "malformed"),
        (record(data_offsets=[0]), "malformed"),
        (record(data_offsets=[0, 64]), "truncated: tensor 'wte.weight' ends at byte"),
        (record(shape=[3, 2]), r"of shape \[3, 2\] F32 cannot lie in 16 bytes"),
        (record(dtype="I32"), "has dtype I32; a token table is one of F64, F32, F16, BF16"),
        (record(shape=[4]), r"has shape \[4\]; a token table is a \[V, W\] matrix"),
        (record(shape=[0, 4], data_offsets=[0, 0]), r"has shape \[0, 4\]"),
    ],
)
def test_safetensors_that_lie_are_refused(tmp_path, header, text):
    path = _files.safetensors_raw(tmp_path / "m.safetensors", header, bytes(16))
    with pytest.raises(TokensError, match=text):
        read(path, "wte.weight")


def test_a_header_length_bomb_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + bytes(100))
    file = Counting(path)
    with pytest.raises(TokensError, match="declares a header of 1152921504606846976 bytes in a file of 108"):
        reading.scan(file)
    assert file.n_read < 100


def test_a_tensor_bomb_is_refused_before_it_is_allocated(tmp_path):
    """40 TB are declared; the size of the file decides."""
    n_bytes = 10**7 * 10**6 * 4
    header = record(shape=[10**7, 10**6], data_offsets=[0, n_bytes])
    with pytest.raises(TokensError, match="truncated"):
        read(_files.safetensors_raw(tmp_path / "m.safetensors", header))


@pytest.mark.parametrize("size", [0, 3, 9])
def test_a_stub_of_a_file(tmp_path, size):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"\x05" * size)
    with pytest.raises(TokensError, match=r"truncated or corrupt|not safetensors"):
        read(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(tmp_path, value):
    weight_VW = _files.weight()
    weight_VW[3, 4] = value
    with pytest.raises(TokensError, match="holds numbers that are not finite"):
        read(_files.safetensors(tmp_path / "m.safetensors", {"wte.weight": weight_VW}))


@pytest.mark.parametrize("quant", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_gguf_as_its_library_writes_and_dequantises_it(tmp_path, quant):
    path = _files.gguf_file(tmp_path / "m.gguf", _files.weight(), quant, _files.words())
    found = read(path)
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
    expected_VW = torch.from_numpy(
        gguf.dequantize(tensor.data.copy(), tensor.tensor_type).reshape(_files.V, _files.W)
    )
    assert torch.equal(found.weight_VW, expected_VW.to(torch.bfloat16))
    assert found.tokens == tuple(_files.words())
    assert found.licence == "apache-2.0"
    tolerance = {"F32": 0.01, "F16": 0.01, "BF16": 0.02, "Q8_0": 0.03}.get(quant, 0.4)
    assert (found.weight_VW.float() - _files.weight()).abs().max() < tolerance


def test_gguf_in_pieces_is_their_concatenation(tmp_path):
    whole = _files.gguf_file(tmp_path / "m.gguf", _files.weight(), "Q8_0", _files.words())
    data = whole.read_bytes()
    pieces = []
    for i, (start, stop) in enumerate([(0, 11), (11, 11), (11, 900), (900, len(data))]):
        pieces.append(tmp_path / f"m.part{i}")
        pieces[-1].write_bytes(data[start:stop])
    found = reading.read_tensor(Joined([LocalFile(piece) for piece in pieces]), ENTRY, "")
    assert torch.equal(found.weight_VW, read(whole).weight_VW)


def gguf_header(fields: bytes, n_fields: int, n_tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_fields) + fields


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor_record(shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text("token_embd.weight") + dims + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gguf_header(b"", 0, version=9), "GGUF version 9 is not read; known: 2, 3"),
        (gguf_header(b"", 1 << 40), "declares 1099511627776 header fields; at most"),
        (gguf_header(b"", 0, n_tensors=1 << 40), "declares 1099511627776 tensors; at most"),
        (gguf_header(b"", 1), "truncated or corrupt: the header needs byte 32 of 24"),
        (gguf_header(struct.pack("<Q", 1 << 50), 1), "the header needs byte"),
        (gguf_header(text("k") + struct.pack("<I", 77), 1), "field 'k' has unknown type 77"),
        (gguf_header(text("k") + struct.pack("<IIQ", 9, 9, 5), 1), "array 'k' has unknown element type 9"),
        (gguf_header(text("k") + struct.pack("<IIQ", 9, 8, 1 << 50), 1), "more than the file holds"),
        (gguf_header(text("k") + struct.pack("<IIQ", 9, 4, 1 << 62), 1), "the header needs byte"),
        (gguf_header(text("general.alignment") + struct.pack("<II", 4, 0), 1), "alignment 0 is not between"),
        (gguf_header(tensor_record([1] * 9), 0, 1), "declares 9 dimensions; at most 4"),
        (gguf_header(tensor_record([33, 2], kind=8), 0, 1), r"of shape \[2, 33\] does not fill Q8_0 blocks"),
        (gguf_header(tensor_record([1 << 40, 1 << 20]), 0, 1), "at most 8589934592"),
        (gguf_header(tensor_record([64, 64]), 0, 1), "truncated: tensor 'token_embd.weight' ends at byte"),
        (gguf_header(tensor_record([4, 4], offset=1 << 60), 0, 1), "truncated: tensor"),
        (
            gguf_header(tensor_record([4, 4], kind=999), 0, 1),
            "has dtype GGML type 999; a token table is one of",
        ),
        (gguf_header(tensor_record([4, 4], kind=26), 0, 1), "has dtype I32; a token table is one of"),
    ],
)
def test_gguf_that_lies_is_refused(tmp_path, data, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(TokensError, match=message):
        read(path)


def test_gguf_cut_anywhere_is_refused_in_one_line(tmp_path):
    data = _files.gguf_file(tmp_path / "m.gguf", _files.weight(), "Q8_0", _files.words()).read_bytes()
    path = tmp_path / "cut.gguf"
    for size in range(0, len(data) - 32, 37):
        path.write_bytes(data[:size])
        with pytest.raises(TokensError) as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<f2"])
def test_npy(tmp_path, dtype):
    weight_VW = _files.weight().numpy().astype(dtype)
    np.save(tmp_path / "m.npy", weight_VW)
    assert torch.equal(read(tmp_path / "m.npy").weight_VW, torch.from_numpy(weight_VW).to(torch.bfloat16))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[object()]]), "holds Python objects .a pickle., which are never loaded"),
        (np.asfortranarray(np.ones((3, 2), np.float32)), "in Fortran order; save it as C-ordered"),
        (np.ones((3, 2), np.int64), "an array of '<i8' in C order"),
        (np.ones((3, 2), ">f4"), "an array of '>f4'"),
        (np.ones(3, np.float32), r"no tensor is a matrix; it has: array \[3\] F32"),
    ],
)
def test_npy_that_is_no_table(tmp_path, array, message):
    np.save(tmp_path / "m.npy", array)
    with pytest.raises(TokensError, match=message):
        read(tmp_path / "m.npy")


def test_npy_cut_or_garbled(tmp_path):
    path = tmp_path / "m.npy"
    np.save(path, _files.weight().numpy())
    data = path.read_bytes()
    path.write_bytes(data[:-8])
    with pytest.raises(TokensError, match=r"of shape \[12, 32\] <f4 needs 1664 bytes, the file has 1656"):
        read(path)


def npy_bytes(header: bytes, version: int = 1) -> bytes:
    return (
        b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(header)) + header
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x93NUMPY\x01\x00", "truncated or corrupt"),
        (npy_bytes(b"{")[:-1], "truncated or corrupt"),
        (npy_bytes(b"\xff" * 50), r"the \.npy header is not readable"),
        (npy_bytes(b"{'descr': '<f4',\n"), r"the \.npy header is not readable"),
        (npy_bytes(b"__import__('os')"), r"the \.npy header is not readable"),
        (npy_bytes(b"(" * 9000), r"the \.npy header is not readable"),
        (npy_bytes(b" " * 20_000, 2), r"the \.npy header is not readable"),
        (npy_bytes(b"{'descr': '<f4'}"), "is not a dictionary of descr, fortran_order, shape"),
        (npy_bytes(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}"), r"has shape \(-1, 4\)"),
        (npy_bytes(b"{'descr': '<f4', 'fortran_order': False, 'shape': 4}"), "has shape 4"),
        (npy_bytes(b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,)}", 3), "an array of "),
        (npy_bytes(b"{'descr': '<f4', 'fortran_order': False, 'shape': (10**9, 4)}"), "is not readable"),
        (npy_bytes(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1 , 9999999999)}"), "the file has"),
    ],
)
def test_npy_headers_that_lie_are_refused(tmp_path, data, message):
    (tmp_path / "m.npy").write_bytes(data)
    with pytest.raises(TokensError, match=message):
        read(tmp_path / "m.npy")


def test_npy_of_a_later_version(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2)}"
    (tmp_path / "m.npy").write_bytes(npy_bytes(header, 2) + struct.pack("<2f", 1, 2))
    assert read(tmp_path / "m.npy").weight_VW.tolist() == [[1, 2]]
