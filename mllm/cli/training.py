"""`mllm demo`, `prepare`, `train` and `merge`: verbs whose work is above `mllm`.

`demo` and `train` import `mllm`, never the reverse, so their functions are found by name when a verb runs.
"""

import importlib
import textwrap
from argparse import Namespace
from itertools import takewhile
from pathlib import Path

from mllm.cli.main import MODEL, command, image_size, option, port_number, positive_count, seed_number
from mllm.files import read_text, require_new, whole_folder

FORMATS = tuple("codes llava chat mmc4 cauldron obelics edit vqa captions classes instruct text".split())
"""The names in train/data/formats.py; written out, so that help imports nothing of `train`."""


@command(
    "demo",
    "Chat with the model in the browser.",
    "--port 7861",
    *MODEL,
    option("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 means all addresses"),
    option("--port", type=port_number, help="port to listen on (default: the first free one from 7860)"),
    option("--share", action="store_true", help="also create a public link through Gradio's servers"),
)
def demo(options: Namespace) -> None:
    importlib.import_module("demo.app").serve(options)


@command(
    "prepare",
    "Convert records of text and images to training shards. The format is detected: chats, captioned images,\n"
    "questions, edits and documents, in tars, JSON, Parquet, tables, folders and saved data sets. Run the same\n"
    "command again to resume. To use several processes, start it with torchrun or accelerate launch.",
    "captions.tar chats.jsonl --out data/mixed --image-tokenizer runs/tokenizer/final",
    option("sources", nargs="*", type=Path, metavar="SRC", help="file of records, or folder of records or images"),
    option("--out", type=Path, required=True, metavar="DIR", help="output folder"),
    option("--image-tokenizer", type=Path, metavar="T", help="folder of an image tokenizer or model, or released file"),
    option("--model", metavar="FOLDER", help="model whose image tokenizer and sizes are used (default: bundled)"),
    option("--format", choices=(*FORMATS, "webdataset"), metavar="NAME", help=f"of all sources: {', '.join(FORMATS)}"),
    option("--map", metavar="NAME=COLUMN,...", help="column names, such as caption=prompt,image=img_path"),
    option("--images", type=Path, metavar="DIR", help="folder that relative image paths start from"),
    option("--size", type=image_size, metavar="WxH", help="size of all images in pixels (default: the model's)"),
    option("--preparation", help="how images are resized: cover (default), stretch, crop ..."),
    option("--shard-size", type=positive_count, default=2048, metavar="N", help="records per shard (default: 2048)"),
    option("--batch-size", type=positive_count, default=64, metavar="N", help="images encoded at once (default: 64)"),
    option("--num-workers", type=positive_count, default=4, metavar="N", help="threads that load images (default: 4)"),
    option("--skip-broken", action="store_true", help="skip invalid records, and list and count them"),
    option("--device", help="device to run on, such as cpu or cuda (default: a GPU if there is one)"),
    option("--show", type=positive_count, metavar="N", help="print N samples and save their images"),
    option("--seed", type=seed_number, default=0, help="random seed for --show (default: 0)"),
)
def prepare(options: Namespace) -> None:
    if not options.sources and options.show is None:
        raise ValueError("SRC or --show must be given, got neither; name files of records or folders")
    module = importlib.import_module("train.data.prepare")
    if options.sources:
        module.prepare(options)
    if options.show is not None:
        module.show(options)


@command(
    "merge",
    "Merge a trained adapter into its base model and write an ordinary model folder.",
    "runs/lora/final -o runs/lora/model",
    option("adapter", type=Path, metavar="ADAPTER", help="folder `final` or checkpoint of a training with an adapter"),
    option("-o", "--output", type=Path, required=True, metavar="FOLDER", help="output folder for the merged model"),
    option("--base", metavar="FOLDER", help="base model (default: the one named in the config of the adapter)"),
)
def merge(options: Namespace) -> None:
    require_new(options.output)
    module = importlib.import_module("train.lora")
    with whole_folder(options.output) as folder:
        module.merge_folder(options.adapter, folder, base=options.base)
    print(f"{options.output}: the merged model")


TRAIN_HELP = """usage: mllm train RECIPE [--key value ...]

Run the training that a recipe describes. If its output folder contains a checkpoint, training resumes from the latest
one. RECIPE is a YAML file or the name of a recipe of the toolkit:

{recipes}

Every key of the recipe can be set with --key value.

example: mllm train tiny_tokenizer --output runs/tokenizer --steps 200"""


def summary(recipe: Path) -> str:
    """The name of a recipe, and the first sentence of the comment at its head."""
    comment = takewhile(lambda line: line.startswith("# "), read_text(recipe).splitlines())
    sentence = " ".join(line[2:] for line in comment).split(". ")[0].rstrip(".")
    return textwrap.fill(f"{recipe.stem:<27}{sentence}", 118, initial_indent="  ", subsequent_indent=" " * 29)


def train(words: list[str]) -> int:
    """`mllm train`: its options are the keys of the recipe, so the words go on unparsed."""
    if words[:1] in (["-h"], ["--help"]):
        recipes = (Path(__file__).parents[2] / "train" / "recipes").glob("*.yaml")
        print(TRAIN_HELP.format(recipes="\n".join(map(summary, sorted(recipes)))))
        return 0
    return importlib.import_module("train.run").main(words)
