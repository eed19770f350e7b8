"""One process of a training whose second step has a loss that is NaN; run by a launcher with a recipe file."""

import sys
from pathlib import Path

from mllm.model import MLLMForConditionalGeneration
from train.recipe import MLLMRecipe, read_yaml, resolve
from train.trainer import train_mllm

if __name__ == "__main__":
    forward, calls = MLLMForConditionalGeneration.forward, 0

    def broken(self: MLLMForConditionalGeneration, *args: object, **kwargs: object) -> object:
        global calls
        calls += 1
        output = forward(self, *args, **kwargs)
        output.loss = output.loss * (float("nan") if calls == 2 else 1.0)
        return output

    MLLMForConditionalGeneration.forward = broken
    train_mllm(resolve(MLLMRecipe, read_yaml(Path(sys.argv[1]))))
