"""An exponential moving average of the weights, kept beside a `transformers.Trainer` and saved in its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

FILE = "average.safetensors"


class WeightAverage(TrainerCallback):
    """Averages the weights that learn after every step; `copy_into` and `lent_to` put the average into a model.

    The average is float32 also of bfloat16 weights (DeepSpeed's): there a step of 1 - decay would be rounded away.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.learning = _Learning(model)
        self.average = AveragedModel(self.learning, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.average.module.float()

    @property
    def _averaged(self) -> _Learning:
        module = self.average.module
        assert isinstance(module, _Learning), "AveragedModel copies what it was given"
        return module

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.update()

    def update(self) -> None:
        """Take in the weights as they are now."""
        is_float32 = all(tensor.dtype == torch.float32 for tensor in self.learning.tensors)
        self.average.update_parameters(self.learning if is_float32 else deepcopy(self.learning).float())

    def save(self, folder: Path) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in self._averaged.named_tensors()}
        save_file({**tensors, "num_averaged": self.average.n_averaged}, folder / FILE)

    def load(self, folder: Path) -> None:
        stored = load_file(folder / FILE)
        self.average.n_averaged.copy_(stored.pop("num_averaged"))
        for name, tensor in self._averaged.named_tensors():
            tensor.data.copy_(stored[name])

    @torch.no_grad()
    def copy_into(self, model: nn.Module) -> None:
        """Overwrite the parameters of `model` with the average, if any step was averaged."""
        if not self.average.n_averaged:
            return
        for (_, target), (_, source) in zip(
            _Learning(model).named_tensors(), self._averaged.named_tensors(), strict=True
        ):
            target.copy_(source)

    @contextmanager
    def lent_to(self, model: nn.Module) -> Iterator[None]:
        """Within, `model` has the average for its parameters; afterwards its own again (kept in the CPU's memory)."""
        targets = [tensor for _, tensor in _Learning(model).named_tensors()]
        own = [tensor.detach().to("cpu", copy=True) for tensor in targets]
        self.copy_into(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for target, kept in zip(targets, own, strict=True):
                    target.copy_(kept)


class _Learning(nn.Module):
    """The parameters that learn, without the modules around them (an AveragedModel copies what it is given)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.names = [name for name, _ in named]
        self.tensors = nn.ParameterList([parameter for _, parameter in named])

    def named_tensors(self) -> list[tuple[str, nn.Parameter]]:
        return list(zip(self.names, self.tensors, strict=True))
