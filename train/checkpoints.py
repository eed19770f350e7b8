"""Checkpoints of a training: folders that are complete or do not count, averaged weights, sharded weights and states.

Checkpoints are folders `checkpoint-STEP`, filled elsewhere and renamed when every process is done. The finished model
is a folder that `mllm.Pipeline` loads.
"""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from mllm.files import UNFINISHED, errors_that_name, read_json
from mllm.model import MLLMForConditionalGeneration
from mllm.processor import MLLMProcessor
from tokenizer.unitok import UniTok
from train.recipe import RECIPES

PREFIX = "checkpoint-"
AVERAGE = "average.safetensors"
UNSHARDED, ZERO_2, ZERO_3 = "plain data parallel", "ZeRO-2", "ZeRO-3"
UNIVERSAL = "latest_universal"
"""The file that DeepSpeed's conversion writes last."""


# ---- folders ----


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(PREFIX))


def checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in output.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of)


def newest_checkpoint(output: Path) -> Path | None:
    return next(reversed(checkpoints(output)), None)


def write_checkpoint(
    output: Path, step: int, write: Callable[[Path], None], *, keep: int | None, state: PartialState
) -> Path:
    """Let `write` fill a new folder, rename it when it is complete, drop all but the newest `keep` (None: drop none).

    Args:
        state: of the processes that train together; all of them call this and may write into the folder.
    """
    final, unfinished = output / f"{PREFIX}{step}", output / UNFINISHED / f"{PREFIX}{step}"
    if state.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    state.wait_for_everyone()
    try:
        with errors_that_name(final):
            write(unfinished)
    except OSError:  # leave the disk no fuller than it was
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(unfinished, final)
        for old in checkpoints(output)[:-keep] if keep else ():
            shutil.rmtree(old)
    state.wait_for_everyone()
    return final


def remove_unfinished(output: Path) -> None:
    shutil.rmtree(output / UNFINISHED, ignore_errors=True)


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
        state_dict: the weights, where the model itself is sharded.
    """
    model.save_pretrained(folder, state_dict=state_dict)
    MLLMProcessor(tokenizer=text_tokenizer, image_tokenizer=image_tokenizer).save_pretrained(folder)


# ---- averaged weights, and the model as it would be saved ----


class WeightAverage(TrainerCallback):
    """An exponential moving average of the trainable weights, updated after every step and saved in checkpoints.

    It is float32 also for bfloat16 weights (DeepSpeed's), where an update by 1 - decay would be rounded away.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.names = [name for name, _ in named]
        self.trainable = nn.ParameterList([parameter for _, parameter in named])
        self.average = AveragedModel(self.trainable, multi_avg_fn=get_ema_multi_avg_fn(decay)).float()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.update()

    def update(self) -> None:
        """Take in the weights as they are now."""
        self.average.update_parameters(nn.ParameterList([weight.detach().float() for weight in self.trainable]))

    def save(self, folder: Path) -> None:
        tensors = {name: tensor.data for name, tensor in zip(self.names, self.average.module.parameters(), strict=True)}
        save_file({**tensors, "num_averaged": self.average.n_averaged}, folder / AVERAGE)

    def load(self, folder: Path) -> None:
        stored = load_file(folder / AVERAGE)
        self.average.n_averaged.copy_(stored["num_averaged"])
        for name, tensor in zip(self.names, self.average.module.parameters(), strict=True):
            tensor.data.copy_(stored[name])

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Overwrite the model's trainable weights with the average, if any step was averaged."""
        if self.average.n_averaged:
            for weight, average in zip(self.trainable, self.average.module.parameters(), strict=True):
                weight.copy_(average)

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Within, the model has the averaged weights; its own are kept in the CPU's memory."""
        own = [weight.detach().to("cpu", copy=True) for weight in self.trainable]
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, kept in zip(self.trainable, own, strict=True):
                    weight.copy_(kept)


@contextmanager
def inference_model(model: nn.Module, backbone: PreTrainedModel, average: WeightAverage | None) -> Iterator[None]:
    """Within, `model` computes what a model that is saved now and loaded again computes.

    It has the averaged weights, one precision, the attention of loaded models, and a `backbone` that is not compiled
    (it would compile again for every length of a dialogue).
    """
    attention, compiled = backbone.config._attn_implementation, backbone._compiled_call_impl
    backbone.set_attn_implementation("sdpa")
    backbone._compiled_call_impl = None
    try:
        with average.ema_weights() if average else nullcontext(), _one_precision(model):
            yield
    finally:
        backbone.set_attn_implementation(attention)
        backbone._compiled_call_impl = compiled


@contextmanager
def _one_precision(model: nn.Module) -> Iterator[None]:
    """Within, trainable weights have the precision of frozen ones (with adapters: float32 beside bfloat16)."""
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


# ---- DeepSpeed: sharded weights, and optimizer states for another number of processes ----


@contextmanager
def gathered(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within, parameters that ZeRO-3 partitions are complete; changes by the first process are kept."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0):
        yield


def partition(modules: Iterable[nn.Module]) -> None:
    """Partition parameters that are complete on every process again (those of resized layers are)."""
    if not is_deepspeed_zero3_enabled():
        return
    import deepspeed
    from transformers.integrations.deepspeed import deepspeed_config

    for module in modules:
        deepspeed.zero.Init(module=module, config_dict_or_path=deepspeed_config())


def sharding_of(checkpoint: Path) -> str:
    """The sharding that a checkpoint was written under."""
    if not num_partitions(checkpoint):
        return UNSHARDED
    return ZERO_3 if any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt")) else ZERO_2


def num_partitions(checkpoint: Path) -> int:
    """Into how many partitions DeepSpeed split the optimizer states; 0 without DeepSpeed."""
    return len(list(checkpoint.glob("global_step*/*_optim_states.pt")))


def check_sharding(checkpoint: Path, sharding: str) -> None:
    """Refuse a checkpoint of another sharding, whose optimizer states would not be found."""
    if (found := sharding_of(checkpoint)) != sharding:
        raise ValueError(
            f"{checkpoint} must be written under {sharding} as the recipe asks, got {found}; set trainer.deepspeed so"
        )


def needs_resharding(checkpoint: Path | None, processes: int) -> bool:
    """Whether DeepSpeed wrote a checkpoint with another number of processes."""
    return checkpoint is not None and num_partitions(checkpoint) not in (0, processes)


def write_universal(checkpoint: Path) -> None:
    """Add DeepSpeed's universal layout, which any number of processes can load, to a checkpoint.

    By DeepSpeed's own converter; one process does this for all.
    """
    from deepspeed.checkpoint import ds_to_universal

    if (checkpoint / UNIVERSAL).is_file():
        return
    (partitions,) = {path.parent for path in checkpoint.glob("global_step*/*_optim_states.pt")}
    universal = checkpoint / f"{partitions.name}_universal"
    shutil.rmtree(universal, ignore_errors=True)  # of a run that was killed during the conversion
    folders = {"input_folder": str(partitions), "output_folder": str(universal), "keep_temp_folder": False}
    workers = {"num_extract_workers": 1, "num_merge_workers": 1}
    ds_to_universal.main(Namespace(**folders, **workers, strict=True, inject_missing_state=True))


def deepspeed_file(path: Path) -> Path:
    """A file, or the one of train/recipes/ that has this name; earlier versions kept those in scripts/."""
    shipped = RECIPES / f"{path.name.removesuffix('.json')}.json"
    if not path.is_file() and not shipped.is_file():
        names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.json")))
        raise FileNotFoundError(f"trainer.deepspeed must be a file or one of {names}, got {path}; correct it")
    return path if path.is_file() else shipped


def deepspeed_settings(config: str | Path | dict[str, Any], *, universal: bool) -> dict[str, Any]:
    """A DeepSpeed configuration (or its file, or the name of one of ours) with what a run of ours relies on.

    Args:
        universal: load the universal layout.
    """
    settings = {**config} if isinstance(config, dict) else read_json(deepspeed_file(Path(config)))
    if "bf16" in settings:  # before 0.19 it does not look at gradients in bfloat16, by which a bad step is skipped
        settings["bf16"] = {**settings["bf16"], "check_grad_overflow": True}
    if universal:
        settings["checkpoint"] = {**settings.get("checkpoint", {}), "load_universal": True}
    return settings
