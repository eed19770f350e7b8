"""The model as it will be saved and loaded again, for a moment in the middle of its training.

In: the model that learns and the average of its weights, if there is one. Out: a context in which the model has the
average for weights, the attention of a loaded model, one precision and nothing compiled; afterwards all is as before.
What is drawn and answered in it is what the saved model draws and answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn
from transformers import PreTrainedModel

from train.checkpoint.weight_average import WeightAverage

ATTENTION = "sdpa"
"""Of a model that `mllm` loads."""


@contextmanager
def as_saved(model: nn.Module, backbone: PreTrainedModel, average: WeightAverage | None) -> Iterator[None]:
    """Within, `model` is what would be saved now; `backbone` is the part of it that speed changes."""
    attention, compiled = backbone.config._attn_implementation, backbone._compiled_call_impl
    backbone.set_attn_implementation(ATTENTION)
    backbone._compiled_call_impl = None  # it would compile again for every length of a dialogue
    try:
        with average.lent_to(model) if average else nullcontext(), in_one_precision(model):
            yield
    finally:
        backbone.set_attn_implementation(attention)
        backbone._compiled_call_impl = compiled


@contextmanager
def in_one_precision(model: nn.Module) -> Iterator[None]:
    """Within, what learns beside frozen weights (with adapters: float32 beside bfloat16) has their precision."""
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    frozen = next((parameter.dtype for parameter in parameters if not parameter.requires_grad), parameters[0].dtype)
    own = {parameter: parameter.data for parameter in parameters if parameter.dtype != frozen}
    try:
        for parameter in own:
            parameter.data = parameter.data.to(frozen)
        yield
    finally:
        for parameter, data in own.items():
            parameter.data = data
