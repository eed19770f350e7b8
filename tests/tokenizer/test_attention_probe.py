"""The probe tells causal checkpoints from bidirectional ones by what they reconstruct."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor, nn

from mllm.checkpoint import BUNDLED, IMAGE_TOKENIZER
from mllm.world.render import render
from mllm.world.scene import random_scene
from tokenizer.checkpoint import AttentionProbe, ProjectionAttention, probe_attention, read_as
from tokenizer.images import ImageProcessor
from tokenizer.metrics import psnr
from tokenizer.network import cut_into_patches
from tokenizer.unitok import UniTok


@pytest.fixture(scope="module")
def pixels_B3HW() -> Tensor:
    return ImageProcessor(height=128, width=128)([render(random_scene(Random(seed)), 128) for seed in range(2)])


def trained_with(kind: ProjectionAttention, pixels_B3HW: Tensor) -> UniTok:
    """The bundled tokenizer with attention in its projections, which matters on the way out of the codes."""
    torch.manual_seed(0)
    bundled = UniTok.from_pretrained(BUNDLED / IMAGE_TOKENIZER)
    model = UniTok(replace(bundled.config, projection="attention", projection_attention=kind)).eval()
    for name in ("encoder", "quantizer", "decoder"):
        getattr(model, name).load_state_dict(getattr(bundled, name).state_dict())
    with torch.no_grad():
        hidden_M1D = model.encoder(cut_into_patches(pixels_B3HW, model.config.patch_size))
        vectors_BNZ = model.quantizer.lookup(bundled.encode(pixels_B3HW))
        model.post_quant_proj.attn.qkv.weight.normal_(std=0.5)
    imitate(model.quant_proj, bundled.quant_proj, hidden_M1D)
    imitate(model.post_quant_proj, bundled.post_quant_proj, vectors_BNZ)
    return model


def imitate(projection: nn.Module, example: nn.Module, inputs: Tensor) -> None:
    """Teach a projection what another one makes of these inputs; its attention keeps looking where it looks."""
    wanted = example(inputs).detach()
    learned = [value for name, value in projection.named_parameters() if "qkv" not in name]
    optimizer = torch.optim.AdamW(learned, lr=5e-3)
    for _ in range(150):
        loss = (projection(inputs) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize(("kind", "other"), [("full", "causal"), ("causal", "full")])
def test_the_reading_that_reconstructs_is_found(
    kind: ProjectionAttention, other: ProjectionAttention, pixels_B3HW: Tensor
) -> None:
    model = trained_with(kind, pixels_B3HW)
    for loaded_as in (model, read_as(model, other)):  # the answer does not depend on how it was loaded
        probe = probe_attention(loaded_as, pixels_B3HW)
        assert probe.answer == kind
    expected = psnr(pixels_B3HW, model.decode(model.encode(pixels_B3HW))).mean().item()
    assert getattr(probe, kind) == pytest.approx(expected, abs=1e-3)


def test_where_both_readings_are_as_good_there_is_no_answer(pixels_B3HW: Tensor, tmp_path: Path) -> None:
    assert probe_attention(UniTok.from_pretrained(BUNDLED / IMAGE_TOKENIZER), pixels_B3HW).answer is None
    assert AttentionProbe(full=20.0, causal=20.4).answer is None
    assert AttentionProbe(full=20.6, causal=20.0).answer == "full"
