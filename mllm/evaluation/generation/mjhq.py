"""MJHQ-30K: FID against 30,000 pictures of a high aesthetic standard, over all and per category (Li et al. 2024).

Question file: `meta_data.json`, name -> category and prompt. Pictures are written as images/<category>/<name>.png.
`--annotations` is the folder of reference pictures, one folder per category. FID is clean-fid's in its default mode
(`clean`); format and size of the files matter to it, so the protocol names them: UniTok compared JPEG files with
references of 256 pixels, Liquid PNG files with the original ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from mllm.evaluation.intervals import without_interval
from mllm.evaluation.protocol import Answered, Benchmark, Item, ScoreOptions, Scores
from mllm.files import read_json
from tokenizer.images import IMAGE_ENDINGS

ComputeFid = Callable[[str, str], float]


def read_items(questions: Path, images: Path | None) -> list[Item]:
    """One item for each record."""
    records = read_json(questions)
    if not isinstance(records, dict) or not records:
        raise ValueError(f"{questions} holds no prompts: found {type(records).__name__}; give meta_data.json")
    items = []
    for name, record in records.items():
        where = f"{questions}, record {name}"
        if not isinstance(record, dict) or not record.get("prompt") or not record.get("category"):
            raise ValueError(f"{where} has no prompt and category: found {record!r}; give meta_data.json as published")
        output = f"images/{record['category']}/{name}.png"
        items.append(Item(name, where, name, record["prompt"], output=output, fields={"category": record["category"]}))
    return items


def score(answered: Sequence[Answered], options: ScoreOptions) -> Scores:
    """FID over all pictures, then of each category alone."""
    if options.annotations is None or options.folder is None:
        raise ValueError("MJHQ-30K compares with pictures: found no folder of them; give it as --annotations")
    compute = need_clean_fid()
    categories = sorted({one.item.fields["category"] for one in answered})
    if missing := [name for name in categories if not (options.annotations / name).is_dir()]:
        raise FileNotFoundError(
            f"{options.annotations} has no references of {missing[0]!r}: found no folder of that name; give the folder "
            "that holds one folder per category"
        )
    references = describe_references(options.annotations)
    made = options.folder / "images"
    scores = {"FID": without_interval(compute(str(options.annotations), str(made)), len(answered))}
    for name in categories:
        count = sum(one.item.fields["category"] == name for one in answered)
        scores[f"FID {name}"] = without_interval(compute(str(options.annotations / name), str(made / name)), count)
    protocol = BENCHMARK.protocol(f"clean-fid-png-against-{references}", count=len(answered))
    extra = {"interval": "none: FID is a number of a whole set"}
    return Scores(protocol, "FID", scores, extra=extra, tools=("clean-fid",))


def describe_references(folder: Path) -> str:
    """Format and size of the reference pictures, such as jpg-256x256: published numbers differ in both."""
    files = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS]
    if not files:
        raise FileNotFoundError(f"{folder} holds no reference pictures: found no picture file; give their folder")
    formats = sorted({path.suffix.lower().lstrip(".") for path in files})
    sizes = {picture_size(path) for path in files}
    width, height = sizes.pop()
    return f"{'-'.join(formats)}-{'mixed-sizes' if sizes else f'{width}x{height}'}"


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height, from the head of the file."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} does not open: found {type(error).__name__}; get the reference anew") from error


def need_clean_fid() -> ComputeFid:
    """clean-fid's function, or how to get it."""
    try:
        from cleanfid.fid import compute_fid
    except ImportError as error:
        raise ImportError(
            f"FID of MJHQ-30K needs clean-fid: found none ({error}); `pip install 'mllm-toolkit[eval-images]'` in an "
            "environment whose torchvision fits its torch"
        ) from error
    return compute_fid


BENCHMARK = Benchmark(
    name="mjhq-30k",
    summary="MJHQ-30K: meta_data.json; scored by clean-fid against the folder of reference pictures",
    read_items=read_items,
    score=score,
    official_counts=(30000,),
    mode="image",
    needs_annotations=False,
)
