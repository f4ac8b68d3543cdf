"""The container of a package: a PT2 archive (a zip without compression) of which every byte is under a checksum.

The manifest has the checksum of each other member. The file ends in a seal: the checksum of the manifest and of all
that lies between the members.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import secrets
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from soda_compile.errors import PackageError
from soda_compile.packages.manifest import MemberEntry
from soda_compile.packages.tensors import ALIGNMENT

ROOT = "package/"
MANIFEST = "extra/manifest.json"
_SEAL = re.compile(rb"soda-compile sha256:([0-9a-f]{64})")
_SEAL_BYTES = len(b"soda-compile sha256:") + 64
_LOCAL_HEADER_BYTES = 30
_PT2 = {"archive_format": b"pt2", "archive_version": b"0", ".data/version": b"6\n", "byteorder": b"little"}


@dataclass(eq=False)
class ArchiveWriter:
    """Writes a package beside its path and moves it there when it is whole.

    Attributes:
        path: The file to create or replace.
        members: What was written so far, by name.
    """

    path: Path
    members: dict[str, MemberEntry] = field(default_factory=dict)

    def __enter__(self) -> ArchiveWriter:
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        self._zip = zipfile.ZipFile(self._temporary, "x", zipfile.ZIP_STORED)
        for name, text in _PT2.items():
            self.add(name, [text])
        return self

    def add(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Write one member; its data starts at a multiple of ``ALIGNMENT``."""
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
        self.members[name] = MemberEntry(size_bytes=size, sha256=digest.hexdigest())

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._zip.comment = b"?" * _SEAL_BYTES
            self._zip.close()
            if kind is None:
                _write_seal(self._temporary)
                os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)


def _write_seal(path: Path) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        seal = _seal(data, _spans(data))
        data[len(data) - _SEAL_BYTES :] = b"soda-compile sha256:" + seal.encode()
        os.fsync(file.fileno())


def read_archive(path: Path) -> dict[str, memoryview]:
    """Return the members of a package by name, as private copies on write of the mapped file.

    Their own checksums, which the manifest has, are not verified yet.

    Raises:
        PackageError: The file is missing or no package, or is damaged outside of the members.
    """
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise PackageError(f"{path}: cannot read the package: {getattr(error, 'strerror', None) or error}") from None
    seal = _SEAL.fullmatch(data[-_SEAL_BYTES:])
    if seal is None:
        raise PackageError(
            f"{path}: no package of soda_compile.export, or a truncated or changed one: the seal at its end is "
            "missing. Copy the file again or export again"
        )
    try:
        spans = _spans(data)
        intact = _seal(data, spans) == seal[1].decode()
    except Exception:  # whatever reading a damaged table of contents leads to
        intact = False
    if not intact:
        raise PackageError(
            f"{path}: damaged or changed: its manifest or table of contents does not have the checksum at its end. "
            "Copy the file again or export again"
        )
    view = memoryview(data)
    return {name: view[start:stop] for name, (start, stop) in spans.items()}


def _spans(data: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Return where the members' data lie, by name."""
    spans = {}
    with zipfile.ZipFile(data) as archive:  # type: ignore[call-overload]  # a mapping reads and seeks like a file
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or not info.filename.startswith(ROOT):
                raise zipfile.BadZipFile(f"unexpected member {info.filename}")
            place = info.header_offset
            name_bytes, extra_bytes = struct.unpack("<HH", data[place + 26 : place + _LOCAL_HEADER_BYTES])
            start = place + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
            spans[info.filename.removeprefix(ROOT)] = (start, start + info.file_size)
    return spans


def _seal(data: mmap.mmap, spans: Mapping[str, tuple[int, int]]) -> str:
    """Return the checksum of all bytes that are in no member but the manifest, less the seal itself."""
    covered = sorted(span for name, span in spans.items() if name != MANIFEST)
    starts, stops = [0, *(stop for _, stop in covered)], [*(start for start, _ in covered), len(data) - _SEAL_BYTES]
    digest = hashlib.sha256()
    with memoryview(data) as view:
        for start, stop in zip(starts, stops, strict=True):
            digest.update(view[start:stop])
    return digest.hexdigest()
