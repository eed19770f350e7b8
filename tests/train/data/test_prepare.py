"""Preparing data: what comes out, that nothing is done twice, and that killing it at any moment changes nothing."""

import dataclasses
import gzip
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mllm.cli.main import main
from mllm.conversation import CodesPart, TextPart, render
from mllm.files import UNFINISHED
from tests.train.data import raw_data
from tests.train.data.raw_data import image_file, lines, prepare_with, rows_of, tar_of
from tests.train.launching import run_program
from tokenizer.images import ImageProcessor, read_image, to_images
from tokenizer.unitok import UniTok
from train.data.mixture import choose_sample
from train.data.prepare import as_text, read_tasks
from train.data.records import Record
from train.data.shards import MANIFEST, SHARDS, CodeSource, ShardFolder

COUNT = 11
Prepare = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def prepare(image_tokenizer: UniTok) -> Prepare:
    return partial(prepare_with, image_tokenizer)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "data"
    raw_data.write_raw(folder, COUNT)
    return folder


@pytest.fixture(scope="module")
def whole(raw: Path, prepare: Prepare, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare(raw, out=out)
    return out


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of each file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_every_record_comes_out_with_the_codes_of_its_images(whole: Path, raw: Path, image_tokenizer: UniTok) -> None:
    process, folder = ImageProcessor(height=32, width=32), ShardFolder(whole)
    rows = [folder[index] for index in range(len(folder))]
    assert len(rows) == 4 * COUNT and len(folder.names) == 4 * 3
    for row in rows:
        number = int(row.place) if row.source.endswith("tar") else int(row.place.split()[1]) - 1
        parts = [part for message in row.messages for part in message.parts]
        name = Path(row.source).name
        expected = {
            "captions.tar": ("pair", [f"caption {number}"]),
            "llava.json": ("chat", [f"question {number}", f"answer {number}"]),
            "documents.jsonl": ("document", [f"before {number}", "after"]),
            "text.jsonl": ("document", [f"text {number}"]),
        }[name]
        assert (row.kind, [part.text for part in parts if isinstance(part, TextPart)]) == expected
        codes = [part for part in parts if isinstance(part, CodesPart)]
        assert len(codes) == (name != "text.jsonl")
        if codes:
            image = read_image(image_file(number if name == "captions.tar" else 100 + number))
            reference_KN = image_tokenizer.encode(process(image))[0]
            assert codes[0].grid == (2, 2) and codes[0].codes_KN.tolist() == reference_KN.tolist()


def test_running_it_again_makes_only_what_is_missing(whole: Path, raw: Path, prepare: Prepare, tmp_path: Path) -> None:
    """Sources may come one by one, files be left half written by a killed process, and shards be lost."""
    out = tmp_path / "out"
    for place in ("tasks/text-0.json", "shards/text-0.parquet", "prepare.json"):
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        (out / f"{place}.123{UNFINISHED}").write_text('{"tasks": [')
    for name in ("text.jsonl", "captions.tar", "llava.json", "documents.jsonl"):
        prepare(raw / name, out=out)
    assert rows_of(out) == rows_of(whole) and not list(out.rglob(f"*{UNFINISHED}"))
    lost = read_tasks(out)[4].shard
    (out / "tasks").rename(out / "plan")  # as older versions wrote it
    for path in (out / "plan").iterdir():
        path.write_text(path.read_text().replace('"tasks": [', '"units": [').replace('"count"', '"offset": 7, "count"'))
    before = state(out / SHARDS)
    (out / SHARDS / lost).unlink()
    made = prepare(raw, out=out)
    assert (made["records"], len(made["shards"]), made["left_out"]) == (4 * COUNT, 12, 0)
    after = state(out / SHARDS)
    assert after.pop(lost)[1] == before.pop(lost)[1] and after == before
    assert rows_of(out) == rows_of(whole)


def prepare_slowly(raw: Path, out: Path, tokenizer: UniTok) -> None:
    """What the killed process does: one record a shard, and every file system call takes its time."""
    torch.set_num_threads(1)
    replace = os.replace

    def slow_replace(source: str, target: str) -> None:
        time.sleep(random.random() * 0.02)
        replace(source, target)
        time.sleep(random.random() * 0.02)

    os.replace = slow_replace
    prepare_with(tokenizer, raw, out=out, size=1)


def test_killed_five_times_it_ends_alike(raw: Path, prepare: Prepare, image_tokenizer: UniTok, tmp_path: Path) -> None:
    """Killed without warning after a random number of shards and a random time more."""
    out, straight, rng = tmp_path / "out", tmp_path / "straight", random.Random(3)
    seen = set()
    for kill in range(5):
        child = multiprocessing.get_context("fork").Process(target=prepare_slowly, args=(raw, out, image_tokenizer))
        child.start()
        wanted = kill * 6 + rng.randrange(6)
        while child.is_alive() and len(list((out / SHARDS).glob("*.parquet"))) < wanted:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        assert child.is_alive() and child.pid is not None, "it finished before it was killed"
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        seen.add(len(list((out / SHARDS).glob("*.parquet"))))
    assert len(seen) > 2 and not (out / MANIFEST).exists()
    finished = state(out / SHARDS)
    assert prepare(raw, out=out, size=1)["records"] == 4 * COUNT
    after = state(out / SHARDS)
    assert all(after[name] == kept for name, kept in finished.items() if not name.endswith(UNFINISHED))
    assert not list(out.rglob(f"*{UNFINISHED}"))
    prepare(raw, out=straight, size=1)
    contents = ({name: data for name, (_, data) in files.items()} for files in (after, state(straight / SHARDS)))
    assert next(contents) == next(contents)
    assert rows_of(out) == rows_of(straight)


@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
@pytest.mark.slow
def test_several_processes_make_the_same_shards(
    launcher: str, whole: Path, raw: Path, image_tokenizer_folder: Path, tmp_path: Path
) -> None:
    processes = ["--nproc_per_node=3"] if "torch" in launcher else ["--cpu", "--num_processes=3", "--num_machines=1"]
    words = ["-m", launcher, *processes, "-m", "mllm", "prepare", str(raw), "--out", str(tmp_path / "out")]
    words += ["--image-tokenizer", str(image_tokenizer_folder), "--shard-size", "4", "--batch-size", "5"]
    assert f"{4 * COUNT} records in 12 shards" in run_program(sys.executable, *words)
    assert rows_of(tmp_path / "out") == rows_of(whole)


def test_broken_records_end_it_or_are_left_out_if_allowed(prepare: Prepare, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    (raw / "good.png").write_bytes(image_file(1))
    (raw / "bad.png").write_bytes(image_file(1)[:30])
    records = [{"image": f"{name}.png", "caption": name} for name in ("good", "bad", "none", "good")]
    (raw / "pairs.jsonl").write_text(lines(records) + '\n{"image": \n' + lines(records[:1]))
    (raw / "half.jsonl").write_text(lines([{"image": "no.png", "text": "a"}, {"image": "good.png", "text": "\ud83d"}]))
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 2: .*bad.png"):
        prepare(raw / "pairs.jsonl", out=tmp_path / "pairs")
    with pytest.raises(ValueError, match=r"2 left out, line 2: .*surrogate"):  # nothing is left
        prepare(raw / "half.jsonl", out=tmp_path / "none", skip_broken=True)
    assert not list(tmp_path.rglob(MANIFEST))
    for _ in range(2):
        made = prepare(raw / "pairs.jsonl", out=out, skip_broken=True)
        assert (made["records"], len(made["shards"]), made["left_out"]) == (3, 2, 3)
    left_out = [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]
    listed = {record["place"]: record["reason"] for record in left_out}
    assert sorted(listed) == ["line 2", "line 3", "line 6"]
    assert "bad.png" in listed["line 2"] and "none.png" in listed["line 3"] and "JSON" in listed["line 6"]
    assert [place for *_, place in rows_of(out)] == ["line 1", "line 4", "line 7"]


def test_all_files_are_read_or_named(prepare: Prepare, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tars, images = tmp_path / "raw" / "tars", tmp_path / "raw" / "images"
    for folder in (tars, images):
        folder.mkdir(parents=True)
    members = {f"{n}.{ending}": data for n in range(3) for ending, data in (("png", image_file(n)), ("txt", b"a"))}
    (tars / "captions.tar").write_bytes(tar_of(members))
    (tars / "c.tar.gz").write_bytes(gzip.compress(tar_of(members)))
    # as img2dataset writes tars
    pq.write_table(pa.table({"url": ["http://x/y.jpg"], "caption": ["red"]}), tars / "captions.parquet")
    (tars / "captions_stats.json").write_text('{"count": 3}')
    (tars / "notes.doc").write_text("?")
    assert prepare(tars, out=tmp_path / "1")["records"] == 6
    assert "3 in all" in caplog.text and "captions.parquet, captions_stats.json, notes.doc" in caplog.text
    # as it writes images into the Parquet file
    parquet = tmp_path / "raw" / "parquet"
    parquet.mkdir()
    pq.write_table(pa.table({"jpg": [image_file(0)], "caption": ["red"]}), parquet / "00000.parquet")
    (parquet / "00000_stats.json").write_text('{"count": 1}')
    assert prepare(parquet, out=tmp_path / "3")["records"] == 1
    for ending in ("png", "bmp", "gif", "tif", "jfif", "JPG"):
        Image.new("RGB", (32, 32), "red").save(images / f"{ending}.{ending}")
        (images / f"{ending}.{'TXT' if ending == 'JPG' else 'txt'}").write_text(ending)
    (images / "x.heic").write_bytes(b"?")
    (images / "._x.jpg").write_bytes(b"what a system left")
    (images / "link").symlink_to(tars)
    assert prepare(images, out=tmp_path / "2")["records"] == 6
    assert "x.heic, link" in caplog.text and "got HEIC; convert it" in caplog.text
    (tmp_path / "raw" / "heic").mkdir()
    (images / "x.heic").rename(tmp_path / "raw" / "heic" / "X.HEIC")
    (tmp_path / "raw" / "heic.tar").write_bytes(tar_of({"x.HEIC": b"?", "x.txt": b"a"}))
    for name in ("heic", "heic.tar"):
        with pytest.raises(ValueError, match="got HEIC; convert it"):
            prepare(tmp_path / "raw" / name, out=tmp_path / name)


def test_codes_in_records_are_kept_and_an_image_of_several_records_is_encoded_once(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = [[1, 2, 3, 4], [15, 6, 7, 0]]
    for name, number in (("a", 1), ("same", 1), ("b", 2)):
        (tmp_path / f"{name}.png").write_bytes(image_file(number))
    names = ["a", "same", "b", "a", "b", "same"]
    source = tmp_path / "a.jsonl"
    source.write_text(lines({"image": f"{name}.png", "caption": "x"} for name in names))
    encoded: list[int] = []
    encode = UniTok.encode
    monkeypatch.setattr(UniTok, "encode", lambda self, pixels: encoded.append(len(pixels)) or encode(self, pixels))
    prepare(source, out=tmp_path / "images", size=10)
    assert sum(encoded) == 2
    found = [row[1].partition("assistant")[2] for row in rows_of(tmp_path / "images")]
    assert [one == found[0] for one in found] == [name != "b" for name in names] and found[2] == found[4]
    for number, given in enumerate((codes, [[1] * 4] * 3, [[1] * 4, [16] * 4])):
        record = {"text": "a circle", "vqcode_256": json.dumps(given)}
        source.write_text(lines({"data_type": kind, **record} for kind in ("T2I", "I2T")))
        if number:  # not codes of this tokenizer
            with pytest.raises(ValueError, match="a.jsonl, line 1: "):
                prepare(source, out=tmp_path / f"out{number}")
        else:
            prepare(source, out=tmp_path / "out")
    folder = ShardFolder(tmp_path / "out")
    for part in (folder[0].messages[1].parts[0], folder[1].messages[0].parts[0]):
        assert part.codes_KN.tolist() == codes and part.grid == (2, 2)


def test_what_does_not_fit_the_folder_is_refused(
    whole: Path, raw: Path, prepare: Prepare, image_tokenizer_folder: Path, tmp_path: Path
) -> None:
    other, out = UniTok.from_pretrained(image_tokenizer_folder), tmp_path / "out"
    with torch.no_grad():
        other.quantizer.codebooks.add_(0.1)
    source = tmp_path / "text.jsonl"
    source.write_text(lines([{"text": "a"}]))
    prepare(source, out=out, name="text")
    for refused in (
        partial(prepare, raw, out=whole, size=5),
        partial(prepare_with, other, raw, out=whole),
        partial(prepare, tmp_path / "none", out=out),
        partial(prepare, raw, out=raw.parent),
        partial(prepare, source, out=out, name="llava"),
    ):
        with pytest.raises((ValueError, FileNotFoundError)):
            refused()
    source.write_text(lines([{"text": "b"}]))
    with pytest.raises(ValueError, match="text.jsonl"):
        prepare(source, out=out)
    source.write_text("{")  # a failure that leaves no shard: any setting may be changed after it
    with pytest.raises(ValueError, match="text.jsonl"):
        prepare(source, out=tmp_path / "again", size=5)
    source.write_text(lines([{"text": "b"}] * 5))
    prepare(source, out=tmp_path / "again", size=2)
    assert len(list((tmp_path / "again/shards").iterdir())) == 3


def test_samples_are_printed_with_their_images(
    image_tokenizer_folder: Path, image_tokenizer: UniTok, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = raw_data.pair(["a circle"], code_source := CodeSource.of(image_tokenizer), seed=4)
    out = raw_data.prepared(tmp_path / "out", [[], [row]], code_source)
    words = ["--out", str(out), "--image-tokenizer", str(image_tokenizer_folder), "--show", "2", "--seed", "1"]
    assert main(["prepare", *words]) == 0
    printed = capsys.readouterr().out
    assert printed.count("from made.tar, 4") == 2 and "ASSISTANT:[[<image 1: 2 x 2></s>]]" in printed
    codes_1KN = torch.from_numpy(row.messages[1].parts[0].codes_KN.astype(np.int64))[None]
    expected = to_images(image_tokenizer.decode(codes_1KN))[0]
    for number in (1, 2):
        shown = Image.open(out / "samples" / f"sample-{number}-1.png")
        assert np.array_equal(np.asarray(shown), np.asarray(expected))


def test_each_kind_is_learned_in_its_way() -> None:
    source, kept = CodeSource("any", 2, 16), {"prompt_dropout": 0.0, "describe_share": 0.0}

    def shown(record: Record, style: str = "native", **options: float) -> str:
        return as_text(render(choose_sample(record, Random(0), **{**kept, **options}), style), in_color=False)

    record = raw_data.pair(["a circle"], source, 1)
    assert shown(record, describe_share=1.0) == "<s>USER:<image 1: 2 x 2> ASSISTANT:[[ a circle</s>]]"
    assert shown(record, prompt_dropout=1.0) == "<s>USER: <unconditional> ASSISTANT:[[<image 1: 2 x 2></s>]]"
    assert shown(raw_data.document("once"), "unitok", prompt_dropout=1.0) == "<s>[[ once</s>]]"
    labelled = dataclasses.replace(raw_data.pair(["3"], source, 1), kind="class")
    assert shown(labelled, "class") == "<class 3>[[<image 1: 2 x 2>]]"
    assert shown(labelled, "class", prompt_dropout=1.0) == "<no class>[[<image 1: 2 x 2>]]"
    row = raw_data.pair(["short", "a long one"], source, 1)
    taken = [choose_sample(row, Random(number), **kept)[0].parts[0].text for number in range(1000)]
    assert set(taken) == {"short", "a long one"} and abs(taken.count("short") - 200) < 40
