"""The model as it will be saved and loaded again, for a moment in the middle of its training.

In: the model that learns and the average of its weights, if there is one. Out: a context in which the model has the
average for weights, the attention of a loaded model, one precision and nothing compiled; afterwards all is as before.
What is drawn and answered in it is what the saved model draws and answers.
"""

from __future__ import annotations

import json
import os
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import is_deepspeed_zero3_enabled

from mllm.model import MLLMForConditionalGeneration
from tokenizer.unitok import UniTok

# An exponential moving average of the weights, kept beside a `transformers.Trainer` and saved in its checkpoints.


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


# Folders `checkpoint-STEP`: written whole or not at all, the newest few kept.


PREFIX = "checkpoint-"
UNFINISHED = "unfinished"
"""A file of this name in a checkpoint that many processes write: it does not count yet."""
UNFINISHED_PREFIX = ".unfinished-"
"""Beginning of the name of a folder that does not count."""


def step_of(folder: Path) -> int:
    """The step that a checkpoint folder was written at."""
    return int(folder.name.removeprefix(PREFIX))


def checkpoints(output: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    found = [path for path in output.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of)


def write_checkpoint(output: Path, step: int, write: Callable[[Path], None], *, keep: int, state: PartialState) -> Path:
    """Let `write` fill a new folder, give it its name when it is complete, drop all but the newest `keep`.

    Args:
        state: of the processes that train together; all of them call this, all of them write into the folder, and
            the first one makes it, names it and tidies up.
    """
    final = output / f"{PREFIX}{step}"
    unfinished = unfinished_folder(output, step)
    if state.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    state.wait_for_everyone()
    write(unfinished)
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(unfinished, final)
        for old in checkpoints(output)[:-keep]:
            shutil.rmtree(old)
    state.wait_for_everyone()
    return final


def mark_unfinished(folder: Path) -> None:
    """Say that a checkpoint is being written, before anything of it is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / UNFINISHED).touch()


def finish(folder: Path) -> None:
    """Say that a checkpoint is whole."""
    (folder / UNFINISHED).unlink()


def newest_checkpoint(output: Path) -> Path | None:
    """The newest finished checkpoint, if there is one."""
    finished = [path for path in checkpoints(output) if not (path / UNFINISHED).exists()]
    return finished[-1] if finished else None


def remove_unfinished(output: Path) -> None:
    """Delete what a killed run left behind. Renamed first, so that a half-deleted one never counts either."""
    for path in checkpoints(output):
        if (path / UNFINISHED).exists():
            os.replace(path, unfinished_folder(output, step_of(path)))
    for path in output.glob(f"{UNFINISHED_PREFIX}*"):
        shutil.rmtree(path)


def unfinished_folder(output: Path, step: int) -> Path:
    """Where a checkpoint lies that does not count."""
    return output / f"{UNFINISHED_PREFIX}{step}"


# Go on from a DeepSpeed checkpoint with another number of processes.
#
# In: a checkpoint whose optimizer states are cut for as many processes as wrote it. Out: the same joined, in
# DeepSpeed's
# universal layout beside the parts, and the setting that makes DeepSpeed read it. The joined copy is deleted with its
# checkpoint.


PLAIN, ZERO_2, ZERO_3 = "plain data parallel", "ZeRO-2", "ZeRO-3"
JOINED = "latest_universal"
"""The file that DeepSpeed writes last."""


def sharding_of(checkpoint: Path) -> str:
    """What a checkpoint was written under."""
    if not num_parts(checkpoint):
        return PLAIN
    return ZERO_3 if any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt")) else ZERO_2


def num_parts(checkpoint: Path) -> int:
    """For how many processes the optimizer states are cut; 0 where DeepSpeed did not write them."""
    return len(list(checkpoint.glob("global_step*/*_optim_states.pt")))


def check_sharding_is(sharding: str, checkpoint: Path) -> None:
    """Refuse a checkpoint of another sharding, whose optimizer states would not be found.

    Raises:
        ValueError: it was written under another.
    """
    found = sharding_of(checkpoint)
    if found != sharding:
        raise ValueError(
            f"{checkpoint} was written under {found}, and the recipe now asks for {sharding}; set trainer.deepspeed as "
            "before, or name another output and go on from the weights alone (start_from)"
        )


def needs_joining(checkpoint: Path | None, processes: int) -> bool:
    """Whether DeepSpeed cut a checkpoint for another number of processes."""
    return checkpoint is not None and num_parts(checkpoint) not in (0, processes)


def reads_joined(deepspeed: str | dict[str, Any]) -> dict[str, Any]:
    """A DeepSpeed configuration (or its file) that reads the joined copy."""
    config = deepspeed if isinstance(deepspeed, dict) else json.loads(Path(deepspeed).read_text(encoding="utf-8"))
    return {**config, "checkpoint": {**config.get("checkpoint", {}), "load_universal": True}}


def join_parts(checkpoint: Path) -> None:
    """Write the joined copy, by DeepSpeed's own converter; one process does this for all."""
    from deepspeed.checkpoint import ds_to_universal

    if (checkpoint / JOINED).is_file():
        return
    (parts,) = {path.parent for path in checkpoint.glob("global_step*/*_optim_states.pt")}
    joined = checkpoint / f"{parts.name}_universal"
    shutil.rmtree(joined, ignore_errors=True)  # of a run that was killed while joining
    options = Namespace(
        input_folder=str(parts),
        output_folder=str(joined),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    ds_to_universal.main(options)


# A model folder as `mllm.Pipeline` loads it: model, text tokenizer, image tokenizer, processor.


def save_model_folder(
    folder: Path,
    *,
    model: MLLMForConditionalGeneration,
    text_tokenizer: PreTrainedTokenizerBase,
    image_tokenizer: UniTok,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write everything that inference needs.

    Args:
        state_dict: the weights where the model itself holds parts of them only.
    """
    from mllm.processor import MLLMProcessor

    model.save_pretrained(folder, state_dict=state_dict)
    MLLMProcessor(tokenizer=text_tokenizer, image_tokenizer=image_tokenizer).save_pretrained(folder)


# Weights of which every process holds a part (DeepSpeed ZeRO-3), in one piece for as long as they are changed.


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
