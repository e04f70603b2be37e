"""A diffusers denoiser's weights under the names of its first publication: the way back of diffusers' conversions."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

__all__ = ["flux_from_diffusers", "ldm_from_diffusers"]

State = Mapping[str, torch.Tensor]

_LDM_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_LDM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def ldm_from_diffusers(state: State, layers_per_block: int) -> dict[str, torch.Tensor]:
    """A UNet2DConditionModel as latent diffusion's checkpoints name it."""
    with_attention = {f"up_blocks.{match[1]}" for name in state if (match := re.match(r"up_blocks\.(\d+)\.att", name))}
    names = {name: _ldm_name(name, layers_per_block, with_attention) for name in state}
    return {f"model.diffusion_model.{names[name]}": tensor.contiguous() for name, tensor in state.items()}


def _ldm_name(name: str, layers: int, with_attention: set[str]) -> str:
    module, _, leaf = name.rpartition(".")
    if module in _LDM_OUTER:
        return f"{_LDM_OUTER[module]}.{leaf}"
    side, block, kind, index, rest = re.match(r"(\w+?)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", name).groups()
    if side == "mid":
        place = f"middle_block.{2 * int(index) + (kind == 'attentions')}"
        return f"{place}.{rest if kind == 'attentions' else _resnet(rest)}"
    if kind == "downsamplers":
        return f"input_blocks.{(int(block) + 1) * (layers + 1)}.0.op.{leaf}"
    if kind == "upsamplers":
        has_attention = f"up_blocks.{block}" in with_attention
        return f"output_blocks.{int(block) * (layers + 1) + layers}.{1 + has_attention}.conv.{leaf}"
    number = int(block) * (layers + 1) + int(index) + (side == "down")
    place = f"{'input' if side == 'down' else 'output'}_blocks.{number}"
    return f"{place}.1.{rest}" if kind == "attentions" else f"{place}.0.{_resnet(rest)}"


def _resnet(rest: str) -> str:
    module, _, leaf = rest.rpartition(".")
    return f"{_LDM_RESNET[module]}.{leaf}"


_FLUX_OUTER = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "proj_out": "final_layer.linear",
}
_FLUX_BLOCKS = {
    "double_blocks": {
        "norm1.linear": "img_mod.lin",
        "norm1_context.linear": "txt_mod.lin",
        "attn.norm_q": "img_attn.norm.query_norm",
        "attn.norm_k": "img_attn.norm.key_norm",
        "attn.norm_added_q": "txt_attn.norm.query_norm",
        "attn.norm_added_k": "txt_attn.norm.key_norm",
        "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0",
        "ff_context.net.2": "txt_mlp.2",
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
    },
    "single_blocks": {
        "norm.linear": "modulation.lin",
        "attn.norm_q": "norm.query_norm",
        "attn.norm_k": "norm.key_norm",
        "proj_out": "linear2",
    },
}
_FLUX_JOINED = {
    "double_blocks": {
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    },
    "single_blocks": {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")},
}


def flux_from_diffusers(state: State) -> dict[str, torch.Tensor]:
    """A FluxTransformer2DModel as Black Forest Labs' checkpoints name it."""
    left = dict(state)
    found = {f"{theirs}.{leaf}": left.pop(f"{ours}.{leaf}") for ours, theirs, leaf in _present(left, _FLUX_OUTER)}
    for leaf in ("weight", "bias"):  # diffusers keeps scale before shift
        scale, shift = left.pop(f"norm_out.linear.{leaf}").chunk(2)
        found[f"final_layer.adaLN_modulation.1.{leaf}"] = torch.cat([shift, scale])
    for kind, blocks in (("double_blocks", "transformer_blocks"), ("single_blocks", "single_transformer_blocks")):
        for number in sorted({name.split(".")[1] for name in left if name.startswith(f"{blocks}.")}):
            ours, theirs = f"{blocks}.{number}", f"{kind}.{number}"
            for joined, parts in _FLUX_JOINED[kind].items():
                for leaf in ("weight", "bias"):
                    found[f"{theirs}.{joined}.{leaf}"] = torch.cat(
                        [left.pop(f"{ours}.{part}.{leaf}") for part in parts]
                    )
            inner = {f"{ours}.{own}": f"{theirs}.{original}" for own, original in _FLUX_BLOCKS[kind].items()}
            for own, original, leaf in _present(left, inner):
                named = "scale" if original.endswith("_norm") else leaf
                found[f"{original}.{named}"] = left.pop(f"{own}.{leaf}")
    if left:
        raise AssertionError(f"{sorted(left)[0]} has no original name")
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _present(state: State, names: Mapping[str, str]) -> list[tuple[str, str, str]]:
    return [
        (own, original, leaf)
        for own, original in names.items()
        for leaf in ("weight", "bias")
        if f"{own}.{leaf}" in state
    ]
