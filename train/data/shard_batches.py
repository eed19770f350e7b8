"""From a recipe's prepared folders to packed batches, after checking that they are this image tokenizer's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mllm.config import MLLMConfig
from tokenizer.model import UniTok
from train.data.mixture import Mixture
from train.data.packed_batches import PackedBatches
from train.data.row_samples import SampleOptions
from train.data.shard_folder import ShardFolder
from train.data.shard_format import codes_made_by
from train.data.shard_sequences import ShardSequences
from train.mllm_recipe import MLLMData, ShardSource


def shard_batches(
    sources: Sequence[ShardSource],
    data: MLLMData,
    *,
    image_tokenizer: UniTok,
    text_tokenizer: PreTrainedTokenizerBase,
    config: MLLMConfig,
    length: int,
    rows: int,
    num_batches: int,
    notes: Path | None = None,
) -> PackedBatches:
    """Batches of a mixture of prepared folders.

    Args:
        data: how samples are made of rows and packed; its own shards do not matter.
        notes: folder in which is noted how far the packing is, so that a resumed run need not pack anew.

    Raises:
        ValueError: a folder of another image tokenizer, of another version, or incomplete.
    """
    folders = [ShardFolder(source.path) for source in sources]
    for folder in folders:
        folder.require_tokenizer(codes_made_by(image_tokenizer))
    weights = [source.weight for source in sources]
    decides = {  # how samples fall into rows: notes of another packing must not be read
        "data": repr(data),
        "weights": weights,
        "rows": (length, rows),
        "shards": [(folder.names, folder.num_rows.tolist()) for folder in folders],
        "vocabulary": sorted(text_tokenizer.get_vocab().items()),
        "config": (config.prompt_style, config.image_layout, config.begin_image_id, config.image_token_id),
    }
    fingerprint = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
    return PackedBatches(
        ShardSequences(
            Mixture(folders, weights, seed=data.seed),
            SampleOptions(prompt_dropout=data.prompt_dropout, describe_share=data.describe_share),
            tokenizer=text_tokenizer,
            config=config,
            length=length,
        ),
        rows=rows,
        num_batches=num_batches,
        pad_token_id=config.pad_token_id,
        num_lanes=data.lanes,
        lookahead=data.lookahead,
        anchors=notes / fingerprint if notes else None,
    )
