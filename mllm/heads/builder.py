"""Builds the codebook head that a config asks for; the one place that knows all head types.

The interface is in mllm/heads/code_head.py, the heads in mllm/heads/depth_transformer.py and mllm/heads/mlp_head.py.
"""

from mllm.config import MLLMConfig
from mllm.heads.code_head import CodeHead, Guidance
from mllm.heads.depth_transformer import DepthTransformerHead
from mllm.heads.mlp_head import MLPHead
from mllm.heads.no_head import NoHead

__all__ = ["CodeHead", "Guidance", "build_head"]


def build_head(config: MLLMConfig) -> CodeHead:
    """The head of `config.head_type`, as wide as the backbone; unset sizes are the backbone's."""
    text = config.text_config
    intermediate_width = config.head_intermediate_size or text.intermediate_size
    match config.head_type:
        case "none":
            return NoHead(num_codes=config.codebook_size)
        case "mlp":
            return MLPHead(
                width=text.hidden_size,
                intermediate_width=intermediate_width,
                num_layers=config.head_layers,
                norm_eps=text.rms_norm_eps,
                num_codebooks=config.num_codebooks,
                num_codes=config.codebook_size,
            )
        case "depth_transformer":
            num_heads = config.head_num_heads or text.num_attention_heads
            num_kv_heads = num_heads if config.head_num_heads else text.num_key_value_heads
            return DepthTransformerHead(
                width=text.hidden_size,
                intermediate_width=intermediate_width,
                num_layers=config.head_layers,
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_width=text.hidden_size // num_heads,
                rope_theta=(getattr(text, "rope_parameters", None) or {}).get("rope_theta", 10000.0),
                norm_eps=text.rms_norm_eps,
                num_codebooks=config.num_codebooks,
                num_codes=config.codebook_size,
                shared_output=config.head_shared_output,
            )
        case _:
            raise ValueError(f"unknown head_type: found {config.head_type!r}; use depth_transformer, mlp or none")
