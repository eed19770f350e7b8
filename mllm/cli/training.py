"""`mllm demo`, `prepare`, `train` and `merge`: verbs whose work is above `mllm`.

`demo` and `train` import `mllm`, never the reverse, so their functions are found by name when a verb runs.
"""

import importlib
from argparse import Namespace
from pathlib import Path

from mllm.cli.main import MODEL, command, image_size, option, port_number, positive_count, seed_number
from mllm.files import require_new, whole_folder

FORMATS = tuple("codes llava chat mmc4 cauldron obelics edit vqa captions classes instruct text".split())
"""The names in train/data/formats.py; written out, so that help imports nothing of `train`."""


@command(
    "demo",
    "Chat with the model in the browser.",
    "--port 7861",
    *MODEL,
    option("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every address"),
    option("--port", type=port_number, help="port to listen on (default: the first free one from 7860)"),
    option("--share", action="store_true", help="also create a public link, through a server of Gradio"),
)
def demo(options: Namespace) -> None:
    importlib.import_module("demo.app").serve(options)


@command(
    "prepare",
    "Turn records of text and images into training shards. Formats are detected: chats, captioned images, questions,\n"
    "edits, documents ... in tars, JSON, Parquet, tables, folders and saved data sets. Run it again to resume after\n"
    "an interruption; torchrun or accelerate launch share the work.",
    "captions.tar chats.jsonl --out data/mixed --image-tokenizer runs/tokenizer/final",
    option("sources", nargs="*", type=Path, metavar="SRC", help="a file of records, or a folder of them"),
    option("--out", type=Path, required=True, metavar="DIR", help="folder of the shards"),
    option("--image-tokenizer", type=Path, metavar="T", help="folder of an image tokenizer or model, or released file"),
    option("--model", metavar="FOLDER", help="a model: its image tokenizer and sizes (default: the bundled model)"),
    option("--format", choices=(*FORMATS, "webdataset"), metavar="NAME", help=f"of all sources: {', '.join(FORMATS)}"),
    option("--map", metavar="NAME=COLUMN,...", help="names of columns, such as caption=prompt,image=img_path"),
    option("--images", type=Path, metavar="DIR", help="folder of the images that records name"),
    option("--size", type=image_size, metavar="WxH", help="size of all images (default: the model's)"),
    option("--preparation", help="how an image gets to its size: cover (default), stretch, crop ..."),
    option("--shard-size", type=positive_count, default=2048, metavar="N", help="records per shard (default: 2048)"),
    option("--batch-size", type=positive_count, default=64, metavar="N", help="images encoded at once (default: 64)"),
    option("--num-workers", type=positive_count, default=4, metavar="N", help="threads that open images (default: 4)"),
    option("--skip-broken", action="store_true", help="leave broken records out, list and count them"),
    option("--device", help="where to compute, such as cpu or cuda (default: a GPU if there is one)"),
    option("--show", type=positive_count, metavar="N", help="print N samples and save their images"),
    option("--seed", type=seed_number, default=0, help="which samples are shown"),
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
    "Merge a trained adapter into the model it was trained on; the result is a model like any other.",
    "runs/lora/final -o runs/lora/model",
    option("adapter", type=Path, metavar="ADAPTER", help="folder `final` (or a checkpoint) of a run with an adapter"),
    option("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where to write the model folder"),
    option("--base", metavar="FOLDER", help="the model under the adapter (default: the one its config names)"),
)
def merge(options: Namespace) -> None:
    require_new(options.output)
    module = importlib.import_module("train.lora")
    with whole_folder(options.output) as folder:
        module.merge_folder(options.adapter, folder, base=options.base)
    print(f"the merged model is in {options.output}")


TRAIN_HELP = """usage: mllm train RECIPE [--key value ...]

Train what a recipe describes, or resume from the latest checkpoint in its output folder. RECIPE is a YAML file or the
name of a recipe of the toolkit: {recipes}. Every key can be set by --key value.

example: mllm train tiny_tokenizer --output runs/tokenizer --steps 200"""


def train(words: list[str]) -> int:
    """`mllm train`: its options are the keys of the recipe, so the words go on unparsed."""
    if words[:1] in (["-h"], ["--help"]):
        recipes = (Path(__file__).parents[2] / "train" / "recipes").glob("*.yaml")
        print(TRAIN_HELP.format(recipes=", ".join(sorted(path.stem for path in recipes))))
        return 0
    return importlib.import_module("train.run").main(words)
