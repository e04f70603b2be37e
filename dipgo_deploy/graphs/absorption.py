"""Groups of nodes without a kernel: a product, an attention or another group's kernel runs them (see kernels.py)."""

from __future__ import annotations

import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.graphs.fusion import PRODUCTS, Fusion, Group

__all__ = ["FUSED_HEAD", "NORMS", "head_channels", "is_absorbed", "splits"]

FUSED_HEAD = 8
"""Channels of the widest heads whose attention is not fused."""

NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
"""Normalisations of the last axis."""

_EPILOGUE = frozenset({"Add", "Mul", "Sub", "Div", "Sigmoid", "Tanh", "Gelu", "Erf", "Pow", "Split"})
"""Operators that were seen in epilogues of products."""


def is_absorbed(group: Group, fusion: Fusion) -> bool:
    """Whether a group has no kernel of its own."""
    is_plain = _EPILOGUE.issuperset(group.operators)
    if is_plain and (_is_modulation(group) or _is_epilogue(group, fusion)):
        return True
    return _is_mask(group, fusion) or _is_turned(group, fusion)


def splits(group: Group) -> list[ir.Node]:
    """Where a group reads parts of what another one cuts."""
    return [maker for maker in group.makers if maker.op_type == "Split"]


def head_channels(softmax: ir.Node, fusion: Fusion) -> int:
    """Channels of an attention's heads; 0 where they are unknown."""
    members = [node for node, owner in fusion.attention.items() if owner is softmax]
    return fusion.axis(members[-1].outputs[0], -1)


def _is_modulation(group: Group) -> bool:
    """Whether it cuts a modulation into parts, for the groups that read them or for the norm before it."""
    follows_norm = any(maker.op_type in NORMS for maker in group.makers)
    return "Split" in group.operators and (follows_norm or not any(one.op_type in PRODUCTS for one in group.readers))


def _is_epilogue(group: Group, fusion: Fusion) -> bool:
    """Whether it follows products that are not merged; if it cuts them, only in half precision."""
    products = fusion.products(group)
    if not products or any(product in fusion.merged for product in products):
        return False
    return fusion.is_half if "Split" in group.operators else not splits(group)


def _is_mask(group: Group, fusion: Fusion) -> bool:
    """Whether nothing but attentions reads it, and it reads no product."""
    is_sum = bool(NORMS.union({"ReduceMean"}) & {*group.operators})
    only = bool(group.readers) and group.readers <= fusion.attention.keys()
    return only and not is_sum and not fusion.products(group)


def _is_turned(group: Group, fusion: Fusion) -> bool:
    """Whether it turns what an attention reads or gives; keys and values of another sequence are turned by a kernel."""
    operators, attentions = set(group.operators), fusion.read_by(group)
    if "Transpose" not in operators or not operators <= {"Transpose", "Mul"}:
        return False
    is_near = bool(attentions) or any(maker in fusion.attention for maker in group.makers)
    is_merged = any(product in fusion.merged for product in fusion.products(group))
    return is_near and not (is_merged and any(_is_wide_cross(softmax, fusion) for softmax in attentions))


def _is_wide_cross(softmax: ir.Node, fusion: Fusion) -> bool:
    """Whether an attention of wide heads reads another sequence."""
    scores = softmax.outputs[0]
    return head_channels(softmax, fusion) > FUSED_HEAD and fusion.axis(scores, -1) != fusion.axis(scores, -2)
