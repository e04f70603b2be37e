"""The refusal of a call that a bundle was not made for."""

from __future__ import annotations

from dipgo_deploy.core.errors import UsageError

__all__ = ["RefusedCall"]


class RefusedCall(UsageError):
    """A call outside the contract of a bundle. With ``fallback=True`` the PyTorch model takes it instead."""
