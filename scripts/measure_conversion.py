"""Peak memory and time of `mllm convert unitok-mllm` on a synthetic released checkpoint of some size.

usage: python scripts/measure_conversion.py [--gigabytes 2] [--shards 3] [--dtype float32] [--folder FOLDER]

Writes random weights in the released layout (as wide as the released model, with fewer layers), converts them in a
process of its own, and prints what that process needed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from mllm.checkpoint import RELEASED, our_shapes, write_shards
from mllm.config import RELEASED_TYPE, MLLMConfig, from_released
from mllm.files import counted
from mllm.model import MLLMForConditionalGeneration

ROOT = Path(__file__).resolve().parent.parent
WIDTHS = {"hidden_size": 2048, "intermediate_size": 5504, "num_attention_heads": 16, "num_key_value_heads": 16}
BYTES = 2  # bfloat16, as the released model


def shapes_of(fields: dict) -> dict[str, Tensor]:
    """Every tensor of the released layout, on the meta device."""
    config = MLLMConfig.from_dict(from_released(fields))
    shapes = our_shapes(MLLMForConditionalGeneration, config)
    return RELEASED.to_theirs(shapes, codebook_size=config.codebook_size)


def fields_of_size(num_bytes: int) -> dict:
    """The smallest released config whose weights take at least that many bytes."""
    layers = 0
    while True:
        layers += 1
        fields = {"model_type": RELEASED_TYPE, "torch_dtype": "bfloat16", "num_hidden_layers": layers, **WIDTHS}
        if sum(BYTES * shape.numel() for shape in shapes_of(fields).values()) >= num_bytes:
            return fields


def write_checkpoint(folder: Path, num_bytes: int, num_shards: int) -> None:
    """Random weights in about that many shards, with their index and config."""
    fields = fields_of_size(num_bytes)
    shapes = shapes_of(fields)
    shard = sum(BYTES * shape.numel() for shape in shapes.values()) // num_shards
    room = shard + shard // 10  # for the last tensor of a shard
    write_shards(shapes, lambda name: torch.randn(shapes[name].shape), folder, max_bytes=room, dtype=torch.bfloat16)
    (folder / "config.json").write_text(json.dumps(fields))


def convert(source: Path, folder: Path, *, dtype: str | None) -> tuple[float, float]:
    """Seconds and peak resident gigabytes of the command."""
    command = [sys.executable, "-m", "mllm", "convert", "unitok-mllm", str(source), str(folder)]
    start = time.monotonic()
    process = subprocess.Popen(command + (["--dtype", dtype] if dtype else []), cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("the conversion failed")
    return time.monotonic() - start, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source = Path(folder) / "source"
        source.mkdir()
        tokenizer = ROOT / "mllm" / "assets" / "tiny" / "tokenizer.model"  # any; its pieces do not matter here
        (source / "tokenizer.model").write_bytes(tokenizer.read_bytes())
        # in another process: the system counts what a process had when it started a command to that command's peak
        size = int(args.gigabytes * 1e9)
        writer = get_context("spawn").Process(target=write_checkpoint, args=(source, size, args.shards))
        writer.start()
        writer.join()
        sizes = [path.stat().st_size for path in source.glob("*.safetensors")]
        seconds, peak = convert(source, Path(folder) / "converted", dtype=args.dtype)
    print(f"checkpoint {sum(sizes) / 1e9:.2f} GB in {counted(len(sizes), 'shard')}, largest {max(sizes) / 1e9:.2f} GB")
    print(f"converted to {args.dtype or 'the same type'} in {seconds:.1f} s, peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
