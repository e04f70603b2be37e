from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def colours_of(path: Path) -> set[tuple[int, ...]]:
    """All RGB colours of a picture."""
    packed = np.asarray(Image.open(path).convert("RGB")).astype(np.int64) @ (65536, 256, 1)
    return {tuple(int(value).to_bytes(3, "big")) for value in np.unique(packed)}
