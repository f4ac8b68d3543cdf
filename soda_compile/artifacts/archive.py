"""The container of a package: a PT2 archive (a zip without compression) that ends in a checksum of all before it."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import secrets
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from soda_compile.artifacts.tensors import ALIGNMENT
from soda_compile.errors import PackageError

ROOT = "package/"
_FOOTER = re.compile(rb"soda-compile sha256:([0-9a-f]{64})")
_FOOTER_BYTES = len(b"soda-compile sha256:") + 64
_LOCAL_HEADER_BYTES = 30
_CHUNK_BYTES = 1 << 24

Chunk = bytes | memoryview


@dataclass(frozen=True)
class Member:
    """Size and SHA-256 of one member."""

    size_bytes: int
    sha256: str


@dataclass(eq=False)
class ArchiveWriter:
    """Writes a package beside its path and moves it there when it is whole.

    Attributes:
        path: The file to create or replace.
        members: What was written so far, by name.
    """

    path: Path
    members: dict[str, Member] = field(default_factory=dict)

    def __enter__(self) -> ArchiveWriter:
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        self._zip = zipfile.ZipFile(self._temporary, "x", zipfile.ZIP_STORED)
        self.add("archive_format", [b"pt2"])
        self.add("archive_version", [b"0"])
        self.add(".data/version", [b"6\n"])
        self.add("byteorder", [b"little"])
        return self

    def add(self, name: str, chunks: Iterable[Chunk]) -> None:
        """Writes one member; its data starts at a multiple of ``ALIGNMENT``."""
        info = zipfile.ZipInfo(ROOT + name)
        assert self._zip.fp is not None
        # The local header: its fixed part, the name, the sizes as 64-bit field (20 bytes), then the padding field.
        start = self._zip.fp.tell() + _LOCAL_HEADER_BYTES + len(info.filename.encode()) + 20 + 4
        padding = -start % ALIGNMENT
        info.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding
        digest, size = hashlib.sha256(), 0
        with self._zip.open(info, "w", force_zip64=True) as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        self.members[name] = Member(size, digest.hexdigest())

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._zip.comment = b"?" * _FOOTER_BYTES
            self._zip.close()
            if kind is None:
                with open(self._temporary, "r+b") as file:
                    seal(file.fileno())
                os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)


def seal(descriptor: int) -> None:
    """Writes the checksum of everything before it over the last bytes of a file."""
    size = os.fstat(descriptor).st_size
    with mmap.mmap(descriptor, size) as data:
        data[size - _FOOTER_BYTES :] = b"soda-compile sha256:" + _sha256(memoryview(data)[:-_FOOTER_BYTES]).encode()
    os.fsync(descriptor)


def _sha256(data: memoryview) -> str:
    digest = hashlib.sha256()
    with data:
        for start in range(0, len(data), _CHUNK_BYTES):
            digest.update(data[start : start + _CHUNK_BYTES])
    return digest.hexdigest()


def read_archive(path: Path) -> dict[str, memoryview]:
    """The members of a whole and undamaged package, by name, as private copies on write of the mapped file.

    Raises:
        PackageError: The file is missing, is no package, or differs in any byte from what was written.
    """
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise PackageError(f"{path}: cannot read the package: {getattr(error, 'strerror', None) or error}") from None
    view = memoryview(data)
    footer = _FOOTER.fullmatch(view[-_FOOTER_BYTES:])
    if footer is None:
        raise PackageError(
            f"{path}: no package of soda_compile.export, or a truncated or changed one: the checksum at its end is "
            "missing. Copy the file again or export again"
        )
    if _sha256(view[:-_FOOTER_BYTES]) != footer[1].decode():
        raise PackageError(
            f"{path}: damaged: its content does not have the checksum at its end. Copy the file again or export again"
        )
    return _members(path, view)


def _members(path: Path, view: memoryview) -> dict[str, memoryview]:
    members = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name_bytes, extra_bytes = struct.unpack("<HH", view[info.header_offset + 26 : info.header_offset + 30])
                start = info.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
                if info.compress_type != zipfile.ZIP_STORED or not info.filename.startswith(ROOT):
                    raise zipfile.BadZipFile(f"unexpected member {info.filename}")
                members[info.filename.removeprefix(ROOT)] = view[start : start + info.file_size]
    except (zipfile.BadZipFile, struct.error) as error:
        raise PackageError(f"{path}: not a package of soda_compile.export: {error}") from None
    return members
