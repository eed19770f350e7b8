"""How transformers loads this folder (trust_remote_code=True) where mllm-toolkit is installed."""

try:
    from mllm.config import MLLMConfig  # noqa: F401
    from mllm.model import MLLMForConditionalGeneration  # noqa: F401
    from mllm.processor import MLLMProcessor  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"mllm-toolkit must be installed to load this model, got: {error}; run: pip install mllm-toolkit"
    ) from error
