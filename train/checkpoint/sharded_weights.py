"""Weights of which every process holds a part (DeepSpeed ZeRO-3), in one piece for as long as they are changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled


@contextmanager
def whole(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """The parameters in one piece while they are changed; what the first process writes counts."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0):
        yield


def cut(modules: Iterable[nn.Module]) -> None:
    """Leave to every process its part of weights that were made whole (resized layers are)."""
    if not is_deepspeed_zero3_enabled():
        return
    import deepspeed
    from transformers.integrations.deepspeed import deepspeed_config

    for module in modules:
        deepspeed.zero.Init(module=module, config_dict_or_path=deepspeed_config())
