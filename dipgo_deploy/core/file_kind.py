"""What a file is, by its first bytes and its name, for messages about files of the wrong kind."""

from __future__ import annotations

import json
import struct
from pathlib import Path

__all__ = ["binary_kind", "file_kind"]

_MAGIC = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x93NUMPY": "an array of NumPy",
    b"PK\x03\x04": "a zip archive or a PyTorch file",
    b"\x1f\x8b": "a gzip archive",
    b"\x80": "a pickle",
    b"%PDF": "a PDF",
    b"ptrt": "an engine",
    b"ftrt": "an engine",
}
_SUFFIXES = {".onnx": "an ONNX graph", ".engine": "an engine", ".timing": "a timing cache"}
_MOST_HEADER = 100_000_000
"""Bytes of the longest header that safetensors accepts."""


def binary_kind(path: Path) -> str | None:
    """What a binary file is, such as ``a PNG picture``. None for text and for a file that cannot be read."""
    try:
        with path.open("rb") as stream:
            start = stream.read(4096)
    except OSError:
        return None
    if path.suffix in _SUFFIXES and start:
        return _SUFFIXES[path.suffix]
    if kind := next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None):
        return kind
    if len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= _MOST_HEADER:
        return "a safetensors file"
    return "a binary file" if b"\0" in start else None


def file_kind(path: Path) -> str:
    """What any file is, such as ``a schedule file`` or ``a text file``."""
    kind = binary_kind(path)
    if kind is not None:
        return kind
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return "a text file" if path.is_file() else "missing"
    kind = document.get("format") if isinstance(document, dict) else None
    return f"a {kind} file" if isinstance(kind, str) else "a JSON file of another program"
