"""The page on training is executed, from raw data to a served model; only the recipes' sizes are smaller."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from mllm.cli.main import main
from mllm.config import MLLMConfig
from mllm.sequence import trained_grids
from mllm.vocabulary import load_text_tokenizer
from tests.pages import Block, blocks_of, check_unrun_block, lay_out, run_block
from tests.train.launching import free_port, losses
from train.data.make_samples import main as make_samples

BLOCKS = blocks_of("training.md")
RAW = {
    "captions": "captions",
    "captions_held_out": "folder",
    "documents": "mmc4",
    "text": "text",
    "questions": "llava",
    "questions_held_out": "llava",
    "edits": "chat",
    "dialogues": "obelics",
}
"""Folder that the page names, and what `make_samples` calls records like its."""
SMALL = {
    "length": 320,
    "rows": 1,
    "batches_per_step": 2,
    "trainer.max_steps": 2,
    "trainer.warmup_steps": 1,
    "trainer.logging_steps": 1,
    "trainer.save_steps": 2,
}
MEASURED = {"validation.batches": 1, "trainer.eval_steps": 2}
RECIPES = {
    "stage1_projector": SMALL | MEASURED | {"model.embedder_width": 24, "model.embedder_heads": 2},
    "stage2_pretrain": SMALL | MEASURED,
    "stage3_sft": SMALL | MEASURED,
    "lora": SMALL | {"adapter.rank": 4},
}


@pytest.mark.slow
def test_commands_run_as_written(tmp_path: Path, image_tokenizer_folder: Path, text_tokenizer_file: Path) -> None:
    surroundings = {**lay_out(tmp_path, recipes=RECIPES), "MASTER_PORT": str(free_port())}
    assert main(["convert", "export-unitok", str(image_tokenizer_folder), str(tmp_path / "unitok_tokenizer.pth")]) == 0
    write_llama(tmp_path / "checkpoints" / "llama-2-7b", text_tokenizer_file)
    assert make_samples([str(tmp_path / "samples"), "--count", "10", "--size", "32"]) == 0
    (tmp_path / "raw").mkdir()
    for name, sample in RAW.items():
        (tmp_path / "raw" / name).symlink_to(tmp_path / "samples" / sample)
    for block in filter(lambda block: block.is_shell, BLOCKS):
        if not block.runs:
            check_unrun_block(block, tmp_path)
        elif block.text.startswith("mllm demo"):
            answers_and_stops(block, tmp_path, surroundings)
        else:
            run_block(block, tmp_path, surroundings)
    for stage in ("stage1", "stage2", "stage3", "lora"):
        assert losses(tmp_path / "runs" / stage).keys() == {1, 2}
    assert (tmp_path / "runs" / "lora" / "model" / "model.safetensors").is_file()
    assert Image.open(tmp_path / "drawn.png").size == (32, 32)


def write_llama(folder: Path, text_tokenizer_file: Path) -> None:
    """A folder as people download it: config, weights, tokenizer.model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        vocab_size=len(load_text_tokenizer(text_tokenizer_file)),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(text_tokenizer_file.read_bytes())


def answers_and_stops(block: Block, folder: Path, surroundings: dict[str, str]) -> None:
    """Start what serves until it is stopped; it must show its page."""
    port, end = free_port(), time.monotonic() + 120
    surroundings = {**surroundings, "GRADIO_SERVER_PORT": str(port)}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            ["bash", "-c", block.text], cwd=folder, env=surroundings, stdout=log, stderr=log, start_new_session=True
        )
        try:
            while not shows_page(port):
                assert server.poll() is None and time.monotonic() < end, (folder / "server.log").read_text()
                time.sleep(0.2)
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def shows_page(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_only_what_lacks_machines_is_not_run() -> None:
    assert [block.text.splitlines()[0].split()[-1] for block in BLOCKS if not block.runs] == ["scripts/train_stage2.sh"]
    assert {block.language for block in BLOCKS if not block.is_shell} == {"yaml"}


def test_fields_of_the_model_are_those_of_the_config() -> None:
    (text,) = (block.text for block in BLOCKS if block.language == "yaml")
    fields = yaml.safe_load(text)["model"]
    vocabulary = {"new_line_id": 10, "first_row_size_id": 11, "first_column_size_id": 21}
    config = MLLMConfig(image_size=256, patch_size=32, **fields, **vocabulary)
    assert trained_grids(config) == [(8, 8), (8, 10), (10, 8)]
