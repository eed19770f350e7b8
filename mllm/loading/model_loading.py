"""A language model from its folder to where and how it computes: device, number format, fewer bits, several devices.

In: a folder and `LoadOptions`. Out: a model ready to decode. Knows no processor and no prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from accelerate.utils import get_max_memory

from mllm.config import MLLMConfig
from mllm.loading.device import choose_device
from mllm.loading.quantization import quantization_config
from mllm.model import MLLMForConditionalGeneration

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROOM = 0.85
"""Share of the free memory that weights may take; the rest is for caches."""
Place = int | str | torch.device


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """How to load; None means: what suits the machine and the checkpoint."""

    device: str | torch.device | None = None
    """Where to compute; default: a GPU if there is one."""
    dtype: str | torch.dtype | None = None
    """Number format of the language model; default: bfloat16 on a GPU, float32 on a CPU."""
    quantization: str | None = None
    """A name in mllm/loading/quantization.py; default: none."""
    device_map: Literal["auto"] | dict[str, Any] | None = None
    """"auto": the layers of the backbone over all GPUs, then the CPU; or a place for every module."""
    embedding_context: str | None = None
    """What a code embedding may see while an image is drawn (see MLLMConfig); default: the checkpoint's."""

    def __post_init__(self) -> None:
        if isinstance(self.dtype, str) and self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype: found {self.dtype!r}; use one of {', '.join(DTYPES)}")
        if isinstance(self.device_map, str) and self.device_map != "auto":
            raise ValueError(f"unknown device map: found {self.device_map!r}; use 'auto', or a place per module")

    @property
    def place(self) -> torch.device:
        """The device that embeds, chooses and decodes pictures."""
        return choose_device(self.device)

    @property
    def number_format(self) -> torch.dtype:
        """The dtype of the language model."""
        if self.dtype is not None:
            return DTYPES[self.dtype] if isinstance(self.dtype, str) else self.dtype
        return torch.float32 if self.place.type == "cpu" else torch.bfloat16


def load_model(folder: Path, options: LoadOptions) -> MLLMForConditionalGeneration:
    """The language model of a folder."""
    dtype, config = options.number_format, MLLMConfig.from_pretrained(folder, local_files_only=True)
    if options.embedding_context is not None:
        config.embedding_context = options.embedding_context
        config.check()
    arguments: dict[str, Any] = {"config": config, "dtype": dtype, "local_files_only": True}
    if options.quantization is not None:
        arguments["quantization_config"] = quantization_config(options.quantization, dtype=dtype)
        arguments["device_map"] = {"": options.place}  # weights are quantised where they will stay
    if options.device_map == "auto":
        arguments["device_map"] = spread(config, dtype=dtype, first=options.place)
    elif options.device_map is not None:
        arguments["device_map"] = options.device_map
    model = MLLMForConditionalGeneration.from_pretrained(folder, **arguments)
    return model if "device_map" in arguments else model.to(options.place)


def spread(
    config: MLLMConfig, *, dtype: torch.dtype, first: torch.device, max_memory: dict[Any, Any] | None = None
) -> dict[str, Place]:
    """The layers of the backbone over the devices there are; all else, which decoding calls directly, on the first.

    Args:
        max_memory: bytes of each device, as accelerate names them; default: what is free.
    """
    if first.type == "cpu":
        return {"": first}
    with init_empty_weights():
        model = MLLMForConditionalGeneration(config)
    main, layers = first.index or 0, list(model.backbone.layers)
    free = {place: int(ROOM * room) for place, room in (get_max_memory() if max_memory is None else max_memory).items()}
    in_layers = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    around, each = ((model.num_parameters() - in_layers) * dtype.itemsize, in_layers * dtype.itemsize // len(layers))
    children = [*(f"backbone.{name}" for name, _ in model.backbone.named_children()), *dict(model.named_children())]
    places: dict[str, Place] = {name: main for name in children if name not in ("backbone", "backbone.layers")}
    free[main] = free.get(main, 0) - around
    for number in range(len(layers)):
        with_room = [place for place in (main, *free) if free[place] >= each]
        if free[main] < 0 or not with_room:
            raise ValueError(
                f"the model does not fit: found room for {number} of {len(layers)} layers of {each} bytes beside "
                f"{around} bytes of other weights; use quantization, a smaller dtype, or more devices"
            )
        places[f"backbone.layers.{number}"] = with_room[0]
        free[with_room[0]] -= each
    return places
