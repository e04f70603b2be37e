"""Numbers that are not finite: the error of a run that ends in NaN or infinity, with the likely cause."""

from __future__ import annotations

from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import GateError

__all__ = ["not_finite_error"]


def not_finite_error(what: str, contract: Contract) -> GateError:
    """The error of a run whose numbers are not finite.

    Args:
        what: the numbers, in the plural, such as ``the latents of this run``.
        contract: of the program that ran. Its dtype tells the likely cause.

    Returns:
        The error, to be raised.
    """
    if contract.dtype == "float32":
        return GateError(
            f"{what} hold NaN or infinity, so the weights are damaged or the guidance scale is too large: lower the "
            "guidance scale, verify the bundle, or export sound weights again"
        )
    return GateError(
        f"{what} hold NaN or infinity, most likely because {contract.dtype} cannot hold a value of this model: export "
        "it in float32, so that building engines in half precision keeps such nodes in float32"
    )
