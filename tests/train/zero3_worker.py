"""One process of two: builds a model around a language model under ZeRO-3, reports what it holds and what is in it.

Run by torchrun with a recipe file and a folder for the reports.
"""

import json
import sys
from pathlib import Path

import torch

from mllm.vocabulary import load_text_tokenizer
from tokenizer.unitok import UniTok
from train.build_model import build_model
from train.checkpoints import gathered
from train.recipe import MLLMRecipe, read_yaml, resolve
from train.trainer import training_arguments


def main() -> None:
    recipe = resolve(MLLMRecipe, read_yaml(Path(sys.argv[1])))
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
    report = Path(sys.argv[2])
    torch.save(values, report / f"weights-{arguments.process_index}.pt")
    (report / f"held-{arguments.process_index}.json").write_text(json.dumps({"held": held, "total": total}))


if __name__ == "__main__":
    main()
