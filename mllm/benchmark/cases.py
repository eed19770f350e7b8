"""What `mllm benchmark` times: each case is one thing done in several ways, shown equal first.

`CASES` maps the word after `mllm benchmark` to a function that yields its cases. Untrained models have random weights,
so nothing is downloaded: speed does not depend on weight values, except that speculation finds nothing to guess in
them. Sampled codes need care when they are compared: two codes within rounding of each other may both be chosen, and
all later codes then differ; so the reference follows our codes, and each must be its own choice up to that.

Letters: N images, R rows (guided: two of each image), P image positions, K codebooks, C codes, D hidden width.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from mllm.benchmark.measure import THIS, Case, Cost
from mllm.benchmark.upstream_reference import (
    NearestUpsample,
    UpstreamDrawing,
    UpstreamTokenizer,
    choose_code,
    filter_logits,
    upstream_nearest,
)
from mllm.benchmark.work import COLORS, PROMPTS, WORK, Before, Run, load_pipeline, read
from mllm.checkpoint import KEPT
from mllm.config import MLLMConfig
from mllm.conversation import ImagePart, Message, Mode, TextPart
from mllm.engine.loop import Engine
from mllm.engine.request import GenerationRequest
from mllm.files import counted
from mllm.heads import CodeDecoder, Guidance
from mllm.model import MLLMForConditionalGeneration
from mllm.pipeline import Pipeline
from mllm.quantization import Int4Linear, Int8Linear, quantize_linears
from mllm.sampling import SamplingConfig, choose, gumbel, stack_settings
from mllm.sequence import IGNORED, TokenSequence, pack, plain_sequence
from tokenizer.config import UniTokConfig
from tokenizer.layers import FoldedUpsample, Upsample
from tokenizer.number_format import fast_dtype
from tokenizer.quantizer import MultiCodebookQuantizer
from tokenizer.unitok import UniTok

BEGIN_IMAGE_ID = 3  # the released model's
VOCABULARY = 1000  # no text is decoded here
FIRST_TEXT_ID = 7
SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    width: int
    heads: int
    intermediate: int
    layers: int
    head_layers: int = 3
    codebooks: int = 8
    codebook_size: int = 512
    side: int = 8  # image positions along a side
    prompt: int = 16  # tokens
    embedder_width: int | None = None  # None: as the model
    embedder_heads: int | None = None


RELEASED: dict[str, Any] = dict(
    width=4096, heads=32, intermediate=11008, codebook_size=4096, embedder_width=1024, embedder_heads=16
)
SIZES = {
    "XXS": ModelSize(
        width=32, heads=2, intermediate=40, layers=2, head_layers=2, codebooks=3, codebook_size=16, side=3
    ),
    "XS": ModelSize(width=128, heads=4, intermediate=344, layers=4),
    "S": ModelSize(width=256, heads=4, intermediate=688, layers=4),
    "M": ModelSize(width=512, heads=8, intermediate=1376, layers=8, codebook_size=1024),
    "L": ModelSize(width=1024, heads=16, intermediate=2752, layers=8, codebook_size=4096, side=6, prompt=32),
    # the released model's head and code embedding over one layer of its backbone
    "head-7b": ModelSize(layers=1, side=2, **RELEASED),
    "7b": ModelSize(layers=32, side=16, prompt=64, **RELEASED),
    "7b-8-layers": ModelSize(layers=8, side=16, prompt=64, **RELEASED),
    "1b": ModelSize(
        **RELEASED | dict(width=2048, heads=16, intermediate=5504, layers=16, side=16, prompt=64, embedder_heads=8)
    ),
}


def build_random_model(
    size: ModelSize, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> MLLMForConditionalGeneration:
    """A model of this size, the same one every time."""
    text_config = LlamaConfig(
        hidden_size=size.width, intermediate_size=size.intermediate, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, vocab_size=VOCABULARY, max_position_embeddings=4096, rms_norm_eps=1e-5,
    )  # fmt: skip
    config = MLLMConfig(
        text_config=text_config, prompt_style="unitok", head_layers=size.head_layers, image_size=16 * size.side,
        num_codebooks=size.codebooks, codebook_size=size.codebook_size,
        embedder_width=size.embedder_width or size.width, embedder_heads=size.embedder_heads or size.heads,
    )  # fmt: skip
    torch.manual_seed(SEED)
    with device:  # in its dtype at once: the large ones have no room in float32
        return MLLMForConditionalGeneration._from_config(config, dtype=dtype).eval().requires_grad_(False)


def random_prompt(num_tokens: int, *, seed: int) -> TokenSequence:
    ids_T = np.random.default_rng(seed).integers(FIRST_TEXT_ID, VOCABULARY, num_tokens)
    return plain_sequence(ids_T, num_codebooks=1)


def random_sample(size: ModelSize, config: MLLMConfig, *, seed: int) -> TokenSequence:
    """Text without meaning, and an image of random codes, which is learned."""
    num_positions = size.side**2
    image = [config.begin_image_id, *[config.image_token_id] * num_positions, config.end_image_id]
    ids_T = np.concatenate([random_prompt(size.prompt, seed=seed).token_ids_T, image])
    labels_T = np.where(ids_T == config.end_image_id, ids_T, IGNORED)
    codes_PK = np.random.default_rng(seed).integers(0, size.codebook_size, (num_positions, size.codebooks))
    return plain_sequence(ids_T, labels=labels_T, images=[codes_PK], learned=True, num_codebooks=size.codebooks)


def num_parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def weight_bytes(model: MLLMForConditionalGeneration) -> int:
    return num_parameters(model) * model.lm_head.weight.element_size()


def head_cost(model: MLLMForConditionalGeneration, *, rows: int) -> Cost:
    """The head's K steps. Its embeddings of codes are looked up, so they are not streamed."""
    head, num_codebooks = model.code_head, model.config.num_codebooks
    streamed = num_codebooks * num_parameters(head.layers, head.norm, head.linear_head)
    cache = num_codebooks * 2 * model.config.head_layers * model.config.hidden_size * (num_codebooks + 1) / 2
    return cost_of(model, streamed, cache, rows=rows)


def position_cost(model: MLLMForConditionalGeneration, *, rows: int, context: float) -> Cost:
    """Backbone, head and code embedding for one image position, at this many positions in the cache."""
    embedding, head = model.code_embedding, head_cost(model, rows=rows)
    streamed = num_parameters(model.backbone.layers, embedding.projection, embedding.projector)
    rest = backbone_cost(model, streamed, rows=rows, context=context)
    return Cost(*(sum(values) for values in zip(head, rest, strict=True)))


def backbone_cost(model: MLLMForConditionalGeneration, streamed: int, *, rows: int, context: float) -> Cost:
    """Of reading `streamed` parameters, and the backbone's cache of keys and values."""
    text = model.config.text_config
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * context
    return cost_of(model, streamed, cache, rows=rows)


def cost_of(model: MLLMForConditionalGeneration, streamed: int, cache: float, *, rows: int) -> Cost:
    """Of reading `streamed` parameters for all rows together, and `cache` values for each."""
    itemsize = model.lm_head.weight.element_size()
    return Cost(streamed * itemsize, rows * cache * itemsize, 2.0 * rows * streamed)


GATE = "upstream"
UNCONDITIONAL_SEED = 10**6
ROUNDING = 1e-4  # of a logit in float32, guidance included


@dataclass(frozen=True, slots=True)
class Work:
    """The same images for both: requests for our decoding, ids and seeds for upstream's."""

    rows: list[GenerationRequest]
    prompts: list[list[int]]
    unconditional: list[list[int]]
    num_positions: int

    @classmethod
    def build(cls, size: ModelSize, batch: int, settings: SamplingConfig) -> Self:
        prompts = [random_prompt(size.prompt, seed=seed) for seed in (*range(batch), UNCONDITIONAL_SEED)]
        same: dict[str, Any] = {"unconditional": prompts[-1], "mode": "image", "image": settings}
        rows = [GenerationRequest(prompt=prompts[n], seed=n, **same) for n in range(batch)]
        *ids, unconditional = [[*prompt.token_ids_T.tolist(), BEGIN_IMAGE_ID] for prompt in prompts]
        return cls(rows, ids, [unconditional] * batch, size.side**2)

    def upstream(self, drawing: UpstreamDrawing, settings: SamplingConfig, **how: Any) -> np.ndarray:
        """Codes (N, K, P) by upstream's algorithm; `how`: `sees_prefix` and `choose` of its `draw`."""
        more = {"num_positions": self.num_positions, "seeds": [row.seed for row in self.rows], **how}
        return drawing.draw(self.prompts, self.unconditional, settings=settings, **more).cpu().numpy()

    def ours(
        self, model: MLLMForConditionalGeneration, settings: SamplingConfig, *, sees_prefix: bool = False
    ) -> np.ndarray:
        """Codes (N, K, P) by our decoding."""
        model.code_embedding.context = "prefix" if sees_prefix else "current"
        return self.by(Engine(model), settings)

    def by(self, engine: Engine, settings: SamplingConfig) -> np.ndarray:
        """Codes (N, K, P) by an engine that has forgotten what it decoded before."""
        engine.slots.clear()
        results = engine.generate([replace(row, image=settings) for row in self.rows])
        return np.stack([result.images[0].codes_KN for result in results]).astype(np.int64)


def compare_codes(model: MLLMForConditionalGeneration, work: Work, settings: SamplingConfig) -> dict[str, bool]:
    """Whether our codes equal upstream's, for the ways of choosing and of embedding."""
    reference, greedy = UpstreamDrawing(model), replace(settings, greedy=True)
    checks = {}
    for name, sees_prefix in (("greedy codes equal", False), ("greedy codes equal, embedding the prefix", True)):
        ours_NKP = work.ours(model, greedy, sees_prefix=sees_prefix)
        checks[name] = np.array_equal(ours_NKP, work.upstream(reference, greedy, sees_prefix=sees_prefix))
    follower = Follower(torch.from_numpy(work.ours(model, settings)).to(model.device))
    work.upstream(reference, settings, choose=follower.choose)
    return checks | {"sampled codes equal but for rounding": follower.largest_distance <= ROUNDING}


class Follower:
    """Chooses given codes, and keeps how much more another code would have had with the noise."""

    def __init__(self, codes_NKP: Tensor) -> None:
        self.largest_distance = 0.0
        self.codes = iter(codes_NKP.permute(2, 1, 0).flatten(0, 1))  # position by position, codebook by codebook

    def choose(self, logits_NC: Tensor, settings: SamplingConfig, noise_NC: Tensor | None) -> Tensor:
        assert noise_NC is not None, "a sampled code is followed with its noise"
        codes_N1 = next(self.codes)[:, None]
        noisy_NC = filter_logits(logits_NC, settings) + noise_NC
        distance_N1 = noisy_NC.amax(-1, keepdim=True) - noisy_NC.gather(-1, codes_N1)
        self.largest_distance = max(self.largest_distance, float(distance_N1.max()))
        return codes_N1[:, 0]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `mllm benchmark` was asked to time, and where."""

    sizes: Sequence[str] = ("XS", "S")
    batch: Sequence[int] = (1, 4)
    model: str | None = None
    """Folder of the model that draws, edits and answers; None is the bundled one."""
    quantization: Sequence[str] = ()
    requests: int = 64
    """How many arrive over time."""
    compile: bool = False
    """Time also passes that are compiled, or captured as CUDA graphs."""
    alone: int | None = None
    """Draw images of so many positions along a side by this version only; None: those of the size, by all."""
    before: Before | None = None
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(guidance=7.0))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def both(self, name: str, **arguments: Any) -> dict[str, Run]:
        """Work by this version, and by the commit to compare with."""
        variants: dict[str, Run] = {THIS: WORK[name](**arguments)}
        if self.before is not None:
            variants["before"] = self.before.prepare(name, **arguments)
        return variants

    def on_model(self, name: str, ways: Mapping[str, dict[str, Any]], **arguments: Any) -> dict[str, Run]:
        """Work with the trained model by both, and in further ways by this version."""
        arguments |= {"model": self.model, "device": str(self.device)}
        return self.both(name, **arguments) | {way: WORK[name](**arguments, **more) for way, more in ways.items()}


BUNDLED, WITHOUT, COMPILED = "bundled", "no speculation", "compiled"


def draw_cases(settings: Settings) -> Iterator[Case]:
    """Whole images: those of a trained model up to their pixels, those of random weights up to their codes."""
    for size, batch in product(settings.sizes, settings.batch):
        yield draw_trained(settings, batch) if size == BUNDLED else draw_untrained(settings, size, batch)


def draw_trained(settings: Settings, batch: int) -> Case:
    ways: dict[str, Any] = {WITHOUT: {"speculate": False}}
    ways |= {bits: {"options": {"quantization": bits}} for bits in settings.quantization}
    if settings.compile:
        ways[COMPILED] = {"options": {"compile": True}}
    variants = settings.on_model("draw", ways, batch=batch)
    return Case(name=f"draw, {counted(batch, 'image')}", variants=variants, facts={"batch": batch}, gate="before")


def draw_untrained(settings: Settings, name: str, batch: int) -> Case:
    size, sampling, title = SIZES[name], settings.sampling, f"draw {name}, batch {batch}"
    if settings.alone:
        return draw_alone(settings, replace(size, side=settings.alone), batch, name=title)
    model = build_random_model(size, device=settings.device)
    work = Work.build(size, batch, sampling)
    checks = compare_codes(model, work, sampling)
    variants: dict[str, Run] = {}
    if settings.before is not None:
        arguments = {"size": name, "batch": batch, "device": str(settings.device), "guidance": sampling.guidance}
        with tempfile.TemporaryDirectory() as folder:
            arguments["weights"] = str(Path(folder) / "weights.pt")
            torch.save(model.state_dict(), arguments["weights"])
            there = settings.before.result("draw_random", **arguments, dtype="float32", greedy=True)
            variants["before"] = settings.before.prepare("draw_random", **arguments, dtype=settings.dtype_name)
        here_NKP = work.ours(model, replace(sampling, greedy=True))
        checks["greedy codes equal those before"] = there == here_NKP.tolist()
    model = model.to(settings.dtype)
    upstream, with_cache = UpstreamDrawing(model), UpstreamDrawing(model, cached_head=True)
    variants |= {
        GATE: lambda: work.upstream(upstream, sampling),
        "upstream, head cache": lambda: work.upstream(with_cache, sampling),
        "prefix context": lambda: work.ours(model, sampling, sees_prefix=True),
    }
    alone = draw_alone(settings, size, batch, name=title, model=model)
    return replace(alone, variants={**variants, **alone.variants}, checks=checks, gate=GATE)


def draw_alone(
    settings: Settings,
    size: ModelSize,
    batch: int,
    *,
    name: str,
    images: int = 1,
    model: MLLMForConditionalGeneration | None = None,
    window: int | None = None,
) -> Case:
    """Images one after another, or `batch` at once, by this version and in fewer bits. `window`: as in requests."""
    sampling = settings.sampling
    model = model or build_random_model(size, device=settings.device, dtype=settings.dtype)
    plain = Work.build(size, batch, sampling)
    work = replace(plain, rows=[replace(row, window=window) for row in plain.rows])
    models = {THIS: model, **{bits: quantized(model, bits) for bits in settings.quantization}}
    variants = {key: repeated(partial(work.ours, each, sampling), images) for key, each in models.items()}
    if settings.compile:  # without guesses, as the roofline: of random codes none stand
        one_by_one = replace(plain, rows=[replace(row, window=1) for row in plain.rows])
        variants[WITHOUT] = repeated(partial(one_by_one.ours, model, sampling), images)
        own = copy.deepcopy(model)  # compiled for one context
        own.code_embedding.context = "current"
        compiled = partial(one_by_one.by, Engine(own, compile=True), sampling)
        variants[f"{COMPILED}, {WITHOUT}"] = repeated(compiled, images)
    rows = batch * (2 if sampling.guidance > 1 else 1)
    cost = position_cost(model, rows=rows, context=size.prompt + work.num_positions / 2)
    facts: dict[str, Any] = {"batch": batch, "rows": rows, "positions": work.num_positions, "prompt": size.prompt}
    facts |= {"guidance": sampling.guidance, "dtype": settings.dtype_name, "weight_bytes": weight_bytes(model)}
    return Case(name=name, variants=variants, facts=facts, cost=cost.times(images * work.num_positions))


def quantized(model: MLLMForConditionalGeneration, bits: str) -> MLLMForConditionalGeneration:
    model = copy.deepcopy(model)
    quantize_linears(model, bits, device=model.device, kept=KEPT)
    return model


def edit_cases(settings: Settings) -> Iterator[Case]:
    """One object of an image that the model drew itself; and of that the codes alone, guessed from the image before."""
    with drawn_images(settings) as images:
        for name, work in (("edit one object", "edit"), ("codes of the edited image", "edit_codes")):
            variants = settings.on_model(work, {WITHOUT: {"speculate": False}}, images=images)
            yield Case(name=name, variants=variants, gate="before")


def ask_cases(settings: Settings) -> Iterator[Case]:
    """Questions about one image, and text next to transformers' own `generate`."""
    with drawn_images(settings) as images:
        variants = settings.on_model("ask", {}, images=images, questions=1)
        two = settings.on_model("ask", {}, images=images, questions=2)
        variants |= {f"{name}, two questions": variant for name, variant in two.items()}
        yield Case(name="ask about one image", variants=variants, gate="before")
    for size, batch in product(settings.sizes, settings.batch):
        if size != BUNDLED:
            yield text_case(settings, size, batch)


ONE_BY_ONE = "one by one"
KINDS = ("draw", "ask", "edit", "chat", "describe")
BETWEEN = 2
"""Turns of the engine between two requests that arrive, as long as it has any to answer."""


def requests_cases(settings: Settings) -> Iterator[Case]:
    """Requests of all kinds, in turns, that arrive over time, beside the same ones each after the other."""
    number = settings.requests
    with drawn_images(settings) as paths:
        images = list(map(read, paths))
        ways = {
            name: partial(way, load_pipeline(settings.model, str(settings.device)), images)
            for name, way in (
                (THIS, answer_arriving),
                (ONE_BY_ONE, answer_in_turn),
                (f"{ONE_BY_ONE}, no speculation", partial(answer_in_turn, speculate=False)),
            )
        }
        num_compared = min(number, 2 * len(KINDS))
        together, *alone = (way(num_compared) for way in ways.values())
        yield Case(
            name=f"{counted(number, 'request')} ({', '.join(KINDS)}), {BETWEEN} turns apart",
            variants={name: partial(way, number) for name, way in ways.items()},
            facts={"requests": number, "turns_between": BETWEEN},
            checks={f"{counted(num_compared, 'answer')} equal": all(each == together for each in alone)},
            gate=ONE_BY_ONE,
            warm_ups=0,  # the comparison was one
        )


def answer_arriving(pipeline: Pipeline, images: Sequence[Image.Image], number: int) -> list[list[Any]]:
    """Each request in a thread of its own."""
    engine, answers = pipeline.engine, []
    with ThreadPoolExecutor(number) as threads:
        for n in range(number):
            next_turn = engine.turn + BETWEEN
            answers.append(threads.submit(answer, pipeline, images, n))
            while engine.turn < next_turn and not all(each.done() for each in answers):
                with engine.turned:
                    engine.turned.wait(timeout=0.1)
    return [each.result() for each in answers]


def answer_in_turn(
    pipeline: Pipeline, images: Sequence[Image.Image], number: int, *, speculate: bool = True
) -> list[list[Any]]:
    return [answer(pipeline, images, n, speculate=speculate) for n in range(number)]


def answer(pipeline: Pipeline, images: Sequence[Image.Image], n: int, *, speculate: bool = True) -> list[Any]:
    """Texts, and images decoded to their bytes."""
    (result,) = pipeline.run([mixed_request(pipeline, images, n, speculate=speculate)])
    return [part if isinstance(part, str) else part.tobytes() for part in pipeline.processor.to_parts(result)]


def mixed_request(pipeline: Pipeline, images: Sequence[Image.Image], n: int, *, speculate: bool) -> GenerationRequest:
    """Request n; an image that it shows is described."""
    turn, kind = divmod(n, len(KINDS))
    color = COLORS[turn % len(COLORS)]
    words: dict[str, tuple[str, Mode, str]] = {
        "ask": ("ask", "text", f"Is the circle {color}?"),
        "edit": ("edit", "image", f"Make the circle {color}."),
        "describe": ("ask", "text", "Describe the image."),
        "draw": ("draw", "image", PROMPTS[turn % len(PROMPTS)]),
        "chat": ("chat", "interleaved", f"Draw {PROMPTS[turn % len(PROMPTS)]}."),
    }
    task, mode, text = words[KINDS[kind]]
    shown = [] if task in ("draw", "chat") else [ImagePart(images[turn % len(images)])]
    (dialogue,) = pipeline.describe([[Message("user", (*shown, TextPart(text)))]])
    return pipeline.build_request(dialogue, mode, task=task, overrides={"seed": n, "speculate": speculate})


@contextmanager
def drawn_images(settings: Settings) -> Iterator[list[str]]:
    """Files with images of two objects, by the model itself; more than there are rounds, usually."""
    with tempfile.TemporaryDirectory() as folder:
        draw, paths = WORK["draw"](model=settings.model, device=str(settings.device), batch=1), []
        for number in range(NUM_IMAGES):
            paths.append(str(Path(folder) / f"{number}.png"))
            draw()[0].save(paths[-1])
        yield paths


NUM_IMAGES = 8
TEXT_TOKENS = 64


def text_case(settings: Settings, name: str, batch: int) -> Case:
    """Greedy text after equal prompts, by transformers with a dynamic and a static cache."""
    size = SIZES[name]
    model = build_random_model(size, device=settings.device, dtype=settings.dtype)
    model.lm_head.weight[model.config.eos_token_id] = 0  # never the largest: all texts have the same length
    prompts = [random_prompt(size.prompt, seed=n) for n in range(batch)]
    greedy = SamplingConfig(greedy=True)
    requests = [
        GenerationRequest(prompt=prompt, mode="text", text=greedy, max_new_tokens=TEXT_TOKENS) for prompt in prompts
    ]
    with torch.device("meta"):
        llama = LlamaForCausalLM(model.config.text_config)
    llama.model, llama.lm_head = model.backbone, model.lm_head
    llama.generation_config.eos_token_id = None
    ids_BT = torch.tensor(np.stack([prompt.token_ids_T for prompt in prompts]), device=settings.device)

    def ours() -> list[list[int]]:
        return [result.text_ids for result in Engine(model).generate(requests)]

    def theirs(cache: str) -> list[list[int]]:
        options = {"max_new_tokens": TEXT_TOKENS, "do_sample": False, "cache_implementation": cache}
        options |= {"suppress_tokens": list(range(FIRST_TEXT_ID)), "pad_token_id": 0}  # text has no special tokens
        found_BT = llama.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **options)
        return found_BT[:, ids_BT.shape[1] :].tolist()

    transformers = {f"transformers, {cache}": partial(theirs, cache) for cache in ("dynamic", "static")}
    mine = ours()
    streamed = num_parameters(model.backbone.layers, model.lm_head)
    cost = backbone_cost(model, streamed, rows=batch, context=size.prompt + TEXT_TOKENS / 2)
    return Case(
        name=f"text {name}, batch {batch}",
        variants={THIS: ours} | transformers,
        facts={"batch": batch, "tokens": TEXT_TOKENS, "prompt": size.prompt, "weight_bytes": cost.weight_bytes},
        checks={f"tokens equal those of {name}": generate() == mine for name, generate in transformers.items()},
        cost=cost.times(TEXT_TOKENS),
    )


RELEASED_CODES = 4096
FILTERED = SamplingConfig(temperature=0.9, top_k=2048, top_p=0.96)  # upstream's argument defaults
UNFILTERED = SamplingConfig()  # what its published scripts pass
REPEATS = 8
"""Positions or choices per round: one alone is too short to be timed."""


def head_cases(settings: Settings) -> Iterator[Case]:
    """The K codes of image positions, and single choices."""
    for name, batch in product(settings.sizes, settings.batch):
        yield head_case(settings, name, batch)
    for name, chosen in (("unfiltered", UNFILTERED), ("top-k and top-p", FILTERED)):
        yield choice_case(name, chosen, num_rows=8, device=settings.device)


def head_case(settings: Settings, name: str, batch: int) -> Case:
    """Greedy codes, so that only the head is timed."""
    model, is_guided = build_random_model(SIZES[name], device=settings.device), settings.sampling.guidance > 1
    num_rows, greedy = batch * (2 if is_guided else 1), replace(settings.sampling, greedy=True)
    generator = torch.Generator().manual_seed(1)
    hidden_RD = torch.randn(num_rows, model.config.hidden_size, generator=generator).to(settings.device)
    rows_N = torch.arange(batch, device=settings.device)
    scale_N = torch.full((batch,), greedy.guidance, device=settings.device)
    guidance = Guidance(conditional_N=rows_N, unconditional_N=rows_N + batch, scale_N=scale_N) if is_guided else None

    @torch.inference_mode()
    def decode(decoder: CodeDecoder, hidden_RD: Tensor) -> Tensor:
        return decoder.decode(hidden_RD, choose=lambda k, logits_NC: logits_NC.argmax(-1), guidance=guidance)

    @torch.inference_mode()
    def upstream(drawing: UpstreamDrawing, hidden_RD: Tensor) -> Tensor:
        return drawing.choose_codes(hidden_RD[:, None], batch, greedy, None, choose_code)

    equal = torch.equal(decode(model.code_head.decoder(), hidden_RD), upstream(UpstreamDrawing(model), hidden_RD))
    model, hidden_RD = model.to(settings.dtype), hidden_RD.to(settings.dtype)
    once: dict[str, Run] = {
        GATE: partial(upstream, UpstreamDrawing(model), hidden_RD),
        "upstream, head cache": partial(upstream, UpstreamDrawing(model, cached_head=True), hidden_RD),
        THIS: partial(decode, model.code_head.decoder(), hidden_RD),
    }
    for bits in settings.quantization:
        once[bits] = partial(decode, quantized(model, bits).code_head.decoder(), hidden_RD)
    cost = head_cost(model, rows=num_rows)
    facts = {"rows": num_rows, "dtype": settings.dtype_name, "weight_bytes": cost.weight_bytes / SIZES[name].codebooks}
    return Case(
        name=f"head {name}, {counted(batch, 'image')}",
        variants={name: repeated(run) for name, run in once.items()},
        facts={"batch": batch, "positions": REPEATS, **facts},
        checks={"greedy codes equal": equal},
        cost=cost.times(REPEATS),
    )


def repeated(run: Run, count: int = REPEATS) -> Run:
    return lambda: [run() for _ in range(count)]


def choice_case(name: str, sampling: SamplingConfig, *, num_rows: int, device: torch.device) -> Case:
    generator = torch.Generator().manual_seed(2)
    logits_NC = (3 * torch.randn(num_rows, RELEASED_CODES, generator=generator)).to(device)
    rows_N = torch.arange(num_rows, device=device)
    noise = partial(gumbel, rows_N, rows_N, 0, num_choices=RELEASED_CODES)
    stacked = stack_settings([sampling] * num_rows, num_choices=RELEASED_CODES, device=device)
    once: dict[str, Run] = {
        GATE: lambda: choose_code(logits_NC, sampling, None),
        THIS: lambda: choose(logits_NC, stacked, noise()),
    }
    return Case(
        name=f"choice {name}, {counted(num_rows, 'row')}",
        variants={way: repeated(run) for way, run in once.items()},
        facts={"rows": num_rows, "codes": RELEASED_CODES, "top_k": sampling.top_k, "top_p": sampling.top_p},
        checks={"codes equal": torch.equal(once[THIS](), choose_code(logits_NC, sampling, noise()))},
    )


TOKENIZER_CONFIGS = {"tiny": UniTokConfig.tiny, "large": UniTokConfig.large}
LEAST_EQUAL_CODES = 0.995  # near-ties may flip
LARGEST_PIXEL_ERROR = 1e-4
UPSAMPLED = {"tiny": (64, 32), "large": (640, 64)}  # channels and side of the widest upsampling of each network


def build_random_tokenizer(name: str, *, device: torch.device) -> UniTok:
    torch.manual_seed(SEED)
    with device:
        return UniTok(TOKENIZER_CONFIGS[name]()).eval().requires_grad_(False)


def tokenizer_cases(settings: Settings) -> Iterator[Case]:
    """Images to codes and back, and the two layers that were rewritten."""
    for name in settings.sizes:
        for batch in settings.batch:
            yield from coding_cases(settings, name, batch)
        yield upsampling_case(*UPSAMPLED[name], device=settings.device)
    yield from (lookup_case(batch, device=settings.device) for batch in settings.batch)


def coding_cases(settings: Settings, name: str, batch: int) -> Iterator[Case]:
    """Encode and decode a batch of images of the network's own size; bfloat16 where the machine has it."""
    ours = build_random_tokenizer(name, device=settings.device).for_inference()
    upstream, side = UpstreamTokenizer(ours), ours.config.image_size
    is_fast, half = fast_dtype(settings.device) != torch.float32, None
    if is_fast or name == "tiny":  # where bfloat16 is emulated, the large network takes minutes
        half = copy.deepcopy(ours)
        half.encoder.bfloat16()
        half.decoder.bfloat16()
        half.for_inference()
    generator = torch.Generator().manual_seed(1)
    pixels_B3HW = (torch.rand(batch, 3, side, side, generator=generator) * 2 - 1).to(settings.device)
    codes_BKN, grid = ours.encode(pixels_B3HW), ours.grid_of(pixels_B3HW)
    ways: dict[str, tuple[Callable[..., float], Callable[[Any], Tensor]]] = {
        "encode": (share_equal, lambda unitok: unitok.encode(pixels_B3HW)),
        "decode": (largest_error, lambda unitok: unitok.decode(codes_BKN, grid=grid)),
    }
    for way, (compare, call) in ways.items():
        variants: dict[str, Run] = {GATE: partial(call, upstream), THIS: partial(call, ours)}
        if settings.before is not None:
            where = {"size": name, "batch": batch, "device": str(settings.device)}
            variants["before"] = settings.before.prepare("tokenizer", way=way, **where)
        if half is not None and is_fast:
            variants["bfloat16"] = partial(call, half)
        found = compare(call(ours), call(upstream))
        rounded = None if half is None else compare(call(ours), call(half))
        facts = {compare.__name__: found, f"{compare.__name__} bfloat16": rounded}
        checks = {"codes equal but for near-ties": found >= LEAST_EQUAL_CODES}
        yield Case(
            name=f"{way} {name}, {counted(batch, 'image')}",
            variants=variants,
            facts={"batch": batch, "image_size": side, **facts},
            checks=checks if way == "encode" else {"pixels equal": found <= LARGEST_PIXEL_ERROR},
            gate=GATE,
            warm_ups=1,
        )


def largest_error(pixels: Tensor, others: Tensor) -> float:
    return float((pixels - others).abs().max())


def share_equal(codes: Tensor, others: Tensor) -> float:
    return float((codes == others).float().mean())


def lookup_case(batch: int, *, device: torch.device) -> Case:
    """The nearest entries for `batch` images, in codebooks of the released size."""
    config = UniTokConfig.large()
    torch.manual_seed(SEED)
    quantizer = MultiCodebookQuantizer(config.num_codebooks, config.codebook_size, config.code_width)
    nn.init.normal_(quantizer.codebooks)
    quantizer = quantizer.requires_grad_(False).to(device)
    features_BNZ = torch.randn(batch, config.positions_per_image, config.vector_width).to(device)
    ways = {
        GATE: lambda: upstream_nearest(quantizer, features_BNZ),
        THIS: lambda: quantizer.quantize(features_BNZ),
    }
    return Case(
        name=f"look up {config.num_codebooks} x {config.codebook_size}, {counted(batch, 'image')}",
        variants=ways,
        facts={"batch": batch, "codebooks": config.num_codebooks, "codebook_size": config.codebook_size},
        checks={"codes equal": torch.equal(ways[GATE](), ways[THIS]())},
    )


@torch.inference_mode()
def upsampling_case(channels: int, side: int, *, device: torch.device) -> Case:
    """Twice the resolution, then a convolution."""
    torch.manual_seed(SEED)
    layer = Upsample(channels, channels).requires_grad_(False).to(device)
    ours, plain = FoldedUpsample(layer), NearestUpsample(layer.conv)
    hidden_BCHW = torch.randn(1, channels, side, side).to(device, memory_format=torch.channels_last)
    error = float((ours(hidden_BCHW) - plain(hidden_BCHW)).abs().max())
    return Case(
        name=f"upsample {channels} channels, {side} to {2 * side}",
        variants={GATE: lambda: plain(hidden_BCHW), THIS: lambda: ours(hidden_BCHW)},
        facts={"channels": channels, "side": side, "largest_error": error},
        checks={"values equal": error <= LARGEST_PIXEL_ERROR},
    )


PROMPT = 356
"""Positions of a prompt that is prefilled: of an image and a question."""
SAMPLES = 24
"""Text-to-image samples of a training step."""


def product_cases(settings: Settings) -> Iterator[Case]:
    for name in settings.sizes:
        size = SIZES[name]
        options: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype}
        linear = nn.Linear(size.width, size.intermediate, bias=False, **options).requires_grad_(False)
        device = settings.device
        layers = {THIS: linear, "int8": Int8Linear(linear, device), "int4": Int4Linear(linear, device)}
        for rows in settings.batch:
            hidden_RD = torch.randn(rows, size.width, **options)
            variants = {bits: repeated(partial(layer, hidden_RD)) for bits, layer in layers.items()}
            facts = {"rows": rows, "products": REPEATS, "dtype": settings.dtype_name}
            yield Case(name=f"product {name}, {counted(rows, 'row')}", variants=variants, facts=facts)


def prefill_cases(settings: Settings) -> Iterator[Case]:
    for name in settings.sizes:
        model = build_random_model(SIZES[name], device=settings.device, dtype=settings.dtype)
        for batch in settings.batch:
            shape = (batch, PROMPT, model.config.hidden_size)
            prompts_BTD = torch.randn(shape, device=settings.device, dtype=settings.dtype)
            run = torch.inference_mode()(partial(model.backbone, inputs_embeds=prompts_BTD))
            yield Case(
                name=f"prefill {name}, {counted(batch, 'prompt')}", variants={THIS: run}, facts={"places": PROMPT}
            )


def step_cases(settings: Settings) -> Iterator[Case]:
    """Steps of AdamW on packed text-to-image samples; the share of the roofline is the model FLOPs utilization."""
    for name in settings.sizes:
        size = SIZES[name]
        model = build_random_model(size, device=settings.device, dtype=settings.dtype).train().requires_grad_(True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        samples = [random_sample(size, model.config, seed=n) for n in range(SAMPLES)]
        length = sum(map(len, samples))
        packed = pack(samples, length=length, pad_token_id=0)
        batch = {key: value.to(settings.device) for key, value in packed.items()}

        def step(model: nn.Module = model, batch: dict = batch, optimizer: Any = optimizer) -> None:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        yield Case(
            name=f"step {name}, {length} places",
            variants={THIS: step},
            facts={"samples": SAMPLES, "weight_bytes": weight_bytes(model)},
            cost=Cost(0, 0, training_flops(model, samples)),
            warm_ups=1,
        )


def training_flops(model: MLLMForConditionalGeneration, samples: list[TokenSequence]) -> float:
    """Operations of a forward and a backward pass: 6 per weight and position where it is used, and attention."""
    config, embedding = model.config, model.code_embedding
    positions, codes = sum(map(len, samples)), sum(len(sample.codes_PK) for sample in samples)
    labelled = sum(int((sample.labels_T >= 0).sum()) for sample in samples)
    head = num_parameters(model.code_head.layers, model.code_head.linear_head) * config.num_codebooks
    used = num_parameters(model.backbone.layers) * positions + head * codes + num_parameters(model.lm_head) * labelled
    used += num_parameters(embedding.projection, embedding.projector) * codes
    squares = sum(len(sample) ** 2 for sample in samples)
    return 6.0 * used + 6.0 * config.text_config.num_hidden_layers * config.hidden_size * squares


def load_cases(settings: Settings) -> Iterator[Case]:
    yield Case(name="load", variants=settings.on_model("load", {}), gate="before")


def start_cases(settings: Settings) -> Iterator[Case]:
    """Python as processes of their own, processor time of all their threads."""
    with tempfile.TemporaryDirectory() as folder:
        draw = ["-m", "mllm", "draw", "a red circle", "--seed", "1", "-o", str(Path(folder) / "circle.png")]
        imports = {"import of transformers": WORK["start"](words=["-c", "from transformers import LlamaModel"])}
        for name, words, others in (
            ("mllm demo --help", ["-m", "mllm", "demo", "--help"], {}),
            ("mllm draw", draw, imports),
        ):
            yield Case(name=name, variants=settings.both("start", words=words) | others, gate="before", warm_ups=1)


TIMED = (draw_cases, edit_cases, ask_cases, requests_cases, head_cases, tokenizer_cases, product_cases, prefill_cases)
CASES: dict[str, Callable[[Settings], Iterator[Case]]] = {
    function.__name__.removesuffix("_cases"): function for function in (*TIMED, step_cases, load_cases, start_cases)
}
