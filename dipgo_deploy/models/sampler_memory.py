"""The shortest memory of a linear sampler: from how few latents and outputs each next latent follows exactly.

A latent is known as the row of its coefficients: column 0 for the first latent, column i+1 for the output of call i.
Multistep schedulers keep sums of converted outputs; in terms of rows, those are combinations of a few earlier latents
and outputs, and least squares finds them whatever the scheduler calls them.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from dipgo_deploy.core.sampler import Update

__all__ = ["WINDOW", "shortest_updates"]

Floats = NDArray[np.float64]

WINDOW = 4
"""Most latents, and most outputs, that one update may read."""

_EXACT = 1e-11
"""Share of a row's norm below which a rest or a term counts as rounding.

True updates leave 2e-14 at most; wrong ones 1e-12 at best (neighbouring steps of a 1000-call run are that much alike,
so that one is right enough), 1e-9 and more in runs of up to 50 calls.
"""


def shortest_updates(rows: Floats) -> tuple[Update, ...] | None:
    """Find the update that makes each row from those before it.

    Args:
        rows: (calls + 1, calls + 1), the coefficients of latents 0 to ``calls``.

    Returns:
        One update per call, or None where a row needs more than the newest WINDOW latents and outputs.
    """
    updates = []
    for call in range(len(rows) - 1):
        update = _shortest(rows, call)
        if update is None:
            return None
        updates.append(update)
    return tuple(updates)


def _shortest(rows: Floats, call: int) -> Update | None:
    """The update of fewest terms; of those the shortest look-back, then the fewest latents."""
    count = min(WINDOW, call + 1)
    small, norms = _reduced(rows, call, count)
    found: list[tuple[tuple[int, int, int], Update]] = []
    for n_latents, n_outputs in product(range(1, count + 1), repeat=2):
        used = np.r_[0:n_latents, count : count + n_outputs]
        shares = np.linalg.lstsq(small[:, used], small[:, -1], rcond=None)[0]
        if np.linalg.norm(small[:, used] @ shares - small[:, -1]) > _EXACT:
            continue
        shares[np.abs(shares) <= _EXACT] = 0.0
        terms = int(np.count_nonzero(shares))
        values = shares * norms[-1] / norms[used]
        update = Update(_trimmed(values[:n_latents]), _trimmed(values[n_latents:]))
        found.append(((terms, max(n_latents, n_outputs), n_latents), update))
        if terms <= 2:
            break
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _reduced(rows: Floats, call: int, count: int) -> tuple[Floats, Floats]:
    """Columns for ``count`` latents, ``count`` outputs (newest first) and the wanted row, at unit norm; their norms.

    An orthogonal change of basis leaves nine of a thousand coordinates and keeps every distance.
    """
    newest = call - np.arange(count)
    outputs = np.zeros((count, len(rows)))
    outputs[np.arange(count), newest + 1] = 1.0
    columns = np.concatenate([rows[newest], outputs, rows[call + 1 : call + 2]])
    norms = np.linalg.norm(columns, axis=1)
    norms[norms == 0.0] = 1.0
    return np.asarray(np.linalg.qr((columns / norms[:, None]).T, mode="r")), norms


def _trimmed(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in np.trim_zeros(values, "b"))
