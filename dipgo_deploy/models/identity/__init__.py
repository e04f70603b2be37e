"""The identity of a live module: its weights, and everything else that its forward depends on."""

from __future__ import annotations

from dipgo_deploy.models.identity.behaviour import Behaviour, behaviour_of, check_copy

__all__ = ["Behaviour", "behaviour_of", "check_copy"]
