"""torch's zip checkpoints: tensors are read as torch reads them, and no pickle ever acts."""

import collections
import contextlib
import os
import pickle
import zipfile

import pytest
import torch

from lexrec.errors import TokensError
from lexrec.tokens import reading
from lexrec.tokens._bytes import LocalFile
from lexrec.tokens.entry import Entry
from lexrec.tokens.formats import _pickle_records, torch_zip
from tests.unit.tokens import _files

ENTRY = Entry(name="t", source="file:t")


def read(path, tensor=""):
    return reading.read_tensor(LocalFile(path), ENTRY, tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_state_dict(tmp_path, dtype):
    model = torch.nn.Sequential(
        collections.OrderedDict(embed_tokens=torch.nn.Embedding(5, 4), head=torch.nn.Linear(4, 5))
    ).to(dtype)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    found = read(tmp_path / "pytorch_model.bin")
    assert torch.equal(found.weight_VW, model.embed_tokens.weight.data.to(torch.bfloat16))
    assert found.tensor == "embed_tokens.weight"


def test_nested_parameters_beside_plain_values(tmp_path):
    weight_VW = torch.nn.Parameter(_files.weight())
    state = {
        "model": {"wte.weight": weight_VW},
        "step": 7,
        "lr": 0.1,
        "done": None,
        "shape": [1, (2, 3, 4, 5)],
    }
    torch.save(state, tmp_path / "m.pt")
    found = read(tmp_path / "m.pt")
    assert found.tensor == "model.wte.weight"
    assert torch.equal(found.weight_VW, weight_VW.data.to(torch.bfloat16))


def test_a_view_into_a_larger_storage(tmp_path):
    storage = _files.weight(rows=20)
    torch.save({"wte.weight": storage[5:9]}, tmp_path / "m.pt")
    assert torch.equal(read(tmp_path / "m.pt").weight_VW, storage[5:9].to(torch.bfloat16))


def test_tied_weights_are_one_candidate_and_others_are_listed(tmp_path):
    shared, other = _files.weight(1), _files.weight(2)
    torch.save({"shared.weight": shared, "encoder.embed_tokens.weight": shared}, tmp_path / "tied.pt")
    assert read(tmp_path / "tied.pt").tensor == "shared.weight"
    torch.save({"a.wte.weight": shared, "b.wte.weight": other}, tmp_path / "two.pt")
    with pytest.raises(TokensError, match=r"several tensors .* a\.wte\.weight \[12, 32\] F32, b\.wte"):
        read(tmp_path / "two.pt")
    assert torch.equal(read(tmp_path / "two.pt", "b.wte.weight").weight_VW, other.to(torch.bfloat16))


def test_a_transposed_tensor_is_refused_only_when_it_is_the_chosen_one(tmp_path):
    state = {"wte.weight": _files.weight(), "turned": _files.weight().T}
    torch.save(state, tmp_path / "m.pt")
    assert read(tmp_path / "m.pt").tensor == "wte.weight"
    with pytest.raises(TokensError, match=r"dtype F32 with strides \[1, 32\]"):
        read(tmp_path / "m.pt", "turned")


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_runs_code_is_refused_and_never_runs(tmp_path):
    mark = tmp_path / "it-ran"
    torch.save({"wte.weight": _files.weight(), "evil": Payload(mark)}, tmp_path / "evil.bin")
    with pytest.raises(
        TokensError, match=r"refused: the pickle names '(posix|nt)\.system', which is no tensor"
    ):
        read(tmp_path / "evil.bin")
    assert not mark.exists()
    # The payload is real: the standard loader would have run it.
    with zipfile.ZipFile(tmp_path / "evil.bin") as archive:
        assert b"system" in archive.read("evil/data.pkl")
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_payloads_of_every_protocol_are_refused(tmp_path, protocol):
    mark = tmp_path / "it-ran"
    path = _files.checkpoint_with(tmp_path / "evil.bin", pickle.dumps(Payload(mark), protocol))
    with pytest.raises(TokensError, match=r"refused: the pickle (names|uses opcode)"):
        read(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "value",
    [
        {"a": {1, 2}},
        {"a": b"bytes"},
        {"a": 1j},
        {(1, 2): 3},
        {"a": collections.Counter()},
        {"a": Exception},
    ],
)
def test_whatever_is_no_tensor_record_is_refused(tmp_path, value):
    for protocol in (2, 4):
        path = _files.checkpoint_with(tmp_path / "m.bin", pickle.dumps(value, protocol))
        with pytest.raises(TokensError, match="refused") as caught:
            torch_zip.scan(LocalFile(path))
        assert "\n" not in str(caught.value)


def test_a_pickle_in_the_old_format_is_not_read(tmp_path):
    torch.save({"wte.weight": _files.weight()}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(TokensError, match="a pickle, which is never loaded"):
        read(tmp_path / "old.bin")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02}",
        b"\x80\x02t.",
        b"\x80\x02h\x07.",
        b"\x80\x02q\x00.",
        b"\x80\x02)R.",
        b"\x80\x02K\x01K\x02K\x03s.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02K\x01K\x02b.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\nK\x01\x85R.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02L" + b"9" * 5000 + b"L\n.",
        b"\xff\xfe\xfd",
    ],
)
def test_garbled_pickles_get_one_clear_error(data):
    with pytest.raises(TokensError, match=r"^m\.bin: (refused|the checkpoint's pickle is corrupt)"):
        _pickle_records.read(data, "m.bin")


def test_a_pickle_that_nests_itself_ends():
    inner = {f"k{i}": {} for i in range(100)}
    looped = {str(i): inner for i in range(1000)}
    looped["self"] = looped
    assert _pickle_records.read(pickle.dumps(looped, 2), "m.bin") == {}


def record(key="0", offset=0, shape=(2, 2), stride=(2, 1), storage="FloatStorage"):
    """A state dict's pickle with one tensor, written opcode by opcode."""

    def number(n):
        return b"\x8a\x08" + n.to_bytes(8, "little", signed=True)

    def numbers(values):
        return b"(" + b"".join(number(n) for n in values) + b"t"

    name = b"X" + len(key).to_bytes(4, "little") + key.encode()
    stored = (
        b"(X\x07\0\0\0storagectorch\n"
        + storage.encode()
        + b"\n"
        + name
        + b"X\x03\0\0\0cpu"
        + number(4)
        + b"tQ"
    )
    rebuilt = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + number(offset) + numbers(shape) + numbers(stride)
    )
    return b"\x80\x02}X\x0a\0\0\0wte.weight" + rebuilt + b"\x89}tRs."


def test_the_record_made_here_is_sound(tmp_path):
    data = torch.tensor([[1.0, 2], [3, 4]])
    path = _files.checkpoint_with(tmp_path / "m.bin", record(), {"data/0": data.numpy().tobytes()})
    assert torch.equal(read(path).weight_VW, data.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"key": "../../etc/passwd"},
            r"the storage '\.\./\.\./etc/passwd' of tensor 'wte\.weight' is missing",
        ),
        ({"offset": 1}, r"reaches beyond its storage of 16 bytes"),
        ({"offset": -1}, r"a tensor record has shape"),
        ({"shape": (1 << 40, 1 << 20), "stride": (1 << 20, 1)}, r"reaches beyond its storage of 16 bytes"),
        ({"shape": (2, -2)}, r"a tensor record has shape \(2, -2\)"),
        ({"stride": (2,)}, r"a tensor record is malformed"),
        ({"storage": "QUInt8Storage"}, r"names 'torch\.QUInt8Storage', which is no tensor"),
        ({"storage": "LongStorage"}, r"has dtype I64; a token table is one of"),
    ],
)
def test_records_that_lie_are_refused(tmp_path, changes, message):
    path = _files.checkpoint_with(tmp_path / "m.bin", record(**changes), {"data/0": bytes(16)})
    with pytest.raises(TokensError, match=message):
        read(path)


@pytest.mark.parametrize("squeezed", ["archive/data.pkl", "archive/data/0"])
def test_a_compressed_member_is_refused(tmp_path, squeezed):
    path = tmp_path / "m.bin"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"archive/data.pkl": record(), "archive/data/0": bytes(16)}.items():
            method = zipfile.ZIP_DEFLATED if name == squeezed else zipfile.ZIP_STORED
            archive.writestr(name, data, compress_type=method)
    with pytest.raises(TokensError, match=r"is compressed, which torch\.save never does"):
        read(path)


def test_big_endian_and_stray_zips_are_refused(tmp_path):
    path = tmp_path / "m.bin"
    _files.checkpoint_with(path, record(), {"data/0": bytes(16), "byteorder": b"big"})
    with pytest.raises(TokensError, match="the checkpoint is big-endian"):
        read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(TokensError, match=r"no torch checkpoint: it has no single data\.pkl"):
        read(path)


def test_a_bomb_in_place_of_the_pickle_is_not_unpacked(tmp_path):
    path = tmp_path / "m.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50 << 20))
    with pytest.raises(TokensError, match="refused as a zip bomb"):
        read(path)


def test_a_checkpoint_cut_anywhere_is_refused_in_one_line(tmp_path):
    torch.save({"wte.weight": _files.weight()}, tmp_path / "m.bin")
    data = (tmp_path / "m.bin").read_bytes()
    for size in range(4, len(data), 97):
        (tmp_path / "cut.bin").write_bytes(data[:size])
        with pytest.raises(TokensError) as caught:
            read(tmp_path / "cut.bin")
        assert "\n" not in str(caught.value)


def test_a_checkpoint_garbled_anywhere_never_escapes_as_another_error(tmp_path):
    torch.save({"wte.weight": _files.weight(rows=2, width=2)}, tmp_path / "m.bin")
    data = (tmp_path / "m.bin").read_bytes()
    for at in range(0, len(data), 5):
        garbled = bytearray(data)
        garbled[at] ^= 0xFF
        (tmp_path / "g.bin").write_bytes(garbled)
        with contextlib.suppress(TokensError):
            assert read(tmp_path / "g.bin").weight_VW.shape == (2, 2)
