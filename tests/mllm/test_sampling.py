"""Sampling against plain loops and against the distributions it claims to draw from."""

import math

import pytest
import torch

from mllm.sampling import (
    RowSettings,
    SamplingConfig,
    choose,
    keep_threshold,
    sample_inverse_cdf,
    stack_settings,
)


def reference_kept(logits: list[float], *, top_k: int | None, top_p: float) -> set[int]:
    """What upstream keeps: the k best, then of these the most probable up to p, the crossing one included."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[: top_k or len(logits)]
    total = sum(math.exp(logits[i]) for i in order)
    kept, cumulative = set(), 0.0
    for i in order:
        if cumulative > top_p:
            break
        kept.add(i)
        cumulative += math.exp(logits[i]) / total
    return kept


def test_filters_keep_what_plain_loops_keep() -> None:
    logits_NC = torch.randn(4, 23, generator=torch.Generator().manual_seed(0)) * 2
    for top_k, top_p in ((3, 1.0), (None, 0.6), (5, 0.7), (1, 1.0), (None, 1e-6), (40, 0.999)):
        config = SamplingConfig(top_k=top_k, top_p=top_p)
        settings = stack_settings([config] * 4, num_choices=23)
        candidates_NX = logits_NC.topk(settings.num_candidates, dim=-1).values
        kept_NC = logits_NC >= keep_threshold(candidates_NX, settings.top_k_N1, settings.top_p_N1)
        for row, kept_C in zip(logits_NC.tolist(), kept_NC, strict=True):
            assert set(kept_C.nonzero().flatten().tolist()) == reference_kept(row, top_k=top_k, top_p=top_p)


def test_rows_of_different_settings_choose_as_if_each_were_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    configs = [
        SamplingConfig(),
        SamplingConfig(greedy=True),
        SamplingConfig(temperature=0.3, top_k=4),
        SamplingConfig(top_p=0.5),
        SamplingConfig(temperature=2.0, top_k=11, top_p=0.9),
    ]
    logits_NC = torch.randn(5, 37, generator=generator)
    for _ in range(50):
        uniforms_N = torch.rand(5, generator=generator)
        together_N = choose(logits_NC, stack_settings(configs, num_choices=37), uniforms_N)
        for n, config in enumerate(configs):
            settings = stack_settings([config], num_choices=37)
            assert choose(logits_NC[n : n + 1], settings, uniforms_N[n : n + 1]).item() == together_N[n].item()


def test_inverse_cdf_draws_from_the_softmax() -> None:
    logits_C = torch.tensor([0.5, -torch.inf, 2.0, -1.0, 1.0, -torch.inf, 0.0])
    num_draws = 40_000
    uniforms_N = torch.rand(num_draws, generator=torch.Generator().manual_seed(2))
    counts_C = sample_inverse_cdf(logits_C.expand(num_draws, -1), uniforms_N).bincount(minlength=7).double()
    expected_C = logits_C.double().softmax(-1) * num_draws
    assert counts_C[1] == counts_C[5] == 0
    possible = expected_C > 0
    chi_square = ((counts_C - expected_C)[possible] ** 2 / expected_C[possible]).sum()
    assert chi_square < 18.5  # 4 degrees of freedom: exceeded once in a thousand seeds


def test_an_impossible_choice_is_never_drawn() -> None:
    logits_NC = torch.full((3, 9), -torch.inf)
    logits_NC[:, 6] = -300.0
    assert sample_inverse_cdf(logits_NC, torch.tensor([0.0, 0.5, 1 - 2**-24])).tolist() == [6, 6, 6]


def test_per_codebook_settings_are_picked_by_codebook() -> None:
    config = SamplingConfig(temperature=(1.0, 0.5, 2.0), top_k=(1, 2, 3), top_p=(0.1, 0.2, 0.3))
    settings = stack_settings([config], num_choices=7, codebook=1)
    assert settings.temperature_N1.item() == 0.5
    assert settings.top_k_N1.item() == 2
    assert settings.top_p_N1.item() == pytest.approx(0.2)
    config.check_codebooks(3)
    with pytest.raises(ValueError):
        config.check_codebooks(4)


def test_steps_that_no_row_asks_for_are_left_out() -> None:
    settings = stack_settings([SamplingConfig(top_k=7)] * 2, num_choices=7)
    assert settings == RowSettings(None, None, None, None, None, False)


def test_settings_out_of_range_are_refused() -> None:
    for wrong in (
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"temperature": (1.0, -1.0)},
        {"top_k": 0},
        {"top_k": 2.5},
        {"top_k": True},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"guidance": 0.5},
        {"guidance": "much"},
        {"temperature": (1.0, 1.0), "top_k": (1, 2, 3)},
    ):
        with pytest.raises(ValueError):
            SamplingConfig(**wrong)
