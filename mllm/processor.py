"""Between people and the model: chats with images to ids and codes, and what was generated back to text and images.

Bundles the text tokenizer and the image tokenizer of one model folder. In: messages or Hugging Face chat dicts with PIL
images. Out: sequences, or padded tensors named as the model's forward names them. Computes no logits.

Letters: B batch, T positions, P image positions of the batch in reading order, I images, K codebooks, N positions of an
image.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.processing_utils import ImagesKwargs
from transformers.utils.chat_template_utils import render_jinja_template

from mllm.checkpoint import (
    CONFIG_FILE,
    IMAGE_TOKENIZER,
    RELEASED_FILES,
    find_model_folder,
    is_released_folder,
    load_image_tokenizer,
)
from mllm.config import AUTO_MAP, MLLMConfig, save_shim
from mllm.conversation import (
    AnswerKind,
    CodesPart,
    ImagePart,
    Message,
    Mode,
    Part,
    Role,
    TextPart,
    from_chat,
    from_fragment,
    from_text,
    is_framed,
    is_outdated,
    parts_of,
    possible_mode,
    render,
    unconditional,
)
from mllm.conversation import chat_template as template_of
from mllm.engine.request import GenerationResult
from mllm.files import read_json, write_image, write_text
from mllm.sequence import IGNORED, TokenSequence, begin_of, best_sizes, encode_segments, join, nearest_size
from mllm.vocabulary import IMAGE, decode_text, load_text_tokenizer, save_text_tokenizer
from tokenizer.images import ImageProcessor, ImageSource, read_image, to_images
from tokenizer.unitok import EncodedImage, UniTok, decode_images, encode_images

PROCESSOR_FILE = "processor_config.json"
MODEL_CONFIG = "model_config"
"""In processor_config.json: the config of the model, where that is not in a file of its own."""
PLAN, OLD_PLAN = "plan", "outline"
"""Key of a drawn image's `info` and of its PNG file: the plan that the model wrote before it drew. The second is its
name in files of earlier versions."""
KWARGS_GROUPS = ("text_kwargs", "images_kwargs", "common_kwargs")
"""Dicts in which transformers groups the options of a processor."""
CHOICES_OF_OPTIONS: dict[str, tuple[Any, ...]] = {
    "padding": (True, False, "longest", "max_length", "do_not_pad"),
    "padding_side": ("left", "right"),
    "truncation": (None, True, False, "longest_first", "only_first", "do_not_truncate"),
    "return_tensors": ("auto", "pt", "np", None),
}
OPTIONS_OF_OTHERS = {*ImagesKwargs.__annotations__, "min_pixels", "max_pixels", "model_max_length"} - {"device"}
"""Options with which the processors of other models are loaded."""
BATCH_SIZE = 64
"""Images that are encoded or decoded together."""


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write an image; a PNG keeps the plan, so that a chat can continue from the file."""
    plan, options = image.info.get(PLAN), {}
    if plan is not None and Path(path).suffix.lower() == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text(PLAN, plan)
    write_image(Path(path), image, **options)


Extent = Literal["prompt", "beginning", "whole", "piece"]
"""Of a text: the assistant is to answer, or to go on; a complete dialogue; or a piece of one, as it stands."""


class Draft(NamedTuple):
    content: list[Any]  # messages; of a piece segments
    extent: Extent
    answer: AnswerKind | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TextOptions:
    """How rows of tokens are made, by transformers' names."""

    padding: bool | str = True
    padding_side: str = "left"
    pad_to_multiple_of: int | None = None
    truncation: bool | str | None = None
    """Cuts at the end, between tokens but never inside an image."""
    max_length: int | None = None
    return_tensors: str | None = "auto"
    """"pt", "np", None for lists; "auto": PyTorch, but lists where rows are of unequal length."""
    add_special_tokens: bool | None = None
    """False: a text that is no prompt is taken as it stands."""
    return_assistant_tokens_mask: bool = False

    @classmethod
    def read(cls, given: dict[str, Any], *, padding_side: str, may_be_lists: bool = False, **others: Any) -> Self:
        """Check names and values; an option that this processor does not have is an error. `padding_side`: of the
        tokenizer, where the call has none. `may_be_lists`: rows are not padded unless a call asks for it."""
        grouped = {name: value for group in KWARGS_GROUPS for name, value in (given.get(group) or {}).items()}
        plain = {name: value for name, value in given.items() if name not in KWARGS_GROUPS}
        if twice := sorted(grouped.keys() & plain.keys()):
            raise ValueError(f"{twice[0]} must be given once, got it by itself and in a group; drop one of them")
        options = {n: v for n, v in {**plain, **grouped, **others}.items() if v is not None or n == "return_tensors"}
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(options.keys() - known):
            raise ValueError(f"options must be among {', '.join(sorted(known))}, got {unknown[0]!r}; drop it")
        options.setdefault("padding_side", padding_side)
        tensors = options.get("return_tensors", "auto")
        options["return_tensors"] = tensors = getattr(tensors, "value", tensors)  # an enum of transformers
        options.setdefault("padding", tensors in ("pt", "np") or (tensors == "auto" and not may_be_lists))
        return cls(**options)

    def __post_init__(self) -> None:
        for name, allowed in CHOICES_OF_OPTIONS.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}; use one of them")

    def cut(self, sequence: TokenSequence, config: MLLMConfig) -> TokenSequence:
        """The beginning of a sequence that is too long, if it may be cut."""
        cuts = self.truncation not in (None, False, "do_not_truncate")
        if self.truncation is None and self.max_length is not None and self.padding != "max_length":
            cuts = True  # as transformers
        length = self.max_length or config.text_config.max_position_embeddings
        return begin_of(sequence, length, config=config) if cuts and len(sequence) > length else sequence

    def batch(self, rows: Sequence[np.ndarray], fill: int, config: MLLMConfig) -> Any:
        length = max(map(len, rows))
        if self.padding == "max_length":
            length = max(length, self.max_length or config.text_config.max_position_embeddings)
        if self.padding not in (False, "do_not_pad"):
            length += -length % (self.pad_to_multiple_of or 1)
            sides = [(length - len(row), 0) if self.padding_side == "left" else (0, length - len(row)) for row in rows]
            rows = [np.pad(row, side, constant_values=fill) for row, side in zip(rows, sides, strict=True)]
        if len({len(row) for row in rows}) == 1 and self.return_tensors is not None:
            return self.tensor(np.stack(rows))
        if self.return_tensors in ("pt", "np"):
            raise ValueError("rows must have one length to become a tensor, got several; set padding=True")
        return [row.tolist() for row in rows]

    def tensor(self, array: np.ndarray) -> Any:
        convert = {None: array.tolist, "np": lambda: array}
        return convert.get(self.return_tensors, lambda: torch.from_numpy(array))()


class MLLMProcessor(ProcessorMixin):
    """Text tokenizer, image tokenizer and image preparation of one model."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_tokenizer: UniTok | None = None,
        config: MLLMConfig | None = None,
        *,
        preparation: str = "cover",
        chat_template: str | None = None,
    ) -> None:
        """`config`: the model's; needed to encode, not to save (the model saves it). `preparation`: how an image gets
        to a size of the model; a name in tokenizer/images.py."""
        if chat_template is None or (isinstance(chat_template, str) and is_outdated(chat_template)):
            chat_template = template_of("native" if config is None else config.prompt_style)
        super().__init__(tokenizer, chat_template=chat_template)
        self.image_tokenizer, self.config, self.preparation = image_tokenizer, config, preparation

    @classmethod
    def get_attributes(cls) -> list[str]:
        """What transformers saves and loads as parts of its own."""
        return ["tokenizer"]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.tokenizer!r}, preparation={self.preparation!r})"

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        messages: Sequence[Any] | None = None,
        generation_mode: Mode | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Model inputs of texts with images, or of a whole chat (messages or Hugging Face dicts).

        A text is what a user says, or a prompt that `apply_chat_template` wrote, which is not framed again. Images
        stand at its `<image>` markers; before a text of a user that has none.

        Args:
            images: one, a list for one text or in the order of all markers, or a list for each text.
            generation_mode: what `model.generate` is to answer; images then also need the prompts to guide away
                from (`negative_prompt_ids`).
            kwargs: fields of `TextOptions`, by themselves or in `text_kwargs` as transformers groups them.
        """
        options = TextOptions.read(kwargs, padding_side=self.tokenizer.padding_side)
        if messages is not None:
            return self.encode([Draft(from_chat(messages), "prompt")], options, generation_mode)
        texts = [text] if isinstance(text, str) else list(text or [])
        if not all(isinstance(each, str) for each in texts):
            raise ValueError("text must be a string or a list of strings, got other items; give strings")
        shared = share_images(images, texts)
        if texts:
            drafts = [self.draft(each, parts, options) for each, parts in zip(texts, shared, strict=True)]
        else:
            drafts = [Draft([Message("user", parts)], "prompt") for parts in shared]
        return self.encode(drafts, options, generation_mode)

    def draft(self, text: str, images: tuple[ImagePart, ...], options: TextOptions) -> Draft:
        frames, style = self._frames, self.need_config().prompt_style
        if is_framed(text, frames["bos"]) and style in ("native", "unitok", "vicuna_v1"):
            messages = from_text(text, iter(images), **frames)
            if messages and not messages[-1].parts:
                return Draft(messages[:-1], "prompt", answer="text")
            return Draft(messages, "whole" if text.endswith(frames["eos"]) else "beginning", answer="text")
        if is_framed(text, frames["bos"]) or options.add_special_tokens is False:
            codes = iter(self.encode_images([part.image for part in images]))
            return Draft(list(from_fragment(text, codes, **frames, style=style)), "piece")
        parts = parts_of(text, iter(images)) if IMAGE in text else (*images, TextPart(text))
        return Draft([Message("user", parts)], "prompt")

    @property
    def _frames(self) -> dict[str, str]:
        return {"bos": self.tokenizer.bos_token, "eos": self.tokenizer.eos_token}

    def encode(self, drafts: Sequence[Draft], options: TextOptions, mode: Mode | None = None) -> BatchFeature:
        """Model inputs of drafts; with a mode that draws also the prompts to guide away from."""
        config = self.need_config()
        encoded = [d if d.extent == "piece" else d._replace(content=self.encode_chat(d.content)) for d in drafts]
        for draft in encoded if mode is not None else ():
            if draft.extent != "prompt":
                raise ValueError(
                    "generation_mode must come with prompts that the assistant is to answer, got another text; "
                    "end with the user's message"
                )
            possible_mode(draft.content, mode, config)  # refuses what this checkpoint does not answer
        inputs = collate([self.to_sequence(draft, mode) for draft in encoded], config, options)
        if mode in ("image", "interleaved"):
            dropped = [draft._replace(content=unconditional(draft.content)) for draft in encoded]
            other = collate([self.to_sequence(draft, mode) for draft in dropped], config, options)
            inputs["negative_prompt_ids"] = other["input_ids"]
            inputs["negative_prompt_attention_mask"] = other["attention_mask"]
        return inputs

    def to_sequence(self, draft: Draft, mode: Mode | None = None) -> TokenSequence:
        config, segments = self.need_config(), draft.content
        if draft.extent != "piece":
            segments = render(
                draft.content,
                config.prompt_style,
                add_generation_prompt=draft.extent == "prompt",
                continue_final_message=draft.extent == "beginning",
                answer=mode if mode in ("text", "image") else draft.answer,
            )
        return encode_segments(segments, tokenizer=self.tokenizer, config=config)

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tools: Any = None,
        documents: Any = None,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The text form of a chat, or with `tokenize=True` model inputs, images included (`return_dict=True`). Without
        `padding` and `return_tensors`, whole chats of unequal length come back as lists, for training tools; prompts
        are padded, for `generate`."""
        if tools or documents:
            raise ValueError("tools and documents must be None for this model, got some; leave them out")
        template = chat_template or self.chat_template
        flags = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        options = {**kwargs, **(processor_kwargs or {})}
        if not tokenize:
            return super().apply_chat_template(conversation, template, **flags, **options)
        if return_assistant_tokens_mask and (not return_dict or continue_final_message):
            raise ValueError(
                "return_assistant_tokens_mask must come with return_dict=True and a finished chat, got another call; "
                "change it"
            )
        if continue_final_message and add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt must not be both set; drop one of them")
        mode = options.pop("generation_mode", None)
        is_batch = bool(conversation) and not isinstance(conversation[0], dict | Message)
        conversations = conversation if is_batch else [conversation]
        chats = [from_chat(chat) for chat in conversations]
        extent: Extent = "beginning" if continue_final_message else "prompt" if add_generation_prompt else "whole"
        masks = {"return_assistant_tokens_mask": return_assistant_tokens_mask}
        if template == self.chat_template:
            drafts = [Draft(chat, extent) for chat in chats]
        else:
            own = {entry.name for entry in fields(TextOptions)} | set(KWARGS_GROUPS)
            variables = {name: options.pop(name) for name in list(options) if name not in own}
            drafts = self.fill_template(template, conversations, chats, {**flags, **masks, **variables})
        side = self.tokenizer.padding_side
        read = TextOptions.read(options, padding_side=side, may_be_lists=extent == "whole", **masks)
        inputs = self.encode(drafts, read, mode)
        return inputs if return_dict else inputs["input_ids"]

    def fill_template(
        self, template: Any, conversations: Sequence[Any], chats: Sequence[Sequence[Message]], variables: dict[str, Any]
    ) -> list[Draft]:
        """Chats in another template than the model's: its texts as they stand, learned where it says so."""
        texts, spans = render_jinja_template(
            conversations=conversations,
            chat_template=self._resolve_chat_template(template),
            **{**self.tokenizer.special_tokens_map, **variables},
        )
        images = [[part.image for turn in chat for part in turn.parts if isinstance(part, ImagePart)] for chat in chats]
        style, drafts = self.need_config().prompt_style, []
        for text, parts, learned in zip(texts, share_images(images, texts), spans or [[]] * len(texts), strict=True):
            codes, segments, begin = iter(self.encode_images([part.image for part in parts])), [], 0
            for start, end in [*learned, (len(text), len(text))]:
                for piece, is_learned in ((text[begin:start], False), (text[start:end], True)):
                    found = from_fragment(piece, codes, style=style, **self._frames)
                    segments += [replace(segment, supervised=is_learned) for segment in found]
                begin = end
            drafts.append(Draft(segments, "piece"))
        return drafts

    def build(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, answer: AnswerKind | None = None
    ) -> TokenSequence:
        """The sequence of a dialogue; its images are encoded first."""
        extent: Extent = "prompt" if add_generation_prompt else "whole"
        return self.to_sequence(Draft(self.encode_chat(messages), extent, answer))

    def encode_chat(self, messages: Sequence[Message]) -> list[Message]:
        """The same dialogue with codes in place of images. Those that the assistant drew keep their plans, in a model
        with plans; one of the user is described anew."""
        images = [part.image for message in messages for part in message.parts if isinstance(part, ImagePart)]
        codes = iter(self.encode_images(images))
        has_plans = self.config is not None and self.config.begin_plan_id is not None

        def encoded(part: Part, role: Role) -> Part:
            if not isinstance(part, ImagePart):
                return part
            plan = part.image.info.get(PLAN, part.image.info.get(OLD_PLAN))
            return replace(next(codes), plan=plan if has_plans and role == "assistant" else None)

        return [replace(turn, parts=tuple(encoded(part, turn.role) for part in turn.parts)) for turn in messages]

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image]) -> list[CodesPart]:
        """Codes of images, each at the size of the model that fits it best."""
        if not images:
            return []
        config, read = self.need_config(), [read_image(image) for image in images]
        sized = ((image, *nearest_size(image.size, best_sizes(config))) for image in read)
        pixels = (
            ImageProcessor(width=width, height=height, preparation=self.preparation)(image)[0]
            for image, width, height in sized
        )
        encoded = encode_images(pixels, self.need_image_tokenizer(), batch_size=BATCH_SIZE)
        return [CodesPart(image.codes_KN, image.grid) for image in encoded]

    def to_parts(self, generated: GenerationResult) -> list[str | Image.Image]:
        """Text and images of a result, in order; no special tokens, no empty texts."""
        images = iter(self.images_of(generated))
        parts = [next(images) if isinstance(part, CodesPart) else self.to_text(part) for part in generated.parts]
        return [part for part in parts if part != ""]

    def codes_of(self, generated: GenerationResult) -> list[CodesPart]:
        """The codes of a result, each image with the plan that was written before it, if one was."""
        return list(map(self.with_plan, generated.images, generated.plans))

    def with_plan(self, image: CodesPart, token_ids: list[int]) -> CodesPart:
        """An image with its plan; no tokens: it has none."""
        return replace(image, plan=self.to_text(token_ids) or None)

    def images_of(self, *generated: GenerationResult) -> list[Image.Image]:
        """The images of results, with seed and plan in their `info`."""
        images = self.decode_images([codes for result in generated for codes in self.codes_of(result)])
        seeds = [result.seed for result in generated for _ in result.images]
        for image, seed in zip(images, seeds, strict=True):
            image.info["seed"] = seed
        return images

    def to_text(self, token_ids: list[int]) -> str:
        return decode_text(self.tokenizer, token_ids)

    @torch.inference_mode()
    def decode_images(self, images: Sequence[CodesPart]) -> list[Image.Image]:
        """Images of codes; the plan of a drawn one is kept in its `info`."""
        if not images:
            return []
        codes = [EncodedImage(image.codes_KN, image.grid) for image in images if image.image is None]
        pixels = decode_images(codes, self.need_image_tokenizer(), batch_size=BATCH_SIZE)
        decoded = [to_images(next(pixels)[None])[0] if each.image is None else each.image.copy() for each in images]
        for image, drawn in zip(images, decoded, strict=True):
            if image.plan is not None:
                drawn.info[PLAN] = image.plan
        return decoded

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: Mode | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """What `model.generate` returned as texts, as images, or (mode "interleaved") as a list of both per row."""
        answers = getattr(generated_outputs, "answers", None)
        match generation_mode:
            case None | "text":
                ids_ST = getattr(generated_outputs, "sequences", generated_outputs)
                skipped = (self.need_config().image_token_id, self.need_config().pad_token_id)
                rows = [[id_ for id_ in row if id_ not in skipped] for row in ids_ST.tolist()]
                return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]
            case "image" if answers is None:
                return self.decode_images([self.as_codes(codes) for codes in generated_outputs.cpu()])
            case "image":
                return self.decode_images([image for answer in answers for image in answer.images])
            case "interleaved" if answers is not None:
                return [self.to_parts(answer) for answer in answers]
            case _:
                raise ValueError(
                    f"generation_mode must be text, image, or interleaved with all that generate returned, got "
                    f"{generation_mode!r} with {type(generated_outputs).__name__}; use one of them"
                )

    def as_codes(self, codes_X: Tensor) -> CodesPart:
        """One image from its codes position by position, of the default size."""
        side = self.need_config().grid_side
        codes_NK = codes_X.reshape(-1, self.need_config().num_codebooks)
        if len(codes_NK) != side * side:
            raise ValueError(
                f"codes without a size must be {side} x {side} positions, got {len(codes_NK)}; "
                "call generate with return_dict_in_generate=True and pass all that it returns"
            )
        return CodesPart(codes_NK.T.numpy().astype(np.uint16), (side, side))

    def decode(self, *args: Any, skip_special_tokens: bool = True, **kwargs: Any) -> str:
        return self.tokenizer.decode(*args, skip_special_tokens=skip_special_tokens, **kwargs)

    def batch_decode(self, *args: Any, skip_special_tokens: bool = True, **kwargs: Any) -> list[str]:
        return self.tokenizer.batch_decode(*args, skip_special_tokens=skip_special_tokens, **kwargs)

    @property
    def image_token(self) -> str:
        """Marks an image in a text, and stands at each of its positions in the tokens."""
        return IMAGE

    @property
    def image_token_id(self) -> int:
        return self.need_config().image_token_id

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "codes", "image_lengths", "code_targets"]

    def to_dict(self) -> dict[str, Any]:
        auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
        return {"auto_map": auto_map, "preparation": self.preparation, "processor_class": type(self).__name__}

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """As in transformers, with image_tokenizer/, and with the model's config where that is not there."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        save_text_tokenizer(self.tokenizer, folder)
        if self.image_tokenizer is not None:
            self.image_tokenizer.save_pretrained(folder / IMAGE_TOKENIZER)
        save_shim(folder)
        files = super().save_pretrained(folder, **kwargs)
        if self.config is not None and not (folder / CONFIG_FILE).is_file():
            fields = {**self.to_dict(), MODEL_CONFIG: self.config.to_dict()}
            write_text(folder / PROCESSOR_FILE, json.dumps(fields, indent=2) + "\n")
        if push_to_hub:
            self.push_to_hub(kwargs.get("repo_id") or folder.name, token=kwargs.get("token"))
        return files

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Nothing: `auto_map` names our file, so none of our modules is copied into saved folders."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, device: torch.device | str | None = None, **kwargs: Any
    ) -> Self:
        """Read a model folder, or one that a processor alone was saved to. `kwargs`: of the text tokenizer, and
        transformers' options for the hub, which a folder does not need."""
        folder = Path(pretrained_model_name_or_path)
        alone = None if (folder / CONFIG_FILE).is_file() else read_fields(folder).get(MODEL_CONFIG)
        if alone is None:
            folder = find_model_folder(pretrained_model_name_or_path)
            config = MLLMConfig.from_pretrained(folder, local_files_only=True)
        else:
            config = MLLMConfig.from_dict(alone)
        tokenizer = load_text_tokenizer(folder)
        for name, value in {"padding_side": "left", **kwargs}.items():
            if name in ("padding_side", *tokenizer.SPECIAL_TOKENS_ATTRIBUTES):
                setattr(tokenizer, name, value)
            elif name in OPTIONS_OF_OTHERS:
                raise ValueError(f"{name} must be left out for this processor, which has no such option, got {value!r}")
        saved = cls.get_processor_dict(folder)[0] if (folder / PROCESSOR_FILE).is_file() else {}
        return cls(
            tokenizer,
            load_image_tokenizer(folder, device=device),
            config,
            preparation=read_preparation(folder),
            chat_template=saved.get("chat_template"),
        )

    def need_config(self) -> MLLMConfig:
        if self.config is None:
            raise ValueError("config must be the model's to encode, got None; load the processor from a model folder")
        return self.config

    def need_image_tokenizer(self) -> UniTok:
        if self.image_tokenizer is None:
            raise ValueError(
                f"the model folder must have {IMAGE_TOKENIZER}/ or {RELEASED_FILES[0]} for images, got neither; add one"
            )
        return self.image_tokenizer


def read_fields(folder: Path) -> dict[str, Any]:
    return read_json(folder / PROCESSOR_FILE) if (folder / PROCESSOR_FILE).is_file() else {}


def read_preparation(folder: Path) -> str:
    """How a model's images get to their size; a released model does not say."""
    default = "understanding" if is_released_folder(folder) else "cover"
    return read_fields(folder).get("preparation", default)


def share_images(images: Any, texts: Sequence[str]) -> list[tuple[ImagePart, ...]]:
    """The images of each text: as they were given for it, by its markers, or all of them for a single one."""
    num_markers = [text.count(IMAGE) for text in texts]
    if isinstance(images, ImageSource) and getattr(images, "ndim", 3) < 4:
        images = [images]
    listed = [] if images is None else list(images)
    if listed and all(image is None or isinstance(image, list | tuple) for image in listed):
        lists = [list(image or ()) for image in listed]
    elif len(texts) < 2:
        lists = [listed]
    else:
        ends = np.cumsum(num_markers)
        lists = [listed[end - num : end] for num, end in zip(num_markers, ends, strict=True)]
        if len(listed) != ends[-1]:
            raise ValueError(
                f"images must be as many as the {IMAGE} markers of the texts, got {len(listed)} for {ends[-1]}; "
                "add or remove some, or give a list of images for each text"
            )
    if len(lists) != max(len(texts), 1):
        raise ValueError(f"lists of images must be one per text, got {len(lists)} for {len(texts)}; add or remove some")
    for num, found in zip(num_markers, lists, strict=False):
        if num and num != len(found):
            raise ValueError(
                f"a text must have one {IMAGE} marker per image, got {num} for {len(found)}; "
                "add or remove some so that they match"
            )
    return [tuple(ImagePart(read_image(image)) for image in found) for found in lists]


def collate(sequences: Sequence[TokenSequence], config: MLLMConfig, options: TextOptions | None = None) -> BatchFeature:
    """Rows of sequences, padded as the options say, with the codes of all their images in reading order."""
    options = options or TextOptions()
    sequences = [options.cut(sequence, config) for sequence in sequences]
    rows = {"input_ids": [s.token_ids_T for s in sequences]}
    rows["attention_mask"] = [np.ones(len(s), dtype=np.int64) for s in sequences]
    if options.return_assistant_tokens_mask:
        rows["assistant_masks"] = [learned_mask(s, config.image_token_id) for s in sequences]
    fills = {"input_ids": config.pad_token_id}
    inputs = {name: options.batch(arrays, fills.get(name, 0), config) for name, arrays in rows.items()}
    together = join(sequences)
    if len(together.image_lengths_I):
        of_images = together.codes_PK, together.image_lengths_I, together.code_targets_P
        inputs |= zip(("codes", "image_lengths", "code_targets"), map(options.tensor, of_images), strict=True)
    return BatchFeature(inputs)


def learned_mask(sequence: TokenSequence, image_token_id: int) -> np.ndarray:
    """1 for what the assistant says, (T,): tokens that are learned, and positions of images that it drew."""
    mask_T = (sequence.labels_T != IGNORED).astype(np.int64)
    mask_T[sequence.token_ids_T == image_token_id] = sequence.code_targets_P
    return mask_T


AutoProcessor.register(MLLMConfig, MLLMProcessor, exist_ok=True)
