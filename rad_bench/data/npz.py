"""Rows of an array in an npz file, read without the others where the file allows it."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SKIP = 1 << 22  # bytes read at a time while skipping to a clip


class Header(NamedTuple):
    """What an npy header says of its array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool  # stored column by column


def _read_header(member: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    return Header(shape, dtype, fortran and len(shape) > 1)


def header_of(archive: zipfile.ZipFile, key: str) -> Header:
    with archive.open(f"{key}.npy") as member:
        return _read_header(member)


def read_rows(path: Path, archive: zipfile.ZipFile, key: str, start: int, stop: int) -> NDArray[Any]:
    """Read rows start..stop-1 of an array: memory-mapped if it is not compressed, else decompressed from its start.

    An array in Fortran order, whose rows are not stored one after the other, is read as a whole.
    """
    info = archive.getinfo(f"{key}.npy")
    with archive.open(info) as member:
        header = _read_header(member)
        width = math.prod(header.shape[1:])
        row = width * header.dtype.itemsize
        if member.tell() + max(stop, header.shape[0] * header.fortran) * row > info.file_size:
            raise ValueError(f"{key} ends early")
        if header.fortran:
            content = member.read(header.shape[0] * row)
            return np.frombuffer(content, header.dtype).reshape(header.shape, order="F")[start:stop].copy("C")
        if info.compress_type == zipfile.ZIP_STORED:
            with path.open("rb") as file:
                # Bytes 26 to 29 of the member's local header are the lengths of its name and of its extra field.
                file.seek(info.header_offset + 26)
                name, extra = np.frombuffer(file.read(4), "<u2")
            offset = info.header_offset + 30 + int(name) + int(extra) + member.tell() + start * row
            return np.array(np.memmap(path, header.dtype, "r", offset, (stop - start, *header.shape[1:])))
        skip = start * row
        while skip:
            skipped = len(member.read(min(skip, SKIP)))
            if not skipped:
                raise ValueError(f"{key} ends early")
            skip -= skipped
        content = member.read((stop - start) * row)
    if len(content) < (stop - start) * row:
        raise ValueError(f"{key} ends early")
    return np.frombuffer(content, header.dtype).reshape(stop - start, *header.shape[1:]).copy()
