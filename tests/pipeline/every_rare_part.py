"""Tiny parts that only few pipelines have: encoders of pictures, sounds and languages, and priors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import transformers

__all__ = ["PIECES", "RARE", "WIDTH", "scored", "vision_config"]

WIDTH = 12
"""Features of a text token, and of an embedded image."""

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz", "<mask>"]
"""Pieces of the tokenizers of sentencepiece's kind: single letters."""


def scored(pieces: list[str]) -> list[tuple[str, float]]:
    """Pieces with their scores, as a tokenizer of sentencepiece's kind takes them."""
    return [(piece, -float(i)) for i, piece in enumerate(pieces)]


def vision_config() -> Any:
    """Config of a CLIP vision model for pictures of 8 by 8 pixels."""
    return transformers.CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
        projection_dim=WIDTH,
    )  # fmt: skip


def _normalizer(name: str, pipeline: str) -> Any:
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer

    return StableUnCLIPImageNormalizer(embedding_dim=WIDTH)


def _prior(name: str, pipeline: str) -> Any:
    return diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=6, num_layers=1, embedding_dim=WIDTH, num_embeddings=77
    )


def _multilingual(name: str, pipeline: str) -> Any:
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    config = MCLIPConfig(
        numDims=WIDTH, transformerDimensions=WIDTH, hidden_size=WIDTH, intermediate_size=16, num_attention_heads=2,
        num_hidden_layers=1, vocab_size=40, max_position_embeddings=90,
    )  # fmt: skip
    config.transformerDimensions, config.numDims = WIDTH, WIDTH
    return MultilingualCLIP(config).eval()


def _roberta_series(name: str, pipeline: str) -> Any:
    from diffusers.pipelines.deprecated.alt_diffusion import RobertaSeriesModelWithTransformation
    from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import RobertaSeriesConfig

    config = RobertaSeriesConfig(
        hidden_size=WIDTH, project_dim=WIDTH, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1,
        vocab_size=40, max_position_embeddings=90,
    )  # fmt: skip
    return RobertaSeriesModelWithTransformation(config)


def _xlm_tokenizer(name: str, pipeline: str) -> Any:
    return transformers.XLMRobertaTokenizer(vocab=scored(PIECES), model_max_length=77)


def _roberta_tokenizer(name: str, pipeline: str) -> Any:
    words = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "<mask>"]
    return transformers.RobertaTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77
    )


def _clap(name: str, pipeline: str) -> Any:
    config = transformers.ClapTextConfig(
        vocab_size=40, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=WIDTH, max_position_embeddings=90,
    )  # fmt: skip
    if not pipeline.startswith("Music"):
        return transformers.ClapTextModelWithProjection(config)
    audio = transformers.ClapAudioConfig(
        spec_size=64, window_size=4, num_mel_bins=64, depths=[1, 1], num_attention_heads=[2, 2], num_hidden_layers=2,
        hidden_size=8, patch_size=2, patch_stride=2, patch_embeds_hidden_size=4, projection_dim=WIDTH,
    )  # fmt: skip
    both = transformers.ClapConfig(text_config=config.to_dict(), audio_config=audio.to_dict(), projection_dim=WIDTH)
    return transformers.ClapModel(both)


def _vocoder(name: str, pipeline: str) -> Any:
    config = transformers.SpeechT5HifiGanConfig(
        model_in_dim=16, sampling_rate=16000, upsample_initial_channel=8, upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3, 3], resblock_dilation_sizes=[[1, 3], [1, 3]],
        normalize_before=False,
    )  # fmt: skip
    return transformers.SpeechT5HifiGan(config)


def _depth(name: str, pipeline: str) -> Any:
    config = transformers.DPTConfig(
        hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=16,
        patch_size=4, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
        is_hybrid=False, reassemble_factors=[4, 2, 1, 0.5], use_batch_norm_in_fusion_residual=False,
    )  # fmt: skip
    return transformers.DPTForDepthEstimation(config)


def _depth_images(name: str, pipeline: str) -> Any:
    return transformers.DPTImageProcessor(size={"height": 16, "width": 16})


def _ldm_bert(name: str, pipeline: str) -> Any:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    config = LDMBertConfig(
        vocab_size=50, d_model=WIDTH, encoder_layers=1, encoder_ffn_dim=16, encoder_attention_heads=2, head_dim=6
    )
    return LDMBertModel(config)


def _paint_encoder(name: str, pipeline: str) -> Any:
    from diffusers.pipelines.deprecated.paint_by_example.image_encoder import PaintByExampleImageEncoder

    return PaintByExampleImageEncoder(vision_config())


RARE: Mapping[str, Callable[[str, str], Any]] = {
    "StableUnCLIPImageNormalizer": _normalizer,
    "PriorTransformer": _prior,
    "MultilingualCLIP": _multilingual,
    "RobertaSeriesModelWithTransformation": _roberta_series,
    "XLMRobertaTokenizer": _xlm_tokenizer,
    "RobertaTokenizer": _roberta_tokenizer,
    "ClapTextModelWithProjection": _clap,
    "SpeechT5HifiGan": _vocoder,
    "DPTForDepthEstimation": _depth,
    "DPTImageProcessorPil": _depth_images,
    "PreTrainedModel": _ldm_bert,
    "PaintByExampleImageEncoder": _paint_encoder,
}
