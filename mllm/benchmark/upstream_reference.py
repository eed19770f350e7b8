"""The upstream system, step by step and without any of our shortcuts: what benchmarks compare with, and tests equal.

In: our model or image tokenizer, whose weights are shared, and prompts, pixels or codes. Out: codes and pixels. The
language model and the depth head are transformers' own Llama, and codes are embedded by our layer as in training; the
rest is written out as the upstream scripts do it: a dynamic cache for the backbone, both prompts of a guided image in
one left-padded batch, a head that runs over its growing prefix and computes the logits of all of it, guidance on
logits, sorting for top-p, images decoded one by one with a doubled image in front of each upsampling convolution.
Nothing here is fast or slow on purpose, and nothing of the toolkit's own decoding is used.

Letters: N images, R rows (N, then N unconditional ones if guided), T prompt positions, P image positions, K codebooks,
C codes per codebook, E width of an entry, D width of the language model, S positions of the depth sequence so far.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import SamplingConfig, gumbel
from tokenizer.layers import Upsample
from tokenizer.quantizer import MultiCodebookQuantizer
from tokenizer.unitok import UniTok

LEAST_TEMPERATURE = 1e-5  # upstream divides by at least this

Choose = Callable[[Tensor, SamplingConfig, Tensor | None], Tensor]
"""(logits_NC, settings, noise_NC) to codes_N."""


class UpstreamDrawing:
    """Text to image codes as the upstream scripts do it.

    Args:
        model: of the released architecture, in any size: a Llama, projected codes, a depth transformer.
        cached_head: keep keys and values of the depth head in transformers' DynamicCache; upstream does not.
    """

    def __init__(self, model: MLLMForConditionalGeneration, *, cached_head: bool = False) -> None:
        config, head = model.config, model.code_head
        self.config, self.cached_head = config, cached_head
        self.llm, self.embedding = model.backbone, model.code_embedding
        self.head, self.linear_head = head_as_llama(model), head.linear_head
        self.codebooks = head.codebooks.weight.unflatten(0, (-1, config.codebook_size))  # of all codebooks but the last

    @torch.inference_mode()
    def draw(
        self,
        prompts: list[list[int]],
        unconditional: list[list[int]],
        *,
        num_positions: int,
        settings: SamplingConfig,
        seeds: list[int] | None = None,
        sees_prefix: bool = False,
        choose: Choose | None = None,
    ) -> Tensor:
        """Codes (N, K, P) of one image for every prompt. Prompts end with begin-of-image.

        Args:
            unconditional: one for every prompt; used with guidance above 1.
            seeds: of the images, whose Gumbel noise chooses in place of upstream's `torch.multinomial`.
            sees_prefix: embed each new position with those before it, as in training; the upstream scripts embed it
                alone.
            choose: picks each code in place of `choose_code`; asked position by position, codebook by codebook.
        """
        num_images = len(prompts)
        rows = [*prompts, *unconditional] if settings.guidance > 1 else prompts
        rows_T = [torch.tensor(row, device=self.codebooks.device) for row in rows]
        pad_left = partial(pad_sequence, batch_first=True, padding_side="left")
        ids_RT = pad_left(rows_T, padding_value=self.config.pad_token_id)
        mask_RT = pad_left(list(map(torch.ones_like, rows_T)))
        cache = DynamicCache()
        embeddings_RTD = self.llm.embed_tokens(ids_RT)
        positions_RT = (mask_RT.cumsum(-1) - 1).masked_fill(mask_RT == 0, 1)
        codes: list[Tensor] = []
        for p in range(num_positions):
            hidden_RTD = self.llm(
                inputs_embeds=embeddings_RTD,
                attention_mask=mask_RT,
                position_ids=positions_RT,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            noise_NKC = None if seeds is None else self.noise(seeds, p)
            codes.append(self.choose_codes(hidden_RTD[:, -1:], num_images, settings, noise_NKC, choose or choose_code))
            codes_NPK = torch.stack(codes if sees_prefix else codes[-1:], dim=1)
            codes_RPK = torch.cat([codes_NPK] * (len(rows) // num_images))
            embeddings_RTD = self.embed_codes(codes_RPK)[:, -1:]
            mask_RT = torch.cat([mask_RT, mask_RT.new_ones(len(rows), 1)], dim=1)
            positions_RT = positions_RT[:, -1:] + 1
        return torch.stack(codes, dim=2)

    def noise(self, seeds: list[int], position: int) -> Tensor:
        """Gumbel noise (N, K, C) of the codes of one position."""
        seeds_N1 = torch.tensor(seeds, device=self.codebooks.device)[:, None]
        codebooks_K = torch.arange(self.config.num_codebooks, device=self.codebooks.device)
        position_N1 = torch.full_like(seeds_N1, position)
        return gumbel(seeds_N1, position_N1, codebooks_K, num_choices=self.config.codebook_size)

    def choose_codes(
        self,
        hidden_R1D: Tensor,
        num_images: int,
        settings: SamplingConfig,
        noise_NKC: Tensor | None,
        choose: Choose,
    ) -> Tensor:
        """The codes (N, K) of one image position, one after another."""
        inputs_RSD, codes, cache = hidden_R1D, [], DynamicCache()
        for k in range(self.config.num_codebooks):
            cached = {"past_key_values": cache, "use_cache": True} if self.cached_head else {"use_cache": False}
            fed_RSD = inputs_RSD[:, -1:] if self.cached_head else inputs_RSD
            output_RSD = self.head(inputs_embeds=fed_RSD, **cached).last_hidden_state
            logits_RC = self.linear_head(output_RSD)[:, -1]
            if settings.guidance > 1:
                conditional_NC, unconditional_NC = logits_RC[:num_images], logits_RC[num_images:]
                logits_RC = unconditional_NC + (conditional_NC - unconditional_NC) * settings.guidance
            codes.append(choose(logits_RC, settings, None if noise_NKC is None else noise_NKC[:, k]))
            if k < self.config.num_codebooks - 1:
                codes_R = torch.cat([codes[-1]] * (len(inputs_RSD) // num_images))
                embedded_R1D = F.embedding(codes_R, self.codebooks[k])[:, None]
                inputs_RSD = torch.cat([inputs_RSD, embedded_R1D], dim=1)
        return torch.stack(codes, dim=1)

    def embed_codes(self, codes_RPK: Tensor) -> Tensor:
        """Vectors (R, P, D) of image positions that follow each other."""
        lengths_R = torch.full((len(codes_RPK),), codes_RPK.shape[1])
        return self.embedding.embed_images(codes_RPK.flatten(0, 1), lengths_R).unflatten(0, codes_RPK.shape[:2])


def head_as_llama(model: MLLMForConditionalGeneration) -> LlamaModel:
    """The depth head as a Llama of transformers: the backbone's sizes, few layers, no vocabulary; its parameters are
    the head's themselves, not copies."""
    config, weights = model.config, model.code_head.state_dict()
    fields = config.text_config.to_dict() | {"num_hidden_layers": config.head_layers, "vocab_size": 1}
    fields |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    fields["intermediate_size"] = config.head_intermediate_size or fields["intermediate_size"]
    if heads := config.head_num_heads:
        fields |= {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": config.hidden_size // heads}
    with torch.device("meta"):
        llama = LlamaModel(LlamaConfig(**fields))
    state = {name: value for name, value in weights.items() if name.startswith(("layers.", "norm."))}
    state["embed_tokens.weight"] = weights["norm.weight"].new_zeros(1, config.hidden_size)
    llama.load_state_dict(state, assign=True)
    llama.rotary_emb = LlamaRotaryEmbedding(llama.config).to(model.device)
    return llama.eval()


def choose_code(logits_NC: Tensor, settings: SamplingConfig, noise_NC: Tensor | None) -> Tensor:
    """Temperature, top-k, top-p and a draw, in the dtype of the logits; one code per row."""
    if settings.greedy:
        return logits_NC.argmax(-1)
    filtered_NC = filter_logits(logits_NC, settings)
    if noise_NC is None:
        return torch.multinomial(filtered_NC.softmax(-1), 1)[:, 0]
    return (filtered_NC + noise_NC).argmax(-1)


def filter_logits(logits_NC: Tensor, settings: SamplingConfig) -> Tensor:
    """Divide by the temperature, keep the top k, of these the top p; what is dropped becomes -inf."""
    logits_NC = logits_NC / max(settings.temperature, LEAST_TEMPERATURE)
    if settings.top_k is not None:
        kth_N1 = logits_NC.topk(min(settings.top_k, logits_NC.shape[-1])).values[:, -1:]
        logits_NC = logits_NC.masked_fill(logits_NC < kth_N1, -torch.inf)
    if settings.top_p < 1:
        sorted_NC, order_NC = logits_NC.sort(descending=True)
        is_dropped_NC = sorted_NC.softmax(-1).cumsum(-1) > settings.top_p
        is_dropped_NC = F.pad(is_dropped_NC[:, :-1], (1, 0), value=False)  # the one that crosses top-p stays
        logits_NC = logits_NC.masked_fill(is_dropped_NC.scatter(1, order_NC, is_dropped_NC), -torch.inf)
    return logits_NC


class UpstreamTokenizer:
    """Images to codes and back as the upstream network does it, sharing the weights of ours."""

    def __init__(self, tokenizer: UniTok) -> None:
        shared = {id(tensor): tensor for tensor in (*tokenizer.parameters(), *tokenizer.buffers())}
        self.network = copy.deepcopy(tokenizer, shared).eval()
        for module in self.network.modules():
            for name, child in module.named_children():
                if isinstance(child, Upsample):
                    setattr(module, name, NearestUpsample(child.conv))

    @torch.inference_mode()
    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Codes (B, K, N)."""
        return upstream_nearest(self.network.quantizer, self.network.features(pixels_B3HW))

    @torch.inference_mode()
    def decode(self, codes_BKN: Tensor, *, grid: tuple[int, int]) -> Tensor:
        """Pixels (B, 3, H, W), one image after another."""
        return torch.cat([self.decode_one(codes_1KN, grid) for codes_1KN in codes_BKN.split(1)])

    def decode_one(self, codes_1KN: Tensor, grid: tuple[int, int]) -> Tensor:
        entries = []
        for codes_1N, codebook_CE in zip(codes_1KN.unbind(1), self.network.quantizer.codebooks, strict=True):
            entries.append(F.embedding(codes_1N, F.normalize(codebook_CE, dim=-1)))
        hidden_1ND = self.network.post_quant_proj(torch.cat(entries, dim=-1))
        return self.network.decoder(hidden_1ND, grid=grid).clamp(-1, 1)


@torch.inference_mode()
def upstream_nearest(quantizer: MultiCodebookQuantizer, features_BNZ: Tensor) -> Tensor:
    """Codebook by codebook: normalise features and entries, compare all with all; (B, K, N)."""
    codes = []
    slices = features_BNZ.chunk(quantizer.codebooks.shape[0], dim=-1)
    for features_BNE, codebook_CE in zip(slices, quantizer.codebooks, strict=True):
        features_ME = F.normalize(features_BNE.flatten(0, 1), dim=-1).float()
        similarity_MC = features_ME @ F.normalize(codebook_CE, dim=-1).float().T
        codes.append(similarity_MC.argmax(-1).view(features_BNE.shape[:2]))
    return torch.stack(codes, dim=1)


class NearestUpsample(nn.Module):
    """Repeat every pixel 2 x 2, then convolve 3 x 3, as written."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(hidden_BCHW, scale_factor=2, mode="nearest"))
