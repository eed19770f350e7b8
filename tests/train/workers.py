"""One process of several, run by a launcher. `zero3 RECIPE FOLDER` reports what a model under ZeRO-3 holds and what is
in it; `bad_step RECIPE` trains with a loss that is NaN in the second step."""

import json
import sys
from pathlib import Path

import torch

from mllm.model import MLLMForConditionalGeneration
from mllm.vocabulary import load_text_tokenizer
from tokenizer.unitok import UniTok
from train.build_model import build_model
from train.checkpoints import gathered
from train.recipe import MLLMRecipe, read_yaml, resolve
from train.trainer import train_mllm, training_arguments


def report_zero3(recipe: MLLMRecipe, report: Path) -> None:
    arguments = training_arguments(recipe)
    image_tokenizer = UniTok.from_pretrained(recipe.image_tokenizer)
    model = build_model(recipe, load_text_tokenizer(recipe.text_tokenizer), image_tokenizer)
    held = sum(p.ds_tensor.numel() if hasattr(p, "ds_tensor") else p.numel() for p in model.parameters())
    total = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    values = {}
    for name, parameter in model.named_parameters():
        with gathered([parameter]):
            values[name] = parameter.detach().clone()
    values |= {name: buffer.clone() for name, buffer in model.named_buffers() if "code_embedding" in name}
    torch.save(values, report / f"weights-{arguments.process_index}.pt")
    (report / f"held-{arguments.process_index}.json").write_text(json.dumps({"held": held, "total": total}))


def train_with_bad_step(recipe: MLLMRecipe) -> None:
    forward, calls = MLLMForConditionalGeneration.forward, []

    def broken(self: MLLMForConditionalGeneration, *args: object, **kwargs: object) -> object:
        calls.append(1)
        output = forward(self, *args, **kwargs)
        output.loss = output.loss * (float("nan") if len(calls) == 2 else 1.0)
        return output

    MLLMForConditionalGeneration.forward = broken
    train_mllm(recipe)


if __name__ == "__main__":
    what, file, *folder = sys.argv[1:]
    run = {"zero3": report_zero3, "bad_step": train_with_bad_step}[what]
    run(resolve(MLLMRecipe, read_yaml(Path(file))), *map(Path, folder))
