"""What an engine's code grows with: the kernels that a builder will generate from a graph, counted before it builds.

An engine holds its weights and, for every kernel that the builder generates, that kernel's code. The code of TensorRT
for RTX is source text of 130 to 150 kB each, whatever the kernel does; products and convolutions come from a library
and take a few hundred bytes. So what counts is how many kernels there are. A graph falls apart into groups (fusion.py);
what became of them in a hundred engines, whose text names every kernel's nodes:

1. No kernel of their own have element-wise groups behind products that are not merged (the product's epilogue), what
   cuts a modulation (the kernels that read the parts), masks, and what only turns what an attention reads or gives.
2. Groups of the same nodes on the same shapes share a kernel, unless they read merged products at other offsets.
3. Groups that read a part of a modulation share theirs only where the four such groups before and behind are alike
   too, and never where several modulations come from one product.
4. A LayerNormalization is one kernel with all around it, or two, its statistics apart: before products without a bias,
   and where it modulates the plain sum of a product and a residual. A mean is always apart; beside one a scatter, too.
5. An InstanceNormalization is a kernel, with one before and one behind; the latter is fused where every group has a
   power of two of channels (more than one, 32 in all).
6. A fused attention (half precision, heads of more than 8 channels) is never shared. Any other is, by its shape.
7. Heads that are no multiple of 8 are padded and cut again, by kernels of their own where no other makes what the
   attention reads; so are keys, where the attention is not fused.
8. Images change their layout where they come to convolutions from outside, and where they leave.
9. With a range of batches, joined keys of two sequences share no kernel where they are turned with all heads in one
   axis.

What one of each weighs is fitted to engines (trt/sizes.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx  # noqa: TID251 - the home of onnx
import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.graphs.absorption import FUSED_HEAD, NORMS, head_channels, is_absorbed, splits
from dipgo_deploy.graphs.fusion import DENSE, Fusion, Group, fuse, is_shown, viewed

__all__ = ["KERNEL_KINDS", "kernel_counts"]

KERNEL_KINDS = {
    "node": "nodes of the graph",
    "kernel": "kernels that are none of the next three",
    "layer_norm": "kernels with a LayerNormalization or RMSNormalization",
    "attention": "fused attentions",
    "padding": "kernels that pad an attention, or cut what was padded",
    "ranged_kernel": "further kernels of an engine that takes a range of batches",
}
"""Every count and what it counts."""

_IMAGE_NORM = "InstanceNormalization"
_FUSED_NORM_CHANNELS = 32
_NEIGHBOURS = 4
_IMAGE_AXES = 4
_FLAT_KEYS = 3
_ALIGNED = 8
_ATTENTION_INPUTS = 3

_Signature = tuple[tuple[object, ...], ...]
_Kernel = tuple[str, object]


def kernel_counts(content: bytes, specs: Mapping[str, TensorSpec], is_half: bool) -> dict[str, int]:
    """Every count of `KERNEL_KINDS` for one serialized graph, cut from the master that ``specs`` describes.

    ``is_half`` for an engine in half precision, whatever the graph is in.
    """
    graph = ir.from_proto(onnx.load_model_from_string(content)).graph
    fusion = fuse(graph, specs, is_half)
    groups = [group for group in fusion.groups if not is_absorbed(group, fusion)]
    kernels = {*_group_kernels(groups, fusion), *_border_kernels(graph, fusion), *_attention_kernels(groups, fusion)}
    counts = Counter(kind for kind, _ in kernels)
    counts["node"], counts["ranged_kernel"] = len(graph), _ranged(groups, fusion)
    return {kind: counts[kind] for kind in KERNEL_KINDS}


def _group_kernels(groups: Sequence[Group], fusion: Fusion) -> Iterator[_Kernel]:
    neighbours = _Neighbours([group for group in groups if splits(group)], fusion)
    for group in groups:
        offsets = tuple(sorted(fusion.merged[one] for one in fusion.products(group) if one in fusion.merged))
        where = (offsets, neighbours.of(group))
        if _IMAGE_NORM in group.operators:
            yield from _image_norm_kernels(group, where, fusion)
        else:
            yield from _plain_kernels(group, where, fusion)


def _plain_kernels(group: Group, where: object, fusion: Fusion) -> Iterator[_Kernel]:
    signature = _signature(group.nodes, fusion)
    norms, means = sum(one in NORMS for one in group.operators), group.operators.count("ReduceMean")
    for index in range(norms):
        yield "layer_norm", (signature, where, index)
    if norms and (_feeds_unbiased(group, fusion) or _modulates_sum(group)):
        yield "kernel", (signature, "statistics")
    scatters = sum(one.startswith("Scatter") for one in group.operators)
    others = 1 + means + scatters if means else 0 if norms else 1
    for index in range(others):
        yield "kernel", (signature, where, index)


def _feeds_unbiased(group: Group, fusion: Fusion) -> bool:
    """Whether no product behind it has a bias."""
    products = [reader for reader in group.readers if reader.op_type in DENSE and reader not in fusion.attention]
    followers = {reader for product in products for reader, _ in product.outputs[0].uses()}
    is_biased = any(product.op_type == "Gemm" for product in products) or any(one.op_type == "Add" for one in followers)
    return bool(products) and not is_biased


def _modulates_sum(group: Group) -> bool:
    """Whether it only adds before its norm, a bias and a residual, and multiplies behind it."""
    first = next(index for index, operator in enumerate(group.operators) if operator in NORMS)
    return first > 1 and set(group.operators[:first]) == {"Add"} and "Mul" in group.operators[first:]


def _image_norm_kernels(group: Group, where: object, fusion: Fusion) -> Iterator[_Kernel]:
    norms = [node for node in group.nodes if node.op_type == _IMAGE_NORM]
    behind = set(norms)
    for node in group.nodes:
        if any(value is not None and viewed(value).producer() in behind for value in node.inputs):
            behind.add(node)
    lead = [node for node in group.nodes if node not in behind]
    tail = [node for node in group.nodes if node in behind and node not in norms]
    if lead:
        yield "kernel", (_signature(lead, fusion), where)
    for norm in norms:
        yield "kernel", (_signature([norm], fusion), bool(lead), tuple(node.op_type for node in tail))
    if tail and not (len(norms) == 1 and _is_fused_norm(norms[0], tail[0], fusion)):
        yield "kernel", _signature(tail, fusion)


def _is_fused_norm(norm: ir.Node, reader: ir.Node, fusion: Fusion) -> bool:
    """Whether one kernel runs a group normalisation and what is behind it."""
    groups, channels = (fusion.axis(node.outputs[0], 1) for node in (norm, reader))
    each = channels // groups if groups else 0
    return channels >= _FUSED_NORM_CHANNELS and each > 1 and not each & (each - 1)


class _Neighbours:
    """Groups that read a part of a modulation, in order: which of them are alike with all that is around them."""

    def __init__(self, groups: Sequence[Group], fusion: Fusion) -> None:
        self._fusion = fusion
        self._places = {group: place for place, group in enumerate(groups)}
        self._signatures = [_signature(group.nodes, fusion) for group in groups]

    def of(self, group: Group) -> object:
        """What has to be equal for two groups to share a kernel; nothing but itself where modulations are merged."""
        place = self._places.get(group)
        if place is None:
            return ()
        if not all(self._is_own(split) for split in splits(group)):
            return place
        around = range(place - _NEIGHBOURS, place + _NEIGHBOURS + 1)
        return tuple(self._signatures[one] if 0 <= one < len(self._signatures) else () for one in around)

    def _is_own(self, split: ir.Node) -> bool:
        """Whether a modulation has a product for itself."""
        home = self._fusion.group_of[split]
        is_merged = any(product in self._fusion.merged for product in self._fusion.products(home))
        return home.operators.count("Split") == 1 and not is_merged


def _border_kernels(graph: ir.Graph, fusion: Fusion) -> Iterator[_Kernel]:
    if not any(node.op_type == "Conv" for node in fusion.fed):
        return
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    for side, values in (("input", inputs), ("output", graph.outputs)):
        for value in values:
            shape = fusion.shape(value)
            if shape is not None and len(shape) == _IMAGE_AXES:
                yield "kernel", (side, shape)


def _attention_kernels(groups: Sequence[Group], fusion: Fusion) -> Iterator[_Kernel]:
    prepared = Counter(softmax for group in groups for softmax in fusion.read_by(group))
    for place, softmax in enumerate(dict.fromkeys(fusion.attention.values())):
        head, keys = head_channels(softmax, fusion), fusion.axis(softmax.outputs[0], -1)
        shape = (fusion.shape(softmax.outputs[0]), head)
        is_fused = head > FUSED_HEAD and fusion.is_half
        yield ("attention", place) if is_fused else ("kernel", shape)
        odd_head, odd_keys = head % _ALIGNED > 0, keys % _ALIGNED > 0
        if is_fused:
            pads = (1 + max(_ATTENTION_INPUTS - prepared[softmax], 0)) * odd_head
        else:
            pads = odd_head + (_ATTENTION_INPUTS + (not odd_head)) * odd_keys
        for index in range(pads):
            yield "padding", (shape, index)


def _ranged(groups: Iterable[Group], fusion: Fusion) -> int:
    """Kernels that a static engine shares: joined keys, turned with all heads in one axis, and their means."""
    joint: Counter[_Signature] = Counter()
    for group in groups:
        operators = group.operators
        behind = group.nodes[operators.index("Concat") :] if "Concat" in operators else ()
        ranks = [len(fusion.shape(node.outputs[0]) or ()) for node in behind if node.op_type == "Transpose"]
        if _FLAT_KEYS in ranks and fusion.read_by(group):
            joint[_signature(group.nodes, fusion)] += 1
    means = {signature: sum(one[0] == "ReduceMean" for one in signature) for signature in joint}
    return sum((times - 1) * (1 + means[signature]) for signature, times in joint.items())


def _signature(nodes: Iterable[ir.Node], fusion: Fusion) -> _Signature:
    """What equal groups have in common: operators, shapes, and which results leave the graph."""
    return tuple(
        (
            node.op_type,
            tuple(fusion.shape(value) for value in node.inputs if value is not None),
            tuple((fusion.shape(value), is_shown(value)) for value in node.outputs),
        )
        for node in nodes
    )
