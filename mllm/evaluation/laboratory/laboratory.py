"""All that is asked of a tokenizer, put together to one result.

In: the typed arguments. Out: the content of result.json, protocol `tokenizer@CROP-SIZE`: numbers of different crops are
not comparable, and references are cropped exactly as what is reconstructed.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from mllm.evaluation.benchmark import Score, Scores
from mllm.evaluation.bootstrap import mean_of_many, without_interval
from mllm.evaluation.laboratory.classes import (
    IMAGENET_NAMES,
    class_names,
    labelled_pictures,
    probe_verdicts,
    zero_shot_places,
)
from mllm.evaluation.laboratory.measured import MeasuredTokenizer, MeasuredUniTok, find_measured
from mllm.evaluation.laboratory.pictures import count_pictures, read_pictures
from mllm.evaluation.laboratory.reconstruction import RECONSTRUCTION, REFERENCE, measure_reconstruction
from mllm.evaluation.result import make_result
from mllm.json_files import fingerprint_of
from mllm.loading.device import choose_device
from mllm.versions import tool_versions
from tokenizer.captions import load_captions
from tokenizer.fidelity import fidelity, need_fidelity
from tokenizer.image_processor import PREPARATIONS, ImageProcessor
from tokenizer.perceptual import LPIPS
from tokenizer.zero_shot import TEMPLATES, read_templates

RANKS = (1, 5)


def measure_tokenizer(arguments: Namespace) -> dict[str, Any]:
    """Everything that was asked for; what is missing is said before anything is computed."""
    if arguments.fid:
        need_fidelity()
    expected, device = count_pictures(arguments.images), choose_device(arguments.device)
    lpips = None if arguments.lpips is None else LPIPS.from_file(arguments.lpips).to(device)
    tokenizer = find_measured(arguments.model, arguments.codec, device=device)
    side = tokenizer.image_size
    prepare = ImageProcessor(height=side, width=side, preparation=arguments.crop)
    of_classes = measure_classes(tokenizer, arguments, prepare)  # first: here more can be missing
    scores, codes = measure_reconstruction(
        tokenizer,
        read_pictures(arguments.images, limit=arguments.limit),
        prepare=prepare,
        output=arguments.output,
        batch_size=arguments.batch_size,
        lpips=lpips,
        keeps_files=arguments.fid,
    )
    number = min(expected, arguments.limit or expected)
    scores |= measure_fidelity(arguments, number) | of_classes
    columns = {"columns": {"Tokens": str(codes["tokens"])}, "crop": describe_crop(prepare), "tokenizer": tokenizer.name}
    return make_result(
        "tokenizer",
        Scores(
            f"tokenizer@{arguments.crop}-{side}",
            "PSNR",
            scores,
            extra={**codes, **columns},
            tools=tools_of(arguments),
        ),
        run=describe_measurement(tokenizer, arguments, prepare),
        expected=expected,
        scored=number,
        files=describe_files(arguments),
    )


def describe_measurement(tokenizer: MeasuredTokenizer, arguments: Namespace, prepare: ImageProcessor) -> dict[str, Any]:
    """What decides the numbers; nothing is prompted, sampled or random but the sentences of zero-shot."""
    sentences = None
    if arguments.text_vocabulary is not None:
        sentences = f"sentences of {arguments.templates.name}" if arguments.templates else "CLIP's 80 sentences"
    return {
        "model": {"fingerprint": tokenizer.name},
        "prompts": sentences,
        "image_format": {"crop": describe_crop(prepare), "file": "png"},
        "versions": tool_versions(),
        **dict.fromkeys(("prompt_style", "decoding", "seed", "questions")),
    }


def tools_of(arguments: Namespace) -> tuple[str, ...]:
    """Packages of others that have a part in the scores."""
    used = {"torch-fidelity": arguments.fid, "open-clip-torch": arguments.classes == IMAGENET_NAMES}
    return tuple(name for name, is_used in used.items() if is_used)


def describe_files(arguments: Namespace) -> dict[str, str]:
    """The pictures by their path, which are too many to read again, and the files that decide a score by their hash."""
    given = {name: getattr(arguments, name) for name in ("lpips", "templates", "text_vocabulary")}
    hashes = {name: fingerprint_of(Path(file)) for name, file in given.items() if file is not None}
    return {"images": str(arguments.images)} | hashes


def measure_fidelity(arguments: Namespace, number: int) -> dict[str, Score]:
    """rFID and IS of the pictures that were written, where they were asked for."""
    if not arguments.fid:
        return {}
    made, real = arguments.output / RECONSTRUCTION, arguments.output / REFERENCE
    found = fidelity(made, real, batch_size=arguments.batch_size)
    names = {"rFID": "rfid", "IS": "inception_score"}
    return {title: without_interval(found[name], number) for title, name in names.items()}


def measure_classes(tokenizer: MeasuredTokenizer, arguments: Namespace, prepare: ImageProcessor) -> dict[str, Score]:
    """Zero-shot accuracy and the linear probe, in percent, as far as they are asked for."""
    scores: dict[str, Score] = {}
    if arguments.class_images is None:
        return scores
    classes = class_names(arguments.class_images, arguments.classes)
    test = labelled_pictures(arguments.class_images, classes)
    if arguments.text_vocabulary is not None:
        if not isinstance(tokenizer, MeasuredUniTok) or not tokenizer.model.config.has_text_tower:
            raise ValueError(f"{tokenizer.name} has no text tower: it cannot read class names; leave zero-shot out")
        config = tokenizer.model.config
        vocabulary = load_captions(
            arguments.text_vocabulary, vocab_size=config.text_vocab_size, context=config.text_context
        )
        templates = read_templates(arguments.templates) if arguments.templates else TEMPLATES
        places = zero_shot_places(
            tokenizer.model,
            vocabulary,
            test,
            names=list(classes.values()),
            templates=templates,
            prepare=prepare,
            batch_size=arguments.batch_size,
        )
        scores |= {f"zero-shot top-{best}": mean_of_many([100.0 * (p < best) for p in places]) for best in RANKS}
    if arguments.probe_images is not None:
        train = labelled_pictures(arguments.probe_images, classes)
        verdicts = probe_verdicts(
            tokenizer, train, test, num_classes=len(classes), prepare=prepare, batch_size=arguments.batch_size
        )
        scores["linear probe top-1"] = mean_of_many([100.0 * right for right in verdicts])
    return scores


def describe_crop(prepare: ImageProcessor) -> str:
    """The crop in words."""
    how = PREPARATIONS[prepare.preparation]
    size = f"{prepare.width} x {prepare.height}"
    match how.resize:
        case "none":
            return f"centre crop {size} without scaling"
        case "direct":
            return f"stretched to {size}, {how.resampling.name.lower()}"
        case _:
            scaled = f"shorter side to {int(min(prepare.width, prepare.height) * how.ratio)}"
            return f"{scaled} ({how.resampling.name.lower()}), centre crop {size}"
