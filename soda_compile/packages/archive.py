"""The container of a package: a PT2 archive (a zip without compression) of which every byte is under a checksum.

The manifest has the checksum of each other member. The file ends in a seal: the checksum of the manifest and of all
that lies between the members.
"""

import hashlib
import mmap
import os
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from soda_compile.errors import PackageError
from soda_compile.packages.manifest import MemberEntry
from soda_compile.packages.tensors import ALIGNMENT
from soda_compile.storage.files import replaced

ROOT = "package/"
MANIFEST = "extra/manifest.json"
_SEAL = re.compile(rb"soda-compile sha256:([0-9a-f]{64})")
_SEAL_BYTES = len(b"soda-compile sha256:") + 64
_LOCAL_HEADER_BYTES = 30
_PT2 = {"archive_format": b"pt2", "archive_version": b"0", ".data/version": b"6\n", "byteorder": b"little"}


@dataclass(frozen=True, eq=False)
class ArchiveWriter:
    """An archive that is being written, with what was written so far by name."""

    file: zipfile.ZipFile
    members: dict[str, MemberEntry] = field(default_factory=dict)

    def add(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Write one member; its data starts at a multiple of ``ALIGNMENT``."""
        info = zipfile.ZipInfo(ROOT + name)
        assert self.file.fp is not None
        # The local header: its fixed part, the name, the sizes as 64-bit field (20 bytes), then the padding field.
        start = self.file.fp.tell() + _LOCAL_HEADER_BYTES + len(info.filename.encode()) + 20 + 4
        padding = -start % ALIGNMENT
        info.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding
        digest, size = hashlib.sha256(), 0
        with self.file.open(info, "w", force_zip64=True) as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        self.members[name] = MemberEntry(size_bytes=size, sha256=digest.hexdigest())


@contextmanager
def write_archive(path: Path) -> Iterator[ArchiveWriter]:
    """Write a package, sealed at the end of the context; an error leaves an older file as it is."""
    with replaced(path) as temporary:
        with zipfile.ZipFile(temporary, "x", zipfile.ZIP_STORED) as archive:
            writer = ArchiveWriter(archive)
            for name, text in _PT2.items():
                writer.add(name, [text])
            yield writer
            archive.comment = b"?" * _SEAL_BYTES
        with open(temporary, "r+b") as file:
            with mmap.mmap(file.fileno(), 0) as data:
                data[len(data) - _SEAL_BYTES :] = b"soda-compile sha256:" + _seal(data, _spans(data)).encode()
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
