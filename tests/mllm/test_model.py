"""The model: packed = separate, labels and targets are aligned, what is not learned gets exactly zero gradient."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from mllm.engine.loop import Engine
from mllm.model import LOGIT_BYTES, LossParts, MLLMForConditionalGeneration, compute_loss, count_items
from mllm.processor import collate
from mllm.sampling import SamplingConfig
from mllm.sequence import IGNORED, TokenSequence, pack
from tests.mllm.engine_helpers import (
    BACKBONE,
    CODEBOOK_SIZE,
    IDS,
    NUM_CODEBOOKS,
    ask,
    build_model,
    build_prompt,
    learned_sample,
)


@pytest.fixture(scope="module", params=["depth_transformer", "mlp"])
def model(request: pytest.FixtureRequest) -> MLLMForConditionalGeneration:
    return build_model(head_type=request.param, z_loss_weight=0.03, text_loss_weight=1.7)


SAMPLES = [
    learned_sample(seed=1, plan=["text", "image", "TEXT"]),
    learned_sample(seed=2, plan=["text", "IMAGE"]),
    learned_sample(seed=3, plan=["text", "image", "text", "TEXT", "IMAGE", "TEXT", "IMAGE"]),
    learned_sample(seed=4, plan=["text", "TEXT"]),
]
"""Capitals are learned."""


def loss_by_loops(model: MLLMForConditionalGeneration, samples: list[TokenSequence]) -> Tensor:
    """Sample by sample, position by position: hidden t predicts position t + 1."""
    total, items = torch.zeros(()), 0.0
    config = model.config
    for sample in samples:
        ids, codes_PK = torch.from_numpy(sample.token_ids_T), torch.from_numpy(sample.codes_PK)
        hidden_TD = model(ids[None], codes=codes_PK, image_lengths=torch.from_numpy(sample.image_lengths_I)).hidden[0]
        position = 0
        for t in range(len(ids)):
            if ids[t] == IDS["image_token_id"]:
                if sample.code_targets_P[position]:
                    logits_KC = model.code_head(hidden_TD[t - 1 : t], codes_PK[position : position + 1])[0]
                    total = total + F.cross_entropy(logits_KC, codes_PK[position], reduction="sum")
                    total = total + config.z_loss_weight * logits_KC.amax(dim=-1).square().sum()
                    items += NUM_CODEBOOKS
                position += 1
            elif sample.labels_T[t] != IGNORED:
                logits_V = model.lm_head(hidden_TD[t - 1])
                total = total + config.text_loss_weight * F.cross_entropy(logits_V, ids[t])
                items += config.text_loss_weight
    return total / items


def test_packed_loss_equals_plain_loops_over_samples(model: MLLMForConditionalGeneration) -> None:
    packed = model(**pack(SAMPLES, length=61, pad_token_id=0))
    torch.testing.assert_close(packed.loss, loss_by_loops(model, SAMPLES), atol=1e-5, rtol=1e-5)
    parts = packed.loss_parts
    torch.testing.assert_close(parts.image, parts.image_per_codebook_K.mean())
    weights = model.config.text_loss_weight * parts.num_text, parts.num_image
    total = (weights[0] * parts.text + weights[1] * (parts.image + parts.z)) / sum(weights)
    torch.testing.assert_close(parts.total, total)


def test_packed_gradients_equal_those_of_separate_samples(model: MLLMForConditionalGeneration) -> None:
    """Each sample alone, divided by the items of all: the sum of the gradients is that of the packed batch."""
    items = sum(model(**pack([s], length=len(s), pad_token_id=0)).loss_parts.num_text for s in SAMPLES) * 1.7
    items += sum(s.code_targets_P.sum() for s in SAMPLES) * NUM_CODEBOOKS
    model.zero_grad()
    for sample in SAMPLES:
        model(**pack([sample], length=len(sample), pad_token_id=0), num_items=float(items)).loss.backward()
    separate = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    model(**pack(SAMPLES, length=83, pad_token_id=0)).loss.backward()
    for name, value in model.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(value.grad, separate[name], atol=1e-5, rtol=1e-3, msg=name)


def test_scheduled_sampling_shows_the_model_what_it_predicts_and_learns_what_is_right(
    model: MLLMForConditionalGeneration,
) -> None:
    batch = pack(SAMPLES, length=61, pad_token_id=0)
    ids_BT, codes_PK, lengths_I = (batch[name] for name in ("input_ids", "codes", "image_lengths"))
    hidden_TD = model(**{name: value for name, value in batch.items() if name != "labels"}).hidden.flatten(0, 1)
    (indices_P,) = (ids_BT.flatten() == IDS["image_token_id"]).nonzero(as_tuple=True)
    predicted_PK = model.code_head(hidden_TD[indices_P - 1], codes_PK).argmax(dim=-1)
    seen_PK = torch.where(batch["code_targets"][:, None], predicted_PK, codes_PK)
    assert (seen_PK != codes_PK).any()
    expected = model(**batch, inputs_embeds=model.embed(ids_BT, seen_PK, lengths_I)).loss
    torch.testing.assert_close(model(**batch, scheduled_sampling=1.0).loss, expected)
    torch.manual_seed(0)
    some = model(**batch, scheduled_sampling=0.5).loss
    assert not some.isclose(expected) and not some.isclose(model(**batch).loss)
    calls: list[int] = []  # of a process without images as many as of the others, whose weights it shares
    hook = model.code_head.register_forward_hook(lambda *_: calls.append(0))
    for samples in (SAMPLES, SAMPLES[3:]):
        batch, counts = pack(samples, length=61, pad_token_id=0), []
        for share in (0.0, 0.5):
            calls.clear()
            assert model(**batch, scheduled_sampling=share).loss.isfinite()
            counts.append(len(calls))
        assert counts[1] == counts[0] + 1
    hook.remove()


@torch.no_grad()
def test_a_dialogue_goes_on_beside_a_cache_with_the_image_that_it_holds_as_the_source() -> None:
    model = build_model(image_source_embedding=True)
    torch.nn.init.normal_(model.code_embedding.source.codebooks)
    sample = learned_sample(seed=3, plan=["text", "image", "text", "image", "text"])
    whole = {"input_ids": torch.from_numpy(sample.token_ids_T)[None], "codes": torch.from_numpy(sample.codes_PK)}
    whole |= {"image_lengths": torch.from_numpy(sample.image_lengths_I)}
    expected_TD = model(**whole).hidden[0]
    begin = int((whole["input_ids"][0] == IDS["end_image_id"]).nonzero()[0]) + 1
    first = {"input_ids": whole["input_ids"][:, :begin], "codes": whole["codes"][:9]}
    cache = model(**first, image_lengths=torch.tensor([9]), use_cache=True).past_key_values
    length = whole["input_ids"].shape[1] - begin
    rest = model.prepare_inputs_for_generation(**whole, next_sequence_length=length, past_key_values=cache)
    torch.testing.assert_close(model(**rest).hidden[0], expected_TD[begin:], atol=1e-5, rtol=1e-4)


def test_no_gradient_where_nothing_is_learned(model: MLLMForConditionalGeneration) -> None:
    """The second sample of a packed row, without labels, and the padding get exactly zero."""
    samples = [SAMPLES[1], learned_sample(seed=5, plan=["text", "image", "text"])]
    batch, begin = pack(samples, length=70, pad_token_id=0), len(samples[0])
    embedded_BTD = model.embed(batch["input_ids"], batch["codes"], batch["image_lengths"]).detach().requires_grad_()
    model(**batch, inputs_embeds=embedded_BTD).loss.backward()
    has_gradient_T = embedded_BTD.grad[0].abs().sum(dim=-1) > 0
    assert has_gradient_T[: begin - 2].any() and not has_gradient_T[begin:].any()


def test_a_batch_without_images_or_labels_still_touches_all_trained_parameters(
    model: MLLMForConditionalGeneration,
) -> None:
    """Ranks must agree on which gradients exist, whatever their batch holds."""
    model.train()
    for plan in (["text", "TEXT"], ["text"], ["text", "image", "text"]):
        model.zero_grad()
        loss = model(**pack([learned_sample(seed=6, plan=plan)], length=40, pad_token_id=0)).loss
        loss.backward()
        assert loss.isfinite()
        assert not [name for name, value in model.named_parameters() if value.grad is None]
    model.eval()
    batch = pack(SAMPLES[:1], length=40, pad_token_id=0)
    with pytest.raises(ValueError):  # placeholders and codes must match
        model(batch["input_ids"], codes=batch["codes"][:8], image_lengths=torch.tensor([8]))


@torch.no_grad()
def test_packed_samples_equal_each_alone_and_see_nothing_of_each_other_in_every_attention() -> None:
    """Also where a token of another sample changes, before or after; padding changes nothing either."""
    samples = SAMPLES[1:3]
    for attention, fields in (("sdpa", {}), ("eager", {}), ("sdpa", {"image_source_embedding": True})):
        model = build_model(**fields)
        if fields:
            torch.nn.init.normal_(model.code_embedding.source.codebooks)
        model.set_attn_implementation(attention)
        batch = pack(samples, length=80, pad_token_id=0)
        inputs = {name: batch[name] for name in ("input_ids", "position_ids", "codes", "image_lengths")}
        packed_TD = model(**inputs).hidden[0]
        begin = 0
        for index, sample in enumerate(samples):
            alone = {
                "codes": torch.from_numpy(sample.codes_PK),
                "image_lengths": torch.from_numpy(sample.image_lengths_I),
            }
            expected_TD = model(torch.from_numpy(sample.token_ids_T)[None], **alone).hidden[0]
            span = slice(begin, begin + len(sample))
            torch.testing.assert_close(packed_TD[span], expected_TD, atol=2e-5, rtol=1e-4)
            changed = inputs | {"input_ids": inputs["input_ids"].clone()}
            changed["input_ids"][0, 1 if index else len(samples[0]) + 1] += 1  # of the other sample
            assert torch.equal(model(**changed, use_cache=False).hidden[0, span], packed_TD[span])
            begin += len(sample)


@torch.no_grad()
def test_flash_attention_gets_all_packed_rows_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' flash attention finds packed samples in a batch of one row only."""
    model, batch = build_model(), pack(SAMPLES, length=61, pad_token_id=0)
    expected = model(**batch).loss
    monkeypatch.setattr("mllm.model.is_flash_attention_requested", lambda config: True)
    shapes = []
    model.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["inputs_embeds"].shape), with_kwargs=True
    )
    torch.testing.assert_close(model(**batch).loss, expected)
    assert shapes == [(1, batch["labels"].numel(), 24)]


@pytest.mark.slow
def test_forward_compiles_without_a_graph_break_and_exports() -> None:
    """Text, images of unequal sizes, and the loss; compiled code equals the model, with gradients."""
    grid = {"layout": "grid", "image_position_embedding": True, "head_type": "mlp"}
    for fields in ({}, grid, {"image_source_embedding": True}):
        model, layout = build_model(**fields), fields.get("layout", "fixed")
        num_positions = (9, 6 if layout == "grid" else 9)
        prompts = [build_prompt(8, seed=n, num_images=1, positions=n, layout=layout) for n in num_positions]
        images, text = collate(prompts, model.config), collate([build_prompt(8, seed=1)], model.config)
        del images["code_targets"]
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        for inputs in (text, images):
            torch._dynamo.reset()
            assert torch._dynamo.explain(model)(**inputs).graph_break_count == 0, "without fullgraph as well"
            torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=1e-4)
            exported = torch.export.export(model, (), dict(inputs)).module()
            torch.testing.assert_close(exported(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=1e-4)
        found = compiled(**images, labels=images["input_ids"]).loss
        expected = model(**images, labels=images["input_ids"]).loss
        torch.testing.assert_close(found, expected)
        weights = list(model.parameters())
        gradients = [torch.autograd.grad(loss, weights, allow_unused=True) for loss in (found, expected)]
        for compiled_gradient, gradient in zip(*gradients, strict=True):
            gradient = torch.zeros_like(compiled_gradient) if gradient is None else gradient
            torch.testing.assert_close(compiled_gradient, gradient, atol=1e-4, rtol=1e-3)


def test_outputs_are_those_of_transformers(model: MLLMForConditionalGeneration) -> None:
    """With labels and without: logits of all positions or those to keep, hidden states, attentions, tuples."""
    batch = pack(SAMPLES[:2], length=40, pad_token_id=0)
    out = model(**batch, output_hidden_states=True, attention_mask=None)
    assert out.logits.shape == (*batch["input_ids"].shape, model.config.vocab_size)
    assert len(out.hidden_states) == 3 and out.hidden_states[-1].equal(out.hidden)
    kept, sliced = model(**batch, logits_to_keep=3), model(**batch, max_logits_bytes=2**12)
    torch.testing.assert_close(kept.logits, out.logits[:, -3:])
    assert sliced.logits is None
    loss, logits, *_ = model(**batch, return_dict=False)
    assert loss.equal(out.loss) and logits.equal(out.logits)
    targets, marked = batch.pop("code_targets"), batch.pop("labels")
    image = model.config.image_token_id
    marked[batch["input_ids"] == image] = torch.where(targets, image, IGNORED)
    quarter = 4 * (marked[:, 1:] != IGNORED).sum()
    by_labels = model(**batch, labels=marked), model(**batch, labels=marked, num_items_in_batch=quarter)
    for found in (kept.loss, sliced.loss, by_labels[0].loss, 4 * by_labels[1].loss):
        torch.testing.assert_close(found, out.loss)


# ---- the loss in slices ----


def loss_of(model: MLLMForConditionalGeneration, num_text: int, num_learned: int, **options: Any) -> LossParts:
    generator = torch.Generator().manual_seed(num_text)
    text, image = (torch.randn(n, 24, generator=generator) for n in (num_text, num_learned))
    labels = torch.randint(61, (num_text,), generator=generator)
    codes = torch.randint(CODEBOOK_SIZE, (num_learned, NUM_CODEBOOKS), generator=generator)
    heads = model.lm_head, model.code_head
    return compute_loss(*heads, (text, labels), (image, codes), config=model.config, **options)


def test_slices_give_the_loss_and_gradients_of_one_and_parts_without_items_are_zero(
    model: MLLMForConditionalGeneration,
) -> None:
    weights = (*model.lm_head.parameters(), *model.code_head.parameters())
    for numbers in ((17, 8), (0, 9), (7, 0), (0, 0)):
        whole = loss_of(model, *numbers, num_items=31.0)
        assert (whole.text > 0, whole.image > 0) == (numbers[0] > 0, numbers[1] > 0)
        for max_bytes in (1, 4 * 61 * 3, 4 * NUM_CODEBOOKS * CODEBOOK_SIZE * 4, 10**6):
            sliced = loss_of(model, *numbers, num_items=31.0, num_rows=19, max_bytes=max_bytes)
            for name in LossParts.__slots__:
                torch.testing.assert_close(getattr(sliced, name), getattr(whole, name))
            found = [torch.autograd.grad(parts.total, weights, retain_graph=True) for parts in (sliced, whole)]
            torch.testing.assert_close(*found)


def test_logits_never_take_more_than_allowed_and_heads_run_as_often_on_every_process() -> None:
    model, calls = build_model(), []
    for head in (model.lm_head, model.code_head):
        head.register_forward_hook(lambda module, inputs, logits: calls.append(logits.numel() * LOGIT_BYTES))
    for rows in (2, 4, 13):
        max_bytes, numbers = rows * NUM_CODEBOOKS * CODEBOOK_SIZE * LOGIT_BYTES, set()
        for num_text, num_learned in ((29, 0), (1, 28), (0, 0), (11, 12)):  # of four processes
            calls.clear()
            loss_of(model, num_text, num_learned, num_rows=29, max_bytes=max_bytes).total.backward()
            assert max(calls) <= max_bytes
            numbers.add(len(calls))
        assert len(numbers) == 1


def test_items_of_a_batch() -> None:
    labels = torch.tensor([[5, 6, -100, -100], [-100, -100, -100, 2]])  # the first 5 has nothing before it
    count = count_items(labels, torch.tensor([True, False, True]), num_codebooks=3, text_weight=0.5)
    assert count.item() == 2 * 0.5 + 2 * 3


# ---- saving, loading, and any decoder of transformers ----


BACKBONES = {
    "llama": LlamaConfig(**BACKBONE),
    "qwen2": Qwen2Config(**BACKBONE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**BACKBONE, head_dim=8),
    "gemma": GemmaConfig(**BACKBONE, head_dim=8),
    "gemma2": Gemma2Config(**BACKBONE, head_dim=8, sliding_window=64, query_pre_attn_scalar=8),
    "gemma3": Gemma3TextConfig(**BACKBONE, head_dim=8, sliding_window=64, query_pre_attn_scalar=8),
}


@pytest.mark.parametrize("text_config", BACKBONES.values(), ids=BACKBONES)
def test_a_backbone_learns_packs_decodes_draws_and_is_saved(text_config: PreTrainedConfig, tmp_path: Path) -> None:
    samples = [learned_sample(seed=seed, plan=["text", "image", "TEXT", "IMAGE"]) for seed in range(3)]
    model, batch, losses = build_model(text_config=text_config), pack(samples, length=70, pad_token_id=0), []
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    for _ in range(8):
        loss = model(**batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]

    model.eval().save_pretrained(tmp_path)
    loaded = MLLMForConditionalGeneration.from_pretrained(tmp_path)
    assert type(loaded.backbone) is type(model.backbone)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    layer = type(next(module for module in model.backbone.modules() if type(module).__name__.endswith("DecoderLayer")))
    assert layer.__name__ in model._no_split_modules

    with torch.no_grad():
        sample = samples[0]
        ids_1T, codes = torch.from_numpy(sample.token_ids_T)[None], torch.from_numpy(sample.codes_PK)
        alone_TV = model(ids_1T, codes=codes, image_lengths=torch.from_numpy(sample.image_lengths_I)).logits[0]
        inputs = {name: batch[name] for name in ("input_ids", "position_ids", "codes", "image_lengths")}
        packed_TV = model(**inputs, use_cache=False).logits[0, : len(sample)]
        torch.testing.assert_close(packed_TV, alone_TV, atol=1e-4, rtol=1e-4)

        text_1T = torch.randint(7, 38, (1, 12), generator=torch.Generator().manual_seed(1))
        cache = DynamicCache(config=model.config.text_config)
        steps = [model(part, past_key_values=cache, use_cache=True).logits for part in text_1T.split([5, 1, 1, 5], 1)]
        torch.testing.assert_close(torch.cat(steps, dim=1), model(text_1T).logits, atol=1e-4, rtol=1e-4)

        request = ask(4, seed=2, image=SamplingConfig(greedy=True))
        drawn_NK = torch.from_numpy(Engine(loaded).generate([request])[0].images[0].codes_KN.T.astype("int64"))
        ids = [*request.prompt.token_ids_T, IDS["begin_image_id"], *[IDS["image_token_id"]] * 9]
        hidden_TD = model(torch.tensor([ids]), codes=drawn_NK, image_lengths=torch.tensor([9])).hidden[0]
        assert torch.equal(model.code_head(hidden_TD[-10:-1], drawn_NK).argmax(dim=-1), drawn_NK), "as without a cache"


@torch.no_grad()
def test_text_logits_are_those_of_the_language_model_with_the_same_weights() -> None:
    """Also where the language model caps them, as Gemma 2 does."""
    for name, text_config in BACKBONES.items():
        language_model = AutoModelForCausalLM.from_config(text_config).eval()
        model = build_model(text_config=text_config)
        model.backbone.load_state_dict(language_model.model.state_dict())
        model.lm_head.weight.copy_(language_model.lm_head.weight * 30)
        language_model.lm_head.weight.copy_(model.lm_head.weight)
        ids_1T = torch.arange(7, 20)[None]
        torch.testing.assert_close(model(ids_1T).logits, language_model(ids_1T).logits, msg=name)
