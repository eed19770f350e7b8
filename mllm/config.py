"""Every size, id and choice of the unified model: the transformers config that is saved with a checkpoint.

In: keyword fields, or a config.json, also one of an earlier version or of the released MLLM (a Llama config of type
`mini_gemini`). Out: one validated object that model, sequence builder and decoder read. Knows no tensors, prompts or
files.

Letters: N image positions per image, K codebooks, C codes per codebook, D hidden width.
"""

import os
import re
from pathlib import Path
from typing import Any, ClassVar, Literal, get_origin

from huggingface_hub.dataclasses import type_validator
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

CHOICES = {
    "head_type": ("depth_transformer", "mlp", "none"),
    "prompt_style": ("native", "unitok", "plain", "vicuna_v1", "class"),
    "image_layout": ("fixed", "grid", "bare"),
    "code_embedder": ("projected", "summed"),
    "embedding_context": ("current", "prefix", "bidirectional"),
}
OLD_NAMES = {
    "begin_outline_id": "begin_plan_id",
    "image_places": "image_position_embedding",
    "image_redraws": "image_resamples",
}
"""Fields of configs of earlier versions, which are read and written under their present name."""
OLD_CONTEXTS = {"isolated": "current", "whole": "bidirectional"}
PLANNER_NAME = re.compile(r"mllm(\.[A-Za-z_]\w*)+")
DRAWING_TASKS = ("draw", "draw_class", "edit", "depth", "segment")
"""Tasks whose answer is an image."""

RELEASED_TYPE = "mini_gemini"
ARCHITECTURE = "MiniGeminiLlamaForCausalLM"
OUR_FIELDS = "unified_mllm"
"""Where a file that we wrote keeps the fields of ours that differ from the released model's."""
TEXT_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    *("rope_theta", "rope_scaling", "rope_parameters", "attention_bias", "attention_dropout", "mlp_bias"),
    *("pretraining_tp", "tie_word_embeddings", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id"),
)
"""Fields of the Llama part."""
SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
RELEASED_FIELDS: dict[str, Any] = {
    "prompt_style": "unitok",
    "tasks": ["draw", "ask", "describe", "chat"],
    # defaults of the released text-to-image script; its benchmark scripts use 7, 1, none and 1
    "image_guidance": 5.0,
    "image_temperature": 0.9,
    "image_top_k": 2048,
    "image_top_p": 0.96,
}
TRAINING_FIELDS: dict[str, Any] = {
    "tokenizer_padding_side": "right",
    "tokenizer_model_max_length": 2048,
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "mm_projector_lr": None,
}
"""What the released training script adds to its config; of no effect here."""
NOT_KEPT = {"text_config", "model_type", "architectures", "dtype", "transformers_version", "tie_word_embeddings"}
NOT_KEPT |= {"auto_map"}
"""Fields of ours that the released file says in its own way, or not at all."""

SHIM = "modeling_mllm_toolkit"
SHIM_TEXT = '''"""How transformers loads this folder (trust_remote_code=True) where mllm-toolkit is installed."""

try:
    from mllm.config import MLLMConfig  # noqa: F401
    from mllm.model import MLLMForConditionalGeneration  # noqa: F401
    from mllm.processor import MLLMProcessor  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"mllm-toolkit must be installed to load this model, got: {error}; run: pip install mllm-toolkit"
    ) from error
'''
"""A file of each saved folder: programs that do not import us find our classes by it."""
MODEL_CLASSES = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
AUTO_MAP = {
    "AutoConfig": f"{SHIM}.MLLMConfig",
    **{name: f"{SHIM}.MLLMForConditionalGeneration" for name in MODEL_CLASSES},
    "AutoProcessor": f"{SHIM}.MLLMProcessor",
}


def save_shim(folder: str | os.PathLike) -> None:
    """Write the file that `auto_map` names."""
    (Path(folder) / f"{SHIM}.py").write_text(SHIM_TEXT, encoding="utf-8")


def of_text(name: str, doc: str) -> Any:
    """A field of the text config as one of ours."""
    return property(
        lambda c: getattr(c.text_config, name), lambda c, value: setattr(c.text_config, name, value), doc=doc
    )


class MLLMConfig(PreTrainedConfig):
    """A decoder backbone, the embedding of image codes, and the head that predicts them. The defaults are the released
    7B model: Llama-2-7B, 8 codebooks of 4096, 16 x 16 positions."""

    model_type = "unified_mllm"
    attribute_map = OLD_NAMES
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "hidden", "loss_parts"]

    text_config: Any = None
    """The decoder; any decoder config that transformers knows. None: Llama-2-7B."""
    tie_word_embeddings: bool = False
    """Follows text_config.tie_word_embeddings; set it there."""

    num_codebooks: int = 8
    """K: codes at one image position."""
    codebook_size: int = 4096
    """C: entries in each codebook."""
    code_width: int = 8
    """Dimensions of one codebook entry."""
    image_size: int = 256
    """Side of the default square image, in pixels."""
    patch_size: int = 16
    """Pixels along the side of one image position."""

    code_embedder: Literal["projected", "summed"] = "projected"
    """How the K codes of a position become one vector: the image tokenizer's frozen codebooks through an attention
    projection, or the sum of K learned tables, as LlamaGen has it (the next three fields do not matter then)."""
    embedder_width: int = 1024
    """Width of the attention projection that embeds codes, before the projector to D."""
    embedder_heads: int = 16
    """Attention heads of that projection."""
    embedding_context: Literal["prefix", "current", "bidirectional"] = "prefix"
    """What the embedding of a position sees while an image is drawn: the codes of its image so far ("prefix", as in
    training), or its own alone ("current", as the upstream scripts decode; needs no cache and differs from training).
    "bidirectional" is for understanding only, as in LLaVA: the image tokenizer's own frozen projection, over the whole
    image."""

    image_position_embedding: bool = False
    """Whether every image position also has a learned vector of its row and column (mllm/embedding.py). The
    released model has none; small models learn to copy from image to image many times sooner with it."""

    image_source_embedding: bool = False
    """Whether every image position also has a learned vector of each code that the next position has in the image
    before it (mllm/embedding.py): what does not change is copied from there. For images of one size."""

    head_type: Literal["depth_transformer", "mlp", "none"] = "depth_transformer"
    """How the K codes of a position are predicted: one after another, all at once, or never (understanding only)."""
    head_layers: int = 3
    """Layers of the depth transformer, or residual blocks of the mlp."""
    head_num_heads: int | None = None
    """Attention heads of a depth layer. None: as the backbone."""
    head_intermediate_size: int | None = None
    """Feed-forward width of a head layer. None: as the backbone."""
    head_shared_output: bool = True
    """Depth transformer: one output layer for all K codes (the released model), or one for each."""

    begin_image_id: int = 3
    end_image_id: int = 4
    image_token_id: int = -200
    """Stands at image positions in token ids. It is never embedded, so it may lie outside the vocabulary."""
    new_line_id: int | None = None
    """Ends a row of image positions (layout "grid")."""
    first_row_size_id: int | None = None
    """Token "1 row"; "n rows" is n - 1 ids later (layout "grid")."""
    first_column_size_id: int | None = None
    """Token "1 column" (layout "grid")."""
    max_grid_side: int | None = None
    """How many rows or columns have a size token (layout "grid")."""
    first_class_id: int | None = None
    """Token of class 0; class n is n ids later, and "no class", for guidance, comes after the last one."""
    num_classes: int = 0
    """Classes of images that can be asked for by number; 0: none."""
    begin_plan_id: int | None = None
    """Begins the plan that the model writes before it draws (mllm/conversation.py); None: it draws at once."""
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2

    prompt_style: Literal["native", "unitok", "plain", "vicuna_v1", "class"] = "native"
    """Which strings frame a dialogue; see mllm/conversation.py."""
    image_layout: Literal["fixed", "grid", "bare"] = "fixed"
    """Which tokens frame an image; see mllm/sequence.py."""

    z_loss_weight: float = 5e-5
    """Weight of the mean squared maximum of the code logits; 5e-5 is upstream's."""
    text_loss_weight: float = 1.0
    """What one text token counts in the loss, where one image code counts 1."""

    tasks: list[str] | None = None
    """Capabilities: what this checkpoint was trained to do. None: nothing is refused."""
    sizes: list[list[int]] | None = None
    """Capabilities: [width, height] in pixels that it draws. None: its default size only (fixed) or any grid."""

    image_guidance: float = 5.0
    """Default guidance scale when drawing; 1 turns guidance off."""
    image_temperature: float = 1.0
    image_top_k: int | None = None
    image_top_p: float = 1.0
    image_resamples: int = 0
    """How often an image that fails the planner's check is sampled again (mllm/engine/rejection.py); 0: no check."""

    planner: str | None = None
    """Dotted name, inside the package mllm, of the class that says what images are checked by, such as
    "mllm.world.plan.ScenePlanner". None: nothing is checked."""
    styles: list[str] | None = None
    """Names of the styles that it draws in, for a planner that looks for them in a request; the default first."""

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = LlamaConfig(rms_norm_eps=1e-5, max_position_embeddings=4096)
        elif isinstance(self.text_config, dict):
            fields = dict(self.text_config)
            self.text_config = AutoConfig.for_model(fields.pop("model_type", "llama"), **fields)
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        super().__post_init__(**kwargs)
        self.auto_map = dict(AUTO_MAP)
        self.check()

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: `auto_map` names our file, and transformers shall not copy our modules into saved folders."""

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As in transformers, with the file that loads the folder in a program that does not import us."""
        super().save_pretrained(save_directory, *args, **kwargs)
        save_shim(save_directory)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fields of a folder; those of the released model are translated, those of a backbone alone are its part."""
        fields, rest = super().get_config_dict(*args, **kwargs)
        fields, own_type = from_released(fields), MLLMConfig.model_type
        if fields.get("model_type", own_type) != own_type:
            fields = {"model_type": own_type, "text_config": fields}
        return fields, rest

    def check(self) -> None:
        self.embedding_context = OLD_CONTEXTS.get(self.embedding_context, self.embedding_context)  # type: ignore[assignment]
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}; use one")
        self.check_types()
        for name in ("num_codebooks", "codebook_size", "code_width", "embedder_width", "embedder_heads", "head_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}; use 1 or more")
        for divided, divisor in (("image_size", "patch_size"), ("embedder_width", "embedder_heads")):
            whole, part = getattr(self, divided), getattr(self, divisor)
            if whole < part or whole % part:
                raise ValueError(f"{divided} must be a multiple of {divisor}, got {whole} and {part}; change one")
        if self.head_type == "depth_transformer" and self.hidden_size % (2 * (self.head_num_heads or 1)):
            raise ValueError(
                f"head_num_heads must divide hidden_size ({self.hidden_size}) into even widths, got "
                f"{self.head_num_heads}; choose another number"
            )
        if self.image_layout == "grid" and self.image_position_embedding and not self.max_grid_side:
            raise ValueError(
                "max_grid_side must be set for image_position_embedding with image_layout 'grid', got None; "
                "set it to the largest number of rows or columns"
            )
        if self.image_source_embedding and self.prompt_style == "class":
            raise ValueError(
                "prompt_style must have a begin of sequence for image_source_embedding, got 'class'; unset it"
            )
        if (self.num_classes > 0) != (self.first_class_id is not None):
            both = self.num_classes, self.first_class_id
            raise ValueError(f"num_classes and first_class_id must be set together, got {both}; set both or neither")
        if self.begin_plan_id is not None and self.prompt_style != "native":
            raise ValueError(f"prompt_style must be 'native' for plans, got {self.prompt_style!r}; unset begin_plan_id")
        if self.planner is not None and not PLANNER_NAME.fullmatch(self.planner):
            raise ValueError(
                f"planner must be the dotted name of a class inside mllm, got {self.planner!r}; "
                "write one such as 'mllm.world.plan.ScenePlanner'"
            )
        drawing = [task for task in self.tasks or () if task in DRAWING_TASKS]
        if drawing and not self.can_draw:
            raise ValueError(
                f"tasks must hold no drawing with head_type {self.head_type!r} and embedding_context "
                f"{self.embedding_context!r}, got {drawing[0]!r}; leave it out, or choose others"
            )
        self.check_sizes()

    def check_types(self) -> None:
        """Refuse values that are not what the annotations above say; an integer may stand for a float."""
        for name, hint in MLLMConfig.__annotations__.items():
            value = getattr(self, name)
            try:
                if get_origin(hint) is not ClassVar and not (hint is float and type(value) is int):
                    type_validator(name, value, hint)
            except TypeError:
                kind = hint.__name__ if isinstance(hint, type) else str(hint).replace(" | ", " or ")
                raise ValueError(f"{name} must be {kind}, got {value!r}; correct it") from None

    def check_sizes(self) -> None:
        longest = self.max_grid_side * self.patch_size if self.image_layout == "grid" and self.max_grid_side else None
        for size in self.sizes or ():
            if len(size) != 2 or min(size) <= 0 or any(side % self.patch_size for side in size):
                raise ValueError(f"sizes must hold [width, height], multiples of {self.patch_size}, got {size}; fix it")
            if longest is not None and max(size) > longest:
                raise ValueError(f"sizes must be at most {longest} long, got {list(size)}; raise max_grid_side")
            if self.image_layout != "grid" and list(size) != [self.image_size, self.image_size]:
                raise ValueError(
                    f"sizes must hold image_size ({self.image_size}) alone in the {self.image_layout} layout, got "
                    f"{list(size)}; use image_layout 'grid', or leave it out"
                )

    hidden_size = of_text("hidden_size", "D, the width of the backbone and of the head.")
    vocab_size = of_text("vocab_size", "V, the rows of the text embedding.")

    @property
    def can_draw(self) -> bool:
        """Whether the model can produce image codes at all: it needs a head, and embeddings of unfinished images."""
        return self.head_type != "none" and self.embedding_context != "bidirectional"

    def class_token_id(self, index: int | None) -> int:
        """The token that asks for a class; None is "no class", the other branch of guidance."""
        if self.first_class_id is None:
            raise ValueError("the model must have classes to draw one, got none; use a class-conditional model")
        if index is None:
            return self.first_class_id + self.num_classes
        if not 0 <= index < self.num_classes:
            raise ValueError(f"class must be from 0 to {self.num_classes - 1}, got {index}; choose one of them")
        return self.first_class_id + index

    @property
    def code_vector_width(self) -> int:
        """Width of the K looked-up entries side by side."""
        return self.num_codebooks * self.code_width

    @property
    def grid_side(self) -> int:
        """Rows (and columns) of image positions of the default square image."""
        return self.image_size // self.patch_size

    @property
    def positions_per_image(self) -> int:
        """N of the default square image."""
        return self.grid_side**2


class ReleasedMLLMConfig(MLLMConfig):
    """What the Auto classes find in a folder of the released model; what they get is an `MLLMConfig`."""

    model_type = RELEASED_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> MLLMConfig:  # type: ignore[override]
        return MLLMConfig.from_dict(from_released(config_dict), **kwargs)


def from_released(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of our config; those that are no released model's are left as they are."""
    if fields.get("model_type") != RELEASED_TYPE:
        return fields
    text_config = {name: fields[name] for name in TEXT_FIELDS if fields.get(name) is not None}
    special_ids = {name: default if fields.get(name) is None else fields[name] for name, default in SPECIAL_IDS.items()}
    dtype = fields.get("dtype") or fields.get("torch_dtype")
    return {
        "model_type": "unified_mllm",
        "text_config": {"model_type": "llama", **text_config},
        **special_ids,
        **RELEASED_FIELDS,
        **({"dtype": dtype} if dtype else {}),
        **fields.get(OUR_FIELDS, {}),
    }


def to_released(ours: dict[str, Any], released: dict[str, Any]) -> dict[str, Any]:
    """The released file for a config of ours. `ours`: all fields of our config. `released`: all fields of our config of
    the released model, to find what is different."""
    text = ours["text_config"]
    if text["model_type"] != "llama":
        raise ValueError(f"the backbone must be a Llama to export it, got {text['model_type']!r}; use it as it is")
    fields = {name: text[name] for name in TEXT_FIELDS if text.get(name) is not None}
    rope = fields.pop("rope_parameters", None) or {}
    fields["rope_theta"] = rope.get("rope_theta", 10000.0)
    if rope.get("rope_type", "default") != "default":
        fields["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    kept = {name: value for name, value in ours.items() if name not in NOT_KEPT and value != released.get(name, value)}
    return {
        "architectures": [ARCHITECTURE],
        "model_type": RELEASED_TYPE,
        **fields,
        "torch_dtype": str(ours.get("dtype") or "float32").removeprefix("torch."),
        **TRAINING_FIELDS,
        **({OUR_FIELDS: kept} if kept else {}),
    }


for config_class in (MLLMConfig, ReleasedMLLMConfig):
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
