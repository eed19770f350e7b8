"""One pass over what is decoded, as a function of tensors: embed, backbone, guidance, heads, choice.

In: tensors of shapes that the host knows (`StepInputs`). Out: what was chosen. Nothing inside depends on a value of a
tensor or waits for the device, so that the step can be compiled whole or captured as a CUDA graph (`StaticStep`), once
for all inputs of the same sizes. Knows no requests; what the inputs mean is in mllm/engine/loop.py.

Letters: R rows of a pass, W new positions of a row, P positions of a pass, D hidden width, K codebooks, C codes per
codebook, X image positions to be sampled, H rows of the code head, Y text tokens to be sampled, V text vocabulary, S
tokens that are forbidden at times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mllm.engine.forward import Bucket, CachedForward, DrawnPositions, Placement
from mllm.engine.state_machine import never_text_ids
from mllm.heads import CodeDecoder, Guidance
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import TEXT, RowSettings, choose, gumbel
from mllm.sequence import ImageLayout

COUNTS = (1, 4, 16, 40, 80)
"""Of new positions of a row, and of choices, in a static step; larger ones are powers of two."""
LEAST_ATTENDED = 128
MOST_PREPARED = 64  # sizes that are kept ready; of more, those used last


class Noise(NamedTuple):
    """What the noise of choices is a function of, besides codebook and choice."""

    seed_N1: Tensor
    position_N1: Tensor


class CodeTargets(NamedTuple):
    """Image positions whose codes are sampled."""

    pass_index_H: Tensor  # of their hidden states, then those of the unconditional rows
    guidance: Guidance | None
    settings: RowSettings  # of all codes
    noise: Noise | None  # None: all are greedy


class TextTargets(NamedTuple):
    """Text tokens that are sampled."""

    pass_index_Y: Tensor  # of their hidden states
    settings: RowSettings
    noise: Noise | None  # None: all are greedy
    is_forbidden_YS: Tensor  # of `Step.forbidden_ids_S`
    must_open_Y: Tensor  # whether only what an image begins with may come
    asks_wanted: bool  # whether to tell also what would be chosen if none of these rules held


class Fed(NamedTuple):
    """What a pass feeds."""

    tokens_P: Tensor
    drawn: DrawnPositions | None  # image positions; None: there are none
    given: tuple[Tensor, Tensor] | None  # indices in the pass where embeddings are known, and these


class StepInputs(NamedTuple):
    """A pass: what it feeds, where that goes, and what is sampled from it."""

    fed: Fed
    placement: Placement
    codes: CodeTargets | None
    text: TextTargets | None


class StepOutputs(NamedTuple):
    hidden_PD: Tensor
    codes_XK: Tensor | None
    tokens_Y: Tensor | None
    wanted_Y: Tensor | None  # without the rules of their positions


class Step:
    """The step, computed operation by operation."""

    def __init__(self, model: MLLMForConditionalGeneration, forward: CachedForward) -> None:
        self.model, self.forward, self.device = model, forward, model.device
        config, layout = model.config, ImageLayout.from_config(model.config)
        self.num_codebooks, self.codebook_size = config.num_codebooks, config.codebook_size
        self.never_text_ids = torch.tensor(never_text_ids(layout, config), device=model.device)
        ids = (layout.begin_image_id, layout.begin_plan_id, config.eos_token_id)
        self.forbidden_ids = [id_ for id_ in ids if id_ is not None]
        self.forbidden_ids_S = torch.tensor(self.forbidden_ids, device=model.device)
        self.cannot_open_V = torch.ones(config.vocab_size, dtype=torch.bool, device=model.device)
        self.cannot_open_V[sorted(layout.opening_ids)] = False

    @cached_property
    def code_decoder(self) -> CodeDecoder:
        """The code head, made ready when the first image position is sampled."""
        return self.model.code_head.decoder()

    def __call__(self, inputs: StepInputs) -> StepOutputs:
        tokens_P, drawn, given = inputs.fed
        embedded_PD = self.forward.embed(tokens_P, drawn)
        if given is not None:
            embedded_PD = embedded_PD.index_copy(0, *given)
        hidden_PD = self.forward(embedded_PD, inputs.placement)
        codes_XK = None if inputs.codes is None else self.choose_codes(hidden_PD, inputs.codes)
        tokens_Y = wanted_Y = None
        if inputs.text is not None:
            logits_YV = self.model.text_logits(hidden_PD.index_select(0, inputs.text.pass_index_Y))
            tokens_Y, wanted_Y = self.choose_tokens(logits_YV, inputs.text)
        return StepOutputs(hidden_PD, codes_XK, tokens_Y, wanted_Y)

    def choose_codes(self, hidden_PD: Tensor, targets: CodeTargets) -> Tensor:
        """The K codes of image positions, (X, K)."""
        num_codebooks, settings, noise_XKC = self.num_codebooks, targets.settings, None
        if targets.noise is not None:
            codebooks_K = torch.arange(num_codebooks, device=self.device)
            noise_XKC = gumbel(*targets.noise, codebooks_K, num_choices=self.codebook_size)

        def choose_code(k: int | None, logits: Tensor) -> Tensor:
            if k is not None:
                of_k = settings.take(slice(k, None, num_codebooks))
                return choose(logits, of_k, None if noise_XKC is None else noise_XKC[:, k])
            noise_NC = None if noise_XKC is None else noise_XKC.flatten(0, 1)
            return choose(logits.flatten(0, 1), settings, noise_NC).view(logits.shape[:2])

        hidden_HD = hidden_PD.index_select(0, targets.pass_index_H)
        return self.code_decoder.decode(hidden_HD, choose=choose_code, guidance=targets.guidance)

    def choose_tokens(self, logits_YV: Tensor, targets: TextTargets) -> tuple[Tensor, Tensor | None]:
        """Tokens (Y,) of those that may come, and if asked for those that would come without rules."""
        logits_YV = logits_YV.float().index_fill(1, self.never_text_ids, -torch.inf)
        noise_YV = None
        if targets.noise is not None:
            noise_YV = gumbel(*targets.noise, TEXT, num_choices=logits_YV.shape[-1])[:, 0]
        wanted_Y = choose(logits_YV, targets.settings, noise_YV) if targets.asks_wanted else None
        at_times_YS = logits_YV.index_select(1, self.forbidden_ids_S).masked_fill(targets.is_forbidden_YS, -torch.inf)
        logits_YV = logits_YV.index_copy(1, self.forbidden_ids_S, at_times_YS)
        logits_YV = logits_YV.masked_fill(targets.must_open_Y[:, None] & self.cannot_open_V, -torch.inf)
        return choose(logits_YV, targets.settings, noise_YV), wanted_Y


Run = Callable[[StepInputs], StepOutputs]


class StaticStep:
    """The step for inputs of few sizes, which take time when they are seen first: on a CPU it is compiled whole for
    each, on a GPU captured as a CUDA graph."""

    def __init__(self, step: Step) -> None:
        if any(hasattr(module, "_hf_hook") for module in step.model.backbone.modules()):
            raise ValueError(
                "compile must be for a model on one device, got layers on several; load without device_map"
            )
        self.step, self.num_growths = step, 0
        self.prepared: dict[tuple[Any, ...], Run] = {}
        self.pool: Any = None  # memory that all graphs share

    def bucket(self, lengths: Sequence[int], counts: Sequence[int]) -> Bucket:
        """The sizes of a pass over these rows."""
        forward = self.step.forward
        longest = max(length + count for length, count in zip(lengths, counts, strict=True))
        return Bucket(
            min(power_of_two(len(counts)), forward.num_slots),
            round_up(max(counts)),
            min(power_of_two(longest, least=LEAST_ATTENDED), forward.capacity),
        )

    def __call__(self, inputs: StepInputs) -> StepOutputs:
        forward = self.step.forward
        if not forward.layers:  # the first pass makes them
            return self.step(inputs)
        if forward.num_growths != self.num_growths:  # all buffers are new
            self.prepared, self.pool, self.num_growths = {}, None, forward.num_growths
        leaves, structure = pytree.tree_flatten(inputs)
        key = structure, *(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        if (run := self.prepared.pop(key, None)) is None:
            if inputs.codes is not None:
                _ = self.step.code_decoder  # made before it is traced
            run = self.capture(inputs) if self.step.device.type == "cuda" else self.compile()
        self.prepared[key] = run  # in the order of their last uses
        if len(self.prepared) > MOST_PREPARED:
            del self.prepared[next(iter(self.prepared))]
        return run(inputs)

    def compile(self) -> Run:
        step = self.step

        def run(inputs: StepInputs) -> StepOutputs:
            return step(inputs)

        # torch keeps what it compiles by code object, few versions of each, so every size has a copy of its own
        own = FunctionType(run.__code__.replace(), run.__globals__, closure=run.__closure__)
        return torch.compile(own, fullgraph=True, dynamic=False)

    def capture(self, inputs: StepInputs) -> Run:
        """A CUDA graph of the step for inputs of these sizes; its outputs stand until the next graph is replayed."""
        own: StepInputs = pytree.tree_map_only(Tensor, torch.clone, inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # kernels are loaded before they can be captured
            self.step(own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            outputs = self.step(own)
        self.pool = graph.pool()

        def replay(inputs: StepInputs) -> StepOutputs:
            for leaf, new in zip(pytree.tree_leaves(own), pytree.tree_leaves(inputs), strict=True):
                if isinstance(leaf, Tensor):
                    leaf.copy_(new)
            graph.replay()
            return outputs

        return replay


def power_of_two(number: int, *, least: int = 1) -> int:
    """The smallest power of two that is not less."""
    return max(least, 1 << (number - 1).bit_length())


def round_up(number: int) -> int:
    """The next of `COUNTS`, or beyond them power of two."""
    return next((count for count in COUNTS if number <= count), power_of_two(number))
