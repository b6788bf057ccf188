"""torch.save's zip checkpoints: a pickle that describes tensors, and their raw bytes as stored members.

The pickle is never loaded: `_pickle_records` reads its opcodes and understands tensor records only.
"""

import struct
import zipfile

from lexrec.errors import TokensError
from lexrec.tokens._bytes import ByteFile, member_info
from lexrec.tokens.formats import _pickle_records
from lexrec.tokens.formats.base import ITEM_BYTES, Contents, TensorEntry, plain_bytes

MAGIC = b"PK\x03\x04"

_MAX_PICKLE = 64 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")


def scan(file: ByteFile) -> Contents:
    """List the tensors of a zip checkpoint.

    Raises:
        TokensError: not a checkpoint, compressed or big-endian, or a pickle that holds anything but tensors.
    """
    try:
        with zipfile.ZipFile(file.stream()) as archive:
            return Contents(_entries(file, archive))
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError) as error:
        raise TokensError(f"{file.name}: not a readable zip checkpoint: {error}") from error


def _entries(file: ByteFile, archive: zipfile.ZipFile) -> tuple[TensorEntry, ...]:
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise TokensError(f"{file.name}: a zip archive, but no torch checkpoint: it has no single data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in members and _small(archive, f"{folder}byteorder", 16, file.name) != b"little":
        raise TokensError(
            f"{file.name}: the checkpoint is big-endian; save it again on a little-endian machine"
        )
    records = _pickle_records.read(_small(archive, pickles[0], _MAX_PICKLE, file.name), file.name)
    return tuple(_entry(file, members, folder, name, record) for name, record in records.items())


def _small(archive: zipfile.ZipFile, member: str, limit: int, where: str) -> bytes:
    info = member_info(archive, member, where)
    if info.compress_type != zipfile.ZIP_STORED:
        raise TokensError(f"{where}: member {member!r} is compressed, which torch.save never does")
    if info.file_size > limit:
        raise TokensError(f"{where}: member {member!r} has {info.file_size} bytes; at most {limit}")
    return archive.read(info)


def _entry(
    file: ByteFile,
    members: dict[str, zipfile.ZipInfo],
    folder: str,
    name: str,
    record: _pickle_records.TensorRecord,
) -> TensorEntry:
    """Where a tensor's bytes lie, checked against the member that holds its storage."""
    if record.dtype not in ITEM_BYTES:
        return TensorEntry(name, record.shape, record.dtype, 0, 0)
    info = members.get(f"{folder}data/{record.key}")
    if info is None or info.compress_type != zipfile.ZIP_STORED:
        why = "is missing" if info is None else "is compressed, which torch.save never does"
        raise TokensError(f"{file.name}: the storage {record.key!r:.100} of tensor {name!r:.100} {why}")
    n_bytes = plain_bytes(name, record.shape, record.dtype)
    start = record.offset * ITEM_BYTES[record.dtype]
    if start + n_bytes > info.file_size:
        raise TokensError(
            f"{file.name}: tensor {name!r:.100} of shape {list(record.shape)} {record.dtype} reaches "
            f"beyond its storage of {info.file_size} bytes"
        )
    if not record.is_contiguous:
        # Listed, so that another tensor can be read; refused by its type when it is the chosen one.
        return TensorEntry(name, record.shape, f"{record.dtype} with strides {list(record.stride)}", 0, 0)
    return TensorEntry(name, record.shape, record.dtype, start, n_bytes, zip_header=info.header_offset)


def data_start(file: ByteFile, header_offset: int) -> int:
    """First byte of a stored member's data. A local header's length is known only by reading it."""
    magic, n_name, n_extra = _LOCAL_HEADER.unpack(file.read(header_offset, _LOCAL_HEADER.size))
    if magic != MAGIC:
        raise TokensError(f"{file.name}: corrupt: no member begins at byte {header_offset}")
    return header_offset + _LOCAL_HEADER.size + int(n_name) + int(n_extra)
