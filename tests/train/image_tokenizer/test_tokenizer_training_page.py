"""The page on training the image tokenizer is executed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pages import blocks_of, check_unrun_block, lay_out, run_block

BLOCKS = blocks_of("tokenizer_training.md")


@pytest.mark.slow
def test_commands_run_as_written(tmp_path: Path) -> None:
    surroundings = lay_out(tmp_path)
    for name in ("n02", "n01"):
        (tmp_path / "data" / "imagenet" / "val" / name).mkdir(parents=True)
    (tmp_path / "open_clip.py").write_text(
        'IMAGENET_CLASSNAMES = ["tench", "goldfish"]\n'
    )  # which CI has not installed
    for block in BLOCKS:
        if block.runs:
            run_block(block, tmp_path, surroundings)
        else:
            check_unrun_block(block, tmp_path)
    steps = [json.loads(line)["step"] for line in (tmp_path / "runs/try/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    captioned = (tmp_path / "runs/try_captions/metrics.jsonl").read_text().splitlines()
    assert "contrastive" in json.loads(captioned[0])
    classes = json.loads((tmp_path / "data/imagenet/classes.json").read_text())
    assert classes == {"n01": "tench", "n02": "goldfish"}


def test_only_what_lacks_machines_is_not_run() -> None:
    assert [block.text.split()[0] for block in BLOCKS if not block.runs] == ["scripts/train_tokenizer.sh"]
    assert all(block.is_shell for block in BLOCKS)
