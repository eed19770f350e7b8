"""Sampling against plain loops and against the distributions it claims to draw from."""

import math

import pytest
import scipy.stats
import torch

from mllm.sampling import TEXT, RowSettings, SamplingConfig, choose, gumbel, keep_threshold, mix_bits, stack_settings


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


def test_choices_follow_the_filtered_distribution() -> None:
    """Chi-square over 10^5 draws, for counters that differ in seed, position or codebook alone."""
    num_draws, many = 100_000, torch.arange(100_000)
    logits_C = torch.randn(23, generator=torch.Generator().manual_seed(3)) * 2
    logits_C[[4, 11]] = -torch.inf
    counters = [(many, 0 * many, 0), (0 * many + 2**63 - 1, many, TEXT)]  # seed, position, codebook
    counters += [(many // 4, many % 4, 5), (many % 7, many, many % 3)]
    all_of_them = {"temperature": 1.5, "top_k": 12, "top_p": 0.9}
    settings_of = ({}, {"temperature": 0.5}, {"temperature": 2.0, "top_k": 6}, {"top_p": 0.7}, all_of_them)
    for number, fields in enumerate(settings_of):
        config = SamplingConfig(**fields)
        top_p = config.top_p if config.top_p < 1 else 2.0
        kept = reference_kept((logits_C / config.temperature).tolist(), top_k=config.top_k, top_p=top_p)
        expected_C = torch.full((23,), -torch.inf, dtype=torch.float64)
        expected_C[list(kept)] = logits_C.double()[list(kept)] / config.temperature
        expected_C = expected_C.softmax(-1) * num_draws
        for seeds_N, positions_N, codebooks in counters if number in (0, 4) else counters[:1]:
            noise_NC = gumbel(seeds_N, positions_N, codebooks, num_choices=23)
            settings = stack_settings([config], num_choices=23)
            counts_C = choose(logits_C.expand(num_draws, -1), settings, noise_NC).bincount(minlength=23)
            assert (counts_C[expected_C == 0] == 0).all()
            frequent_C = expected_C > 5
            chi_square = ((counts_C - expected_C)[frequent_C] ** 2 / expected_C[frequent_C]).sum().item()
            assert scipy.stats.chi2.sf(chi_square, int(frequent_C.sum()) - 1) > 1e-4


def test_noise_is_a_function_of_its_counters() -> None:
    """Stored bits: the same on every machine and device; the shape it is computed in changes nothing."""
    seeds_N, positions_N = torch.tensor([0, 1, 2**62 + 12345]), torch.tensor([0, 7, 2**20 + 3])
    noise_NC = gumbel(seeds_N, positions_N, torch.tensor([0, 3, TEXT]), num_choices=5)
    expected = [
        [19516, -47312, -14177, 195719, -79105],
        [-43795, -52712, 33288, -76359, -20995],
        [16400, 2963, 87346, 10287, 190753],
    ]
    assert (noise_NC * 2**16).round().long().tolist() == expected
    for n in range(3):
        one_C = gumbel(seeds_N[n], positions_N[n], (0, 3, TEXT)[n], num_choices=9)
        assert torch.equal(one_C[:5], noise_NC[n])
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        many_N = torch.arange(4096, device=device)
        assert mix_bits(many_N).unique().numel() == 4096
        there = gumbel(many_N, many_N % 64, many_N % 8, num_choices=64).cpu()
        assert torch.equal(there, gumbel(many_N.cpu(), many_N.cpu() % 64, many_N.cpu() % 8, num_choices=64))


def test_per_codebook_settings_are_picked_by_codebook_and_steps_that_no_row_asks_for_are_left_out() -> None:
    config = SamplingConfig(temperature=(1.0, 0.5, 2.0), top_k=(1, 2, 3), top_p=(0.1, 0.25, 0.3))
    settings = stack_settings([SamplingConfig(), config], num_choices=7, num_codebooks=3).take(slice(4, 5))
    assert (settings.temperature_N1.item(), settings.top_k_N1.item(), settings.top_p_N1.item()) == (0.5, 2, 0.25)
    config.check_codebooks(3)
    with pytest.raises(ValueError):
        config.check_codebooks(4)
    settings = stack_settings([SamplingConfig(top_k=7)] * 2, num_choices=7)
    assert settings == RowSettings(None, None, None, None, None, False)


def test_settings_out_of_range_are_refused() -> None:
    for name, values in {
        "temperature": (0.0, float("nan"), (1.0, -1.0)),
        "top_k": (0, 2.5, True, float("inf"), float("nan")),
        "top_p": (0.0, 1.1),
        "guidance": (0.5, "much"),
    }.items():
        for value in values:
            with pytest.raises(ValueError):
                SamplingConfig(**{name: value})
    with pytest.raises(ValueError):
        SamplingConfig(temperature=(1.0, 1.0), top_k=(1, 2, 3))
