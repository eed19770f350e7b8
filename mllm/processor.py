"""Between people and the model: chats with images to ids and codes, and what was generated back to text and images.

Bundles the text tokenizer and the image tokenizer of one model folder. In: messages or Hugging Face chat dicts with PIL
images. Out: sequences, or padded tensors named as the model's forward names them. Computes no logits.

Letters: B batch, T positions, P image positions of the batch in reading order, I images, K codebooks, N positions of an
image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from mllm.checkpoint import IMAGE_TOKENIZER, RELEASED_FILES, find_model_folder, is_released_folder, load_image_tokenizer
from mllm.config import MLLMConfig
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
    possible_mode,
    unconditional,
)
from mllm.conversation import chat_template as template_of
from mllm.engine.request import GenerationResult
from mllm.sequence import TokenSequence, best_size, build_sequence
from mllm.vocabulary import decode_text, load_text_tokenizer, save_text_tokenizer
from tokenizer.images import ImageProcessor, ImageSource, read_image, to_images
from tokenizer.unitok import EncodedImage, UniTok, decode_images, encode_images

PROCESSOR_FILE, TEMPLATE_FILE = "processor_config.json", "chat_template.jinja"
PLAN, OLD_PLAN = "plan", "outline"
"""Key of a drawn image's `info` and of its PNG file: the plan that the model wrote before it drew. The second is its
name in files of earlier versions."""
BATCH_SIZE = 64
"""Images that are encoded or decoded together."""


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write an image; a PNG keeps the plan, so that a chat can continue from the file."""
    plan, options = image.info.get(PLAN), {}
    if plan is not None and Path(path).suffix.lower() == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text(PLAN, plan)
    image.save(path, **options)


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
        """
        Args:
            config: the model's; needed to encode, not to save (the model saves it).
            preparation: how an image gets to a size of the model; a name in tokenizer/images.py.
        """
        style = "native" if config is None else config.prompt_style
        super().__init__(tokenizer, chat_template=chat_template or template_of(style))
        self.image_tokenizer, self.config, self.preparation = image_tokenizer, config, preparation

    @classmethod
    def get_attributes(cls) -> list[str]:
        """What transformers saves and loads as parts of its own."""
        return ["tokenizer"]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.tokenizer!r}, preparation={self.preparation!r})"

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image] | None = None,
        text: str | Sequence[str] | None = None,
        *,
        messages: Sequence[Any] | None = None,
        generation_mode: Mode | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Model inputs of one request: images, then a text; or of a whole chat (messages or Hugging Face dicts).

        `kwargs` are transformers' padding and tensor options; inputs are always padded on the left, as torch tensors.

        Args:
            generation_mode: what `model.generate` is to answer; images then also need the prompts to guide away
                from (`negative_prompt_ids`).
        """
        for name in ("audio", "videos"):
            if kwargs.get(name) is not None:
                raise ValueError(f"inputs must be text and images, got {name}; leave them out")
        if messages is not None:
            return self.prompts([self.read_chat(messages)], generation_mode)
        sources = [images] if isinstance(images, ImageSource) else images or []
        parts = tuple(ImagePart(read_image(source)) for source in sources)
        texts = [text] if isinstance(text, str) else list(text or [])
        if len(texts) > 1 and parts:
            raise ValueError(f"images must come with one text, got {len(texts)} texts; pass messages, or one text")
        chats = [[Message("user", (*parts, TextPart(text)))] for text in texts] or [[Message("user", parts)]]
        return self.prompts(chats, generation_mode)

    def prompts(self, chats: Sequence[Sequence[Message]], generation_mode: Mode | None) -> BatchFeature:
        """Model inputs that ask for an answer to each chat."""
        answer: AnswerKind | None = generation_mode if generation_mode in ("text", "image") else None
        chats = [self.encode_chat(chat) for chat in chats]
        if generation_mode is not None:
            for chat in chats:
                possible_mode(chat, generation_mode, self.need_config())  # refuses what this checkpoint does not answer
        inputs = self.collate([self.build(chat, add_generation_prompt=True, answer=answer) for chat in chats])
        if generation_mode in ("image", "interleaved"):
            dropped = [unconditional(chat) for chat in chats]
            other = self.collate([self.build(chat, add_generation_prompt=True, answer=answer) for chat in dropped])
            inputs["negative_prompt_ids"] = other["input_ids"]
            inputs["negative_prompt_attention_mask"] = other["attention_mask"]
        return inputs

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """The text form of a chat, or with `tokenize=True` model inputs, images included (`return_dict=True`)."""
        if not kwargs.get("tokenize"):
            return super().apply_chat_template(conversation, chat_template, **kwargs)
        is_batch = bool(conversation) and not isinstance(conversation[0], dict | Message)
        chats = [self.read_chat(chat) for chat in (conversation if is_batch else [conversation])]
        if kwargs.get("continue_final_message"):
            raise ValueError("continue_final_message must be False, got True; end with the user's message")
        mode = (kwargs.get("processor_kwargs") or {}).get("generation_mode", kwargs.get("generation_mode"))
        is_prompt = kwargs.get("add_generation_prompt", False)
        inputs = self.prompts(chats, mode) if is_prompt else self.collate([self.build(chat) for chat in chats])
        return inputs if kwargs.get("return_dict") else inputs["input_ids"]

    def read_chat(self, chat: Sequence[Any]) -> list[Message]:
        """Messages of a chat in either form."""
        return [turn if isinstance(turn, Message) else from_chat([load_images(turn)])[0] for turn in chat]

    def build(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, answer: AnswerKind | None = None
    ) -> TokenSequence:
        """The sequence of a dialogue; its images are encoded first."""
        return build_sequence(
            self.encode_chat(messages),
            tokenizer=self.tokenizer,
            config=self.need_config(),
            add_generation_prompt=add_generation_prompt,
            answer=answer,
        )

    def encode_chat(self, messages: Sequence[Message]) -> list[Message]:
        """The same dialogue with codes in place of images.

        Those that the assistant drew keep their plans, in a model with plans; one of the user is described anew.
        """
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
        config, images = self.need_config(), [read_image(image) for image in images]
        sizes = [best_size(image.size, config) for image in images]
        pixels = (
            ImageProcessor(width=width, height=height, preparation=self.preparation)(image)[0]
            for image, (width, height) in zip(images, sizes, strict=True)
        )
        encoded = encode_images(pixels, self.need_image_tokenizer(), batch_size=BATCH_SIZE)
        return [CodesPart(image.codes_KN, image.grid) for image in encoded]

    def collate(self, sequences: Sequence[TokenSequence]) -> BatchFeature:
        """Tensors (B, T) of sequences, padded on the left, with the codes of all their images in reading order."""
        longest, pad = max(len(sequence) for sequence in sequences), self.need_config().pad_token_id
        rows = [np.pad(s.token_ids_T, (longest - len(s), 0), constant_values=pad) for s in sequences]
        masks = [np.pad(np.ones(len(s), dtype=np.int64), (longest - len(s), 0)) for s in sequences]
        inputs: dict[str, Tensor] = {
            "input_ids": torch.from_numpy(np.stack(rows)),
            "attention_mask": torch.from_numpy(np.stack(masks)),
        }
        if any(len(s.image_lengths_I) for s in sequences):
            inputs["codes"] = torch.from_numpy(np.concatenate([s.codes_PK for s in sequences]))
            inputs["image_lengths"] = torch.from_numpy(np.concatenate([s.image_lengths_I for s in sequences]))
        return BatchFeature(inputs)

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

    def images_of(self, generated: GenerationResult) -> list[Image.Image]:
        """The images of a result, with seed and plan in their `info`."""
        images = self.decode_images(self.codes_of(generated))
        for image in images:
            image.info["seed"] = generated.seed
        return images

    def to_text(self, token_ids: list[int]) -> str:
        """Text without special tokens and outer spaces."""
        return decode_text(self.tokenizer, token_ids)

    @torch.inference_mode()
    def decode_images(self, images: Sequence[CodesPart]) -> list[Image.Image]:
        """Images of codes; the plan of a drawn one is kept in its `info`."""
        if not images:
            return []
        codes = [EncodedImage(image.codes_KN, image.grid) for image in images]
        pixels = decode_images(codes, self.need_image_tokenizer(), batch_size=BATCH_SIZE)
        decoded = [to_images(pixels_3HW[None])[0] for pixels_3HW in pixels]
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
                ids_ST = generated_outputs if answers is None else generated_outputs.sequences
                config = self.need_config()
                skipped = (config.image_token_id, config.pad_token_id)
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
        """Text of ids; special tokens only if asked for."""
        return self.tokenizer.decode(*args, skip_special_tokens=skip_special_tokens, **kwargs)

    def batch_decode(self, *args: Any, skip_special_tokens: bool = True, **kwargs: Any) -> list[str]:
        """Texts of rows of ids; special tokens only if asked for."""
        return self.tokenizer.batch_decode(*args, skip_special_tokens=skip_special_tokens, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the tokenizer's files, image_tokenizer/, processor_config.json and chat_template.jinja."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        save_text_tokenizer(self.tokenizer, folder)
        if self.image_tokenizer is not None:
            self.image_tokenizer.save_pretrained(folder / IMAGE_TOKENIZER)
        fields = {"processor_class": type(self).__name__, "preparation": self.preparation}
        (folder / PROCESSOR_FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        (folder / TEMPLATE_FILE).write_text(self.chat_template, encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, device: torch.device | str | None = None, **kwargs: Any
    ) -> MLLMProcessor:
        """Read a model folder; `kwargs` are transformers' options for the hub, which a folder does not need."""
        folder = find_model_folder(pretrained_model_name_or_path)
        template = folder / TEMPLATE_FILE
        return cls(
            load_text_tokenizer(folder),
            load_image_tokenizer(folder, device=device),
            MLLMConfig.from_pretrained(folder, local_files_only=True),
            preparation=read_preparation(folder / PROCESSOR_FILE),
            chat_template=template.read_text(encoding="utf-8") if template.is_file() else None,
        )

    def need_config(self) -> MLLMConfig:
        """The config, without which nothing can be encoded."""
        if self.config is None:
            raise ValueError("config must be the model's to encode, got None; load the processor from a model folder")
        return self.config

    def need_image_tokenizer(self) -> UniTok:
        """The image tokenizer, without which there are no images."""
        if self.image_tokenizer is None:
            raise ValueError(
                f"the model folder must have {IMAGE_TOKENIZER}/ or {RELEASED_FILES[0]} for images, got neither; add one"
            )
        return self.image_tokenizer


def read_preparation(path: Path) -> str:
    """How a model's images get to their size, from its processor_config.json; a released model has none."""
    fields = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return fields.get("preparation", "understanding" if is_released_folder(path.parent) else "cover")


def load_images(turn: dict[str, Any]) -> dict[str, Any]:
    """A chat message whose image items hold images, where they named files or addresses."""

    def load(item: Any) -> Any:
        named = [item[key] for key in ("image", "path", "url") if key in item] if item.get("type") == "image" else []
        return {"type": "image", "image": read_image(named[0])} if named and isinstance(named[0], ImageSource) else item

    content = turn["content"]
    return turn if isinstance(content, str) else {**turn, "content": [load(item) for item in content]}


AutoProcessor.register(MLLMConfig, MLLMProcessor, exist_ok=True)
