"""Benchmarks of image generation: GenAI-Bench, GenEval, DPG-Bench, T2I-CompBench, MJHQ-30K, class samples.

They are one mechanism: a list of prompts, each drawn several times into the file layout of the official tool. Only
GenAI-Bench (by an image-text scorer) and MJHQ-30K (by clean-fid) are scored here; the official tools of the others need
environments of their own, and what they report is read here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from mllm.evaluation.intervals import mean_with_deviation, means, score_with_interval, without_interval
from mllm.evaluation.protocol import Answers, Benchmark, BenchmarkItem, Score, ScoreOptions, Scores, read_mapping
from mllm.files import (
    append_lines,
    kept_lines,
    need_field,
    read_json,
    read_lines,
    read_text,
    text_lines,
    whole_file,
    write_image,
    write_text,
)
from tokenizer.images import IMAGE_ENDINGS, read_image

if TYPE_CHECKING:
    from mllm.evaluation.image_text_scorers import ImageTextScorer


MAX_NAME = 255
"""Bytes of a file's name on common file systems."""


class Prompt(NamedTuple):
    where: str  # file and line, for error messages
    text: str
    fields: Mapping[str, Any] = {}


class ImageBenchmark(Benchmark):
    """A list of prompts, each drawn `samples` times.

    `id_format` and `output_format` are templates over the fields of a prompt, its `text`, its `index` (from 0) and
    `number` (from 1), the `sample` of the prompt and the `count` of items before.
    """

    mode = "image"
    samples: int = 1
    id_format: ClassVar[str]
    id_type: ClassVar[type] = str
    output_format: ClassVar[str]
    """File of the image within the run folder."""

    def read_prompts(self, questions: Path) -> list[Prompt]:
        """The prompts of the official file; by default one per line, without empty lines."""
        lines = [text.strip() for text in text_lines(questions)]
        for number, text in enumerate(lines, start=1):
            if text.startswith("{") and text.endswith("}"):
                raise ValueError(
                    f"{questions}, line {number} must be a prompt, got a JSON record; give the published text file"
                )
        return [Prompt(f"{questions}, line {number}", text) for number, text in enumerate(lines, start=1) if text]

    def read_items(self, questions: Path, images: Path | None) -> list[BenchmarkItem]:
        items: list[BenchmarkItem] = []
        prompts = self.read_prompts(questions)
        for index, (where, text, fields) in enumerate(prompts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{where} must have a prompt, got {text!r}; write one")
            for sample in range(self.samples):
                numbers = {"index": index, "number": index + 1, "sample": sample, "count": len(items)}
                names = {**fields, "text": text, **numbers}
                id_, output = (template.format_map(names) for template in (self.id_format, self.output_format))
                check_file_name(output, where, num_folders=self.output_format.count("/"))
                more = {**fields, "num_prompts": len(prompts)}
                items.append(BenchmarkItem(id_, where, self.id_type(id_), text, output=output, fields=more))
        if not items:
            raise ValueError(f"{questions} must contain at least one prompt, got none")
        return items


def check_file_name(name: str, where: str, *, num_folders: int) -> None:
    """Refuse an image's name that no file can have, or that leads to another folder, before anything is drawn."""
    parts = name.split("/")
    if longest := [part for part in parts if len(part.encode()) > MAX_NAME]:
        raise ValueError(
            f"{where} must be short enough for the name of a file, at most {MAX_NAME} bytes, got "
            f"{len(longest[0].encode())}; shorten or remove it"
        )
    if not all(parts) or ".." in parts or "\0" in name or len(parts) != num_folders + 1:
        raise ValueError(f"{where} must be usable as the name of a file, got {name!r}; change it")


class GenAIBench(ImageBenchmark):
    """Does an image show what its prompt says, by VQAScore (Lin et al. 2024, Li et al. 2024).

    Two sets that must not be mixed: 527 prompts (the VQAScore paper, Liquid, UniTok) and 1600 (the GenAI-Bench paper).
    genai_skills.json lists the prompts of every skill by number: from 1 in the file of 527, from 0 in that of 1600. The
    headline is the mean of the advanced prompts, the column "Overall" of published tables.
    """

    size: ClassVar[int]
    annotations = "genai_skills.json, together with a --scorer"
    id_format, id_type, output_format = "{number}", int, "images/{number:05d}.png"
    first_numbers: ClassVar[Mapping[int, int]] = {527: 1, 1600: 0}
    """Size of an official set -> the number of its first prompt in the skills file."""
    skills = (
        *("attribute", "scene", "spatial relation", "action relation", "part relation", "basic"),
        *("counting", "comparison", "differentiation", "negation", "universal", "advanced"),
    )
    """In the order of the tables; "basic" and "advanced" contain the skills before them."""

    def read_prompts(self, questions: Path) -> list[Prompt]:
        """One prompt per line; the other official set is refused, so that the name stays true."""
        prompts, num_lines = super().read_prompts(questions), len(text_lines(questions))
        if num_lines in self.first_numbers and num_lines != self.size:
            raise ValueError(f"{questions} must have {self.size} prompts, got {num_lines}; use genai-bench-{num_lines}")
        if empty := num_lines - len(prompts):
            raise ValueError(f"{questions} must have a prompt on every line, got {empty} without one")
        return prompts

    def score(self, answered: Answers, annotations: Path, options: ScoreOptions) -> Scores:
        """Mean, deviation and interval of every skill, as far as its prompts were scored, then of all prompts."""
        if options.scorer is None:
            raise ValueError("GenAI-Bench must be scored by an image-text model, got none; give --scorer, such as self")
        total = answered[0].item.fields["num_prompts"]
        skills = self.read_skills(annotations, total=total)
        values = score_images(answered, options.scorer, options.folder)
        by_number = {int(one.item.question_id): value for one, value in zip(answered, values, strict=True)}
        numbers = {name: skills[name] for name in [*self.skills, *skills] if name in skills}
        numbers["all"] = sorted({number for group in skills.values() for number in group})
        chosen = {name: [by_number[n] for n in group if n in by_number] for name, group in numbers.items()}
        scores = {name: mean_with_deviation(group) for name, group in chosen.items() if group}
        judge = dict(options.scorer.description)
        return Scores(self.protocol(f"vqascore-{judge['name']}", count=total), "advanced", scores, judge=judge)

    def read_skills(self, path: Path, *, total: int) -> dict[str, list[int]]:
        """Prompt numbers, counted from 1, by skill."""
        try:
            as_found = {name: [int(str(value)) for value in values] for name, values in read_json(path).items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} must map skills to prompt numbers ({error}); give genai_skills.json") from error
        everything = {number for values in as_found.values() for number in values}
        first = 0 if 0 in everything else 1 if total in everything else self.first_numbers[self.size]
        for name, numbers in as_found.items():
            if len(set(numbers)) != len(numbers) or not set(numbers) <= set(range(first, total + first)):
                raise ValueError(f"{path}: numbers of {name!r} must be distinct prompts of {total} from {first} on")
        if missing := {"basic", "advanced"} - as_found.keys():
            raise ValueError(f"{path} must contain {' and '.join(sorted(missing))}; give genai_skills.json")
        return {name: [number - first + 1 for number in values] for name, values in as_found.items()}


class GenAIBench527(GenAIBench):
    name, size, official_counts = "genai-bench-527", 527, (527,)


class GenAIBench1600(GenAIBench):
    name, size, official_counts = "genai-bench-1600", 1600, (1600,)


def score_images(answered: Answers, scorer: ImageTextScorer, folder: Path) -> list[float]:
    """How well each image shows its prompt.

    Scores are appended batch by batch to a file of the scorer in the folder, each with the hash of its image and
    prompt: an interrupted scoring resumes, and an image that was drawn again is scored again.
    """
    about = json.dumps(dict(scorer.description), sort_keys=True)
    file = folder / f"scores-{hashlib.sha256(about.encode()).hexdigest()[:12]}.jsonl"
    names = [hashlib.sha256(one.image.read_bytes() + one.item.prompt.encode()).hexdigest()[:16] for one in answered]
    known = {record.get("image") or record["picture"]: record["score"] for _, record in kept_lines(file)}
    missing = [n for n, name in enumerate(names) if name not in known]
    for start in tqdm(range(0, len(missing), scorer.batch_size), desc="scores", disable=not missing):
        batch = missing[start : start + scorer.batch_size]
        scores = scorer([answered[n].image for n in batch], [answered[n].item.prompt for n in batch])
        known |= {names[n]: score for n, score in zip(batch, scores, strict=True)}
        append_lines(file, [{"image": names[n], "score": known[names[n]]} for n in batch])
    return [known[name] for name in names]


# ---- scored by an official tool in an environment of its own ----


class GenEval(ImageBenchmark):
    """Are the objects, counts, colors and positions of a prompt in the image (Ghosh et al. 2023): mean of six tasks."""

    name = "geneval"
    annotations = (
        "results.jsonl of the official tool: `git clone https://github.com/djghosh13/geneval && python "
        "geneval/evaluation/evaluate_images.py RUN --outfile results.jsonl --model-path DETECTOR` in an environment "
        "of its own"
    )
    samples = 4
    official_counts = (553 * samples,)
    id_format, output_format = "{index:05d}/{sample:04d}", "{index:05d}/samples/{sample:04d}.png"
    tasks = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

    def read_prompts(self, questions: Path) -> list[Prompt]:
        lines = read_lines(questions)
        return [Prompt(line.where, need_field(line, "prompt"), {"record": line.record}) for line in lines]

    def score(self, answered: Answers, annotations: Path, options: ScoreOptions) -> Scores:
        """Accuracy of each task in percent, and their mean, from the official results."""
        results: dict[str, list[float]] = defaultdict(list)
        unscored = {str(one.item.output) for one in answered}
        for line in read_lines(annotations):
            name = "/".join(Path(need_field(line, "filename")).parts[-3:])
            if name not in unscored:
                raise ValueError(f"{line.where} must be about an image of this run that is not scored yet, got {name}")
            unscored.remove(name)
            if (task := need_field(line, "tag")) not in self.tasks:
                raise ValueError(f"{line.where} must have a tag of {', '.join(self.tasks)}, got {task!r}; correct it")
            results[task].append(float(bool(need_field(line, "correct"))))
        if unscored:
            raise ValueError(
                f"{annotations} must have results of all {len(answered)} images, got {len(answered) - len(unscored)} "
                f"without {min(unscored)}; let the official tool finish"
            )
        groups = {task: results[task] for task in self.tasks if results[task]}
        overall = score_with_interval(
            list(groups.values()), lambda *tasks, axis: 100 * np.mean([task.mean(axis=axis) for task in tasks], axis=0)
        )
        scores = {"overall": overall, **means(groups)}
        return Scores(self.protocol("official-detector", count=len(answered)), "overall", scores)

    def submit(self, answered: Answers, folder: Path, *, annotations: Path | None, split: Path | None) -> list[Path]:
        """metadata.jsonl in the folder of every prompt, as the official tool reads it."""
        records = {folder / str(one.item.output).split("/")[0]: one.item.fields["record"] for one in answered}
        for prompt_folder, record in records.items():
            write_text(prompt_folder / "metadata.jsonl", json.dumps(record))
        return [prompt_folder / "metadata.jsonl" for prompt_folder in records]


class DPGBench(ImageBenchmark):
    """Dense prompts, judged by questions (Hu et al. 2024): 2 x 2 grids of four images, scored by the official script.

    That script skips the first row of its table and passes over files that fail, so its number may be about fewer
    prompts; the result says how many grids there were.
    """

    name = "dpg-bench"
    annotations = (
        "the results file of the official script: `git clone https://github.com/TencentQQGYLab/ELLA && pip install -r "
        "ELLA/requirements-for-dpg_bench.txt` in its own environment, then its dpg_bench/compute_dpg_bench.py on the "
        "folder grids/ of `mllm evaluate submit`"
    )
    samples = 4
    official_counts = (1065 * samples,)
    id_format, output_format = "{prompt_id}/{sample}", "samples/{prompt_id}/{sample}.png"
    score_line = re.compile(r"DPG-Bench score\D*([0-9]+(?:\.[0-9]+)?)", re.IGNORECASE)

    def read_prompts(self, questions: Path) -> list[Prompt]:
        """One prompt per file <id>.txt of the folder."""
        files = sorted(questions.glob("*.txt")) if questions.is_dir() else []
        if not files:
            raise FileNotFoundError(f"{questions} must be the folder of prompts <id>.txt, got none there")
        return [Prompt(str(file), read_text(file).strip(), {"prompt_id": file.stem}) for file in files]

    def score(self, answered: Answers, annotations: Path, options: ScoreOptions) -> Scores:
        found = self.score_line.findall(read_text(annotations))
        if not found:
            raise ValueError(f"{annotations} must contain a line 'DPG-Bench score'; give the script's results file")
        grids = len({one.item.fields["prompt_id"] for one in answered})
        extra = {"grids": grids, "interval": "none: the official script gives one number"}
        scores = {"overall": without_interval(float(found[-1]), grids)}
        return Scores(self.protocol("official-mplug", count=len(answered)), "overall", scores, extra=extra)

    def submit(self, answered: Answers, folder: Path, *, annotations: Path | None, split: Path | None) -> list[Path]:
        """grids/<id>.png for each prompt that has all four images."""
        files: dict[str, list[Path]] = defaultdict(list)
        for one in answered:
            files[one.item.fields["prompt_id"]].append(one.image)
        paths = {folder / "grids" / f"{name}.png": four for name, four in files.items() if len(four) == self.samples}
        for path, four in paths.items():
            images = [np.asarray(read_image(file)) for file in four]
            rows = [np.concatenate(images[start : start + 2], axis=1) for start in (0, 2)]
            write_image(path, Image.fromarray(np.concatenate(rows)))
        return list(paths)


class T2ICompBench(ImageBenchmark):
    """Attributes, relations and compositions (Huang et al. 2023), one run per category, such as color_val.txt.

    The official evaluators (BLIP-VQA, UniDet, CLIPScore, 3-in-1) write vqa_result.json, which is averaged here.
    """

    name = "t2i-compbench"
    annotations = (
        "vqa_result.json of the official evaluator of this category, run on the run folder: `git clone "
        "https://github.com/Karine-Huang/T2I-CompBench && pip install -r T2I-CompBench/requirements.txt` in its own "
        "environment"
    )
    samples = 10
    official_counts = (300 * samples,)
    id_format, id_type, output_format = "{count}", int, "samples/{text}_{count:06d}.png"

    def score(self, answered: Answers, annotations: Path, options: ScoreOptions) -> Scores:
        records = read_json(annotations)
        if not isinstance(records, list) or len(records) != len(answered):
            found = len(records) if isinstance(records, list) else type(records).__name__
            raise ValueError(f"{annotations} must have one answer for each of {len(answered)} images, got {found}")
        try:
            values = [float(record["answer"]) for record in records]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{annotations} must have a number as every answer, got {error}; give vqa_result.json"
            ) from error
        return Scores(self.protocol("official", count=len(answered)), "overall", means({"overall": values}, scale=1))


class ClassSamples(ImageBenchmark):
    """Class-conditional samples for ADM's evaluator (Dhariwal and Nichol 2021): gFID, sFID, IS, precision, recall.

    Published numbers are over 50,000 random classes. The evaluator is TensorFlow and has its own environment.
    """

    name = "class-samples"
    annotations = (
        "nothing: ADM's evaluator scores these samples. Write them with `mllm evaluate submit`, then `git clone "
        "https://github.com/openai/guided-diffusion && pip install -r guided-diffusion/evaluations/requirements.txt` "
        "in its own environment and `python guided-diffusion/evaluations/evaluator.py VIRTUAL_imagenet256_labeled.npz "
        "SAMPLES.npz`"
    )
    task = "draw_class"
    id_format, id_type, output_format = "{number}", int, "images/{number:06d}.png"

    def read_prompts(self, questions: Path) -> list[Prompt]:
        prompts = super().read_prompts(questions)
        for where, text, _ in prompts:
            if not text.isdecimal():
                raise ValueError(f"{where} must be a class number, got {text!r}")
        return [Prompt(where, f"class {int(text)}", {"class": int(text)}) for where, text, _ in prompts]

    def score(self, answered: Answers, annotations: Path, options: ScoreOptions) -> Scores:
        raise ValueError(f"--annotations must be {self.annotations}")

    def submit(self, answered: Answers, folder: Path, *, annotations: Path | None, split: Path | None) -> list[Path]:
        """samples_<M>x<H>x<W>x3.npz with `arr_0` (uint8 images) and `arr_1` (classes)."""
        files = [one.image for one in answered]
        width, height = read_image(files[0]).size
        images_MHW3 = np.empty((len(files), height, width, 3), dtype=np.uint8)
        for image_HW3, file in zip(images_MHW3, files, strict=True):
            image_HW3[:] = np.asarray(read_image(file))
        path = folder / f"samples_{len(files)}x{height}x{width}x3.npz"
        labels_M = np.array([one.item.fields["class"] for one in answered], dtype=np.int64)
        with whole_file(path) as unfinished, unfinished.open("wb") as archive:
            np.savez(archive, arr_0=images_MHW3, arr_1=labels_M)
        return [path]


class MJHQ30K(ImageBenchmark):
    """FID against 30,000 images of a high aesthetic standard, over all and per category (Li et al. 2024).

    FID is clean-fid's in its default mode. Format and size of the files matter to it, so the protocol names them:
    UniTok compared JPEG files with references of 256 pixels, Liquid PNG files with the original ones.
    """

    name = "mjhq-30k"
    annotations = "the folder of reference images, one folder per category"
    official_counts = (30000,)
    id_format, output_format = "{name}", "images/{category}/{name}.png"

    def read_prompts(self, questions: Path) -> list[Prompt]:
        records = read_mapping(questions, "prompt", "category", name="meta_data.json")
        fields = {name: {"name": name, "category": record["category"]} for name, record in records.items()}
        return [Prompt(f"{questions}, record {name}", records[name]["prompt"], fields[name]) for name in records]

    def score(self, answered: Answers, annotations: Path, options: ScoreOptions) -> Scores:
        try:
            from cleanfid.fid import compute_fid
        except ImportError as error:
            raise ImportError(
                f"clean-fid must be installed ({error}); `pip install 'mllm-toolkit[eval-images]'` in its own "
                "environment"
            ) from error
        counts = Counter(one.item.fields["category"] for one in answered)
        for name in counts:
            if not (annotations / name).is_dir():
                raise FileNotFoundError(f"{annotations} must contain one folder per category, got no {name!r}")
        references, made = describe_references(annotations), options.folder / "images"
        scores: dict[str, Score] = {"FID": without_interval(compute_fid(str(annotations), str(made)), len(answered))}
        for name in sorted(counts):
            fid = compute_fid(str(annotations / name), str(made / name))
            scores[f"FID {name}"] = without_interval(fid, counts[name])
        extra, protocol = {"interval": "none: FID is a number of a complete set"}, f"clean-fid-png-against-{references}"
        return Scores(self.protocol(protocol, count=len(answered)), "FID", scores, extra=extra, tools=("clean-fid",))


def describe_references(folder: Path) -> str:
    """Format and size of the reference images, such as jpg-256x256: published numbers differ in both."""
    files = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS]
    if not files:
        raise FileNotFoundError(f"{folder} must contain reference images, got none; give their folder")
    sizes = set()
    for path in files:
        try:
            with Image.open(path) as image:
                sizes.add(image.size)
        except (OSError, SyntaxError) as error:
            raise ValueError(f"cannot open reference {path} ({type(error).__name__}); download it again") from error
    formats = "-".join(sorted({path.suffix.lower().lstrip(".") for path in files}))
    return f"{formats}-{'{}x{}'.format(*sizes.pop()) if len(sizes) == 1 else 'mixed-sizes'}"
