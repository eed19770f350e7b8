"""One process of two that answer together: each must give the answers that it gives alone.

Run by torchrun with a model folder. One process has two images and a long answer, the other a text and a short one:
the model describes images in passes of its own before it answers, and of these both must run equally many.
"""

import sys

import deepspeed
import torch.distributed as dist
from transformers import AutoModelForMultimodalLM, AutoProcessor
from transformers.integrations import HfDeepSpeedConfig

from tests.mllm.tiny_folder import random_image


def main() -> None:
    folder, image = sys.argv[1], {"type": "image", "image": random_image()}
    processor = AutoProcessor.from_pretrained(folder)
    deepspeed.init_distributed("gloo", verbose=False)
    rank = dist.get_rank()
    content = [{"type": "text", "text": "What is it?"}, *([image, image] if rank == 0 else [])]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
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
    main()
