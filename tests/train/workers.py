"""One process of several, run by a launcher. `zero3 RECIPE FOLDER` reports what a model under ZeRO-3 holds and what is
in it; `bad_step RECIPE` trains with a loss that is NaN in the second step; `answer MODEL` answers as it does alone."""

import json
import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from transformers import AutoModelForMultimodalLM, AutoProcessor
from transformers.integrations import HfDeepSpeedConfig

from mllm.model import MLLMForConditionalGeneration
from tests.mllm.tiny_folder import random_image, turn
from tests.train.conftest import build
from tests.train.launching import scaled_forward
from train.checkpoints import gathered
from train.recipe import MLLMRecipe, read_yaml, resolve
from train.trainer import train_mllm, training_arguments


def report_zero3(recipe: MLLMRecipe, report: Path) -> None:
    arguments = training_arguments(recipe)
    model = build(recipe)
    held = sum(p.ds_tensor.numel() if hasattr(p, "ds_tensor") else p.numel() for p in model.parameters())
    total = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    values = {}
    for name, parameter in model.named_parameters():
        with gathered([parameter]):
            values[name] = parameter.detach().clone()
    values |= {name: buffer.clone() for name, buffer in model.named_buffers() if "code_embedding" in name}
    torch.save(values, report / f"weights-{arguments.process_index}.pt")
    (report / f"held-{arguments.process_index}.json").write_text(json.dumps({"held": held, "total": total}))


def answer_together(folder: str) -> None:
    """One process has two images and a long answer, the other a text and a short one: the model describes images in
    passes of its own before it answers, and of these both must run equally many."""
    deepspeed.init_distributed("gloo", verbose=False)
    rank, processor = dist.get_rank(), AutoProcessor.from_pretrained(folder)
    chat = [turn("user", "What is it?", *[random_image()] * (2 if rank == 0 else 0))]
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    options = {"max_new_tokens": 7 if rank == 0 else 2}
    model = AutoModelForMultimodalLM.from_pretrained(folder).eval()
    expected = model.generate(**inputs, **options)
    assert model.generate(**inputs, **options, synced_gpus=True).equal(expected)
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    kept = HfDeepSpeedConfig(settings)  # transformers refers to it weakly
    model = AutoModelForMultimodalLM.from_pretrained(folder).eval()
    model = deepspeed.initialize(model=model, config=settings)[0].module
    assert kept.is_zero3() and all(hasattr(parameter, "ds_id") for parameter in model.parameters())
    assert model.generate(**inputs, **options).equal(expected)
    print(f"process {rank} answers as alone", flush=True)
    dist.barrier()


if __name__ == "__main__":
    match sys.argv[1:]:
        case "zero3", file, folder:
            report_zero3(resolve(MLLMRecipe, read_yaml(Path(file))), Path(folder))
        case "bad_step", file:
            MLLMForConditionalGeneration.forward = scaled_forward({2: float("nan")})
            train_mllm(resolve(MLLMRecipe, read_yaml(Path(file))))
        case "answer", folder:
            answer_together(folder)
