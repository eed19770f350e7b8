"""Preparing data: what comes out, that nothing is done twice, and that killing it at any moment changes nothing."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mllm.conversation import CodesPart, TextPart
from mllm.files import UNFINISHED
from tests.train.data.raw_data import OPTIONS, content, image_file, load, rows_of, write_raw
from tokenizer.images import ImageProcessor, read_image
from tokenizer.unitok import UniTok
from train.data.prepare import PrepareOptions, ShardMaker, Totals, prepare_folder, read_tasks
from train.data.shards import MANIFEST, SHARDS, CodeSource, ShardFolder, write_shard

ROOT = Path(__file__).resolve().parents[3]
COUNT = 11


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "data"
    write_raw(folder, COUNT)
    return folder


@pytest.fixture(scope="module")
def whole(raw: Path, image_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything, prepared without an interruption."""
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare([raw], out, image_tokenizer_folder)
    return out


def prepare(
    sources: list[Path], out: Path, tokenizer: Path, options: PrepareOptions = OPTIONS, *, shard_size: int = 4
) -> Totals:
    return prepare_folder(sources, out, tokenizer=load(tokenizer), options=options, shard_size=shard_size)


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of each file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_every_record_comes_out_with_the_codes_of_its_images(
    whole: Path, raw: Path, image_tokenizer_folder: Path
) -> None:
    tokenizer, process = load(image_tokenizer_folder), ImageProcessor(height=32, width=32)
    folder = ShardFolder(whole)
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
            (raw.parent / "one.png").write_bytes(image_file(number if name == "captions.tar" else 100 + number))
            reference_1KN = tokenizer.encode(process(read_image(raw.parent / "one.png")))
            assert codes[0].grid == (2, 2) and torch.from_numpy(codes[0].codes_KN.astype(int)).equal(reference_1KN[0])


def test_a_photo_has_the_same_codes_by_every_route(image_tokenizer_folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, shown upright
    levels_HW3 = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(levels_HW3).save(tmp_path / "0.png", exif=exif)
    data, encoded = (tmp_path / "0.png").read_bytes(), base64.b64encode((tmp_path / "0.png").read_bytes()).decode()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("0.png", data), ("0.txt", b"a")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    images = ("0.png", f"data:image/png;base64,{encoded}", (tmp_path / "0.png").as_uri())
    lines = [json.dumps({"image": image, "caption": "a"}) for image in images]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    options = dataclasses.replace(OPTIONS, sizes=((32, 32), (32, 48), (48, 32)))
    prepare([tmp_path / "a.tar", tmp_path / "a.jsonl"], tmp_path / "out", image_tokenizer_folder, options)
    folder = ShardFolder(tmp_path / "out")
    codes = [folder[index].messages[1].parts[0] for index in range(len(folder))]
    upright = Image.fromarray(np.rot90(levels_HW3, -1).copy())
    expected_1KN = load(image_tokenizer_folder).encode(ImageProcessor(width=32, height=48)(upright))
    assert len(codes) == 4
    for image in codes:
        assert image.grid == (3, 2) and image.codes_KN.tolist() == expected_1KN[0].tolist()


def test_running_it_again_makes_what_is_missing_and_nothing_else(
    whole: Path, raw: Path, image_tokenizer_folder: Path, tmp_path: Path
) -> None:
    """Sources may come one by one, files be left half written by a killed process, and shards be lost."""
    out = tmp_path / "out"
    for place in ("tasks/text-0.json", "shards/text-0.parquet", "prepare.json"):
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        (out / f"{place}.123{UNFINISHED}").write_text('{"tasks": [')
    for name in ("text.jsonl", "captions.tar", "llava.json", "documents.jsonl"):
        prepare([raw / name], out, image_tokenizer_folder)
    assert rows_of(out) == rows_of(whole) and not list(out.rglob(f"*{UNFINISHED}"))
    lost = read_tasks(out)[4].shard
    (out / "tasks").rename(out / "plan")  # as older versions wrote it
    for path in (out / "plan").iterdir():
        path.write_text(path.read_text().replace('"tasks": [', '"units": ['))
    before = state(out / SHARDS)
    (out / SHARDS / lost).unlink()
    assert prepare([raw], out, image_tokenizer_folder) == Totals(records=4 * COUNT, shards=12, left_out=0)
    after = state(out / SHARDS)
    assert after.pop(lost)[1] == before.pop(lost)[1] and after == before
    assert rows_of(out) == rows_of(whole)


def prepare_slowly(raw: Path, out: Path, tokenizer: Path) -> None:
    """What the killed process does: one record a shard, and every file system call takes its time."""
    torch.set_num_threads(1)
    replace = os.replace

    def slow_replace(source: str, target: str) -> None:
        time.sleep(random.random() * 0.02)
        replace(source, target)
        time.sleep(random.random() * 0.02)

    os.replace = slow_replace
    prepare([raw], out, tokenizer, shard_size=1)


def test_killed_ten_times_it_ends_as_if_it_had_not(raw: Path, image_tokenizer_folder: Path, tmp_path: Path) -> None:
    """Killed without warning after a random number of shards and a random time more."""
    out, rng = tmp_path / "out", random.Random(3)
    context = multiprocessing.get_context("forkserver")  # children start from imported modules, so quickly
    context.set_forkserver_preload(["tests.train.data.test_prepare"])
    seen = set()
    for kill in range(10):
        child = context.Process(target=prepare_slowly, args=(raw, out, image_tokenizer_folder))
        child.start()
        wanted = kill * 3 + rng.randrange(3)
        while child.is_alive() and len(list((out / SHARDS).glob("*.parquet"))) < wanted:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        assert child.is_alive() and child.pid is not None, "it finished before it was killed"
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        seen.add(len(list((out / SHARDS).glob("*.parquet"))))
    assert len(seen) > 5 and not (out / MANIFEST).exists()
    finished = state(out / SHARDS)
    totals = prepare([raw], out, image_tokenizer_folder, shard_size=1)
    assert totals.records == 4 * COUNT
    after = state(out / SHARDS)
    assert all(after[name] == kept for name, kept in finished.items() if not name.endswith(UNFINISHED))
    assert not list(out.rglob(f"*{UNFINISHED}"))
    prepare([raw], tmp_path / "straight", image_tokenizer_folder, shard_size=1)
    assert rows_of(out) == rows_of(tmp_path / "straight")
    assert {name: kept[1] for name, kept in after.items()} == {
        name: kept[1] for name, kept in state(tmp_path / "straight" / SHARDS).items()
    }


@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
@pytest.mark.slow
def test_several_processes_make_the_same_shards(
    launcher: str, whole: Path, raw: Path, image_tokenizer_folder: Path, tmp_path: Path
) -> None:
    processes = ["--nproc_per_node=3"] if "torch" in launcher else ["--cpu", "--num_processes=3", "--num_machines=1"]
    words = ["-m", launcher, *processes, "-m", "mllm", "prepare", str(raw), "--out", str(tmp_path / "out")]
    words += ["--image-tokenizer", str(image_tokenizer_folder), "--shard-size", "4", "--batch-size", "5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{4 * COUNT} records in 12 shards" in done.stdout
    assert rows_of(tmp_path / "out") == rows_of(whole)


def broken_raw(folder: Path) -> Path:
    folder.mkdir()
    (folder / "good.png").write_bytes(image_file(1))
    (folder / "bad.png").write_bytes(image_file(1)[:30])
    records = [{"image": f"{name}.png", "caption": name} for name in ("good", "bad", "none", "good")]
    lines = [json.dumps(record) for record in records]
    (folder / "pairs.jsonl").write_text("\n".join([*lines, "", '{"image": ', lines[0]]) + "\n")
    return folder


def test_a_broken_record_ends_it_with_file_and_place(image_tokenizer_folder: Path, tmp_path: Path) -> None:
    raw = broken_raw(tmp_path / "raw")
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 2: .*bad.png"):
        prepare([raw], tmp_path / "out", image_tokenizer_folder)
    assert not (tmp_path / "out" / MANIFEST).exists()
    lines = (raw / "pairs.jsonl").read_text().splitlines()
    (raw / "pairs.jsonl").write_text("\n".join(["", *lines[4:]]))
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 3: "):
        prepare([raw], tmp_path / "another", image_tokenizer_folder)


def test_broken_records_are_left_out_and_listed_if_allowed(image_tokenizer_folder: Path, tmp_path: Path) -> None:
    raw = broken_raw(tmp_path / "raw")
    options = dataclasses.replace(OPTIONS, skip_broken=True)
    totals = prepare([raw], tmp_path / "out", image_tokenizer_folder, options)
    assert totals == Totals(records=3, shards=2, left_out=3)
    lines = (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()
    listed = {record["place"]: record["reason"] for record in map(json.loads, lines)}
    assert sorted(listed) == ["line 2", "line 3", "line 6"]
    assert "bad.png" in listed["line 2"] and "none.png" in listed["line 3"] and "JSON" in listed["line 6"]
    assert prepare([raw], tmp_path / "out", image_tokenizer_folder, options) == totals
    assert [place for *_, place in rows_of(tmp_path / "out")] == ["line 1", "line 4", "line 7"]


def test_every_file_of_a_folder_is_read_or_named(
    image_tokenizer_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = tmp_path / "raw"
    write_raw(raw / "tars", 3)
    for path in (raw / "tars").iterdir():
        if path.suffix != ".tar":
            path.unlink()
    shutil.copy(raw / "tars" / "captions.tar", raw / "tars" / "B.TAR")
    with gzip.open(raw / "tars" / "c.tar.gz", "wb") as file:
        file.write((raw / "tars" / "captions.tar").read_bytes())
    pq.write_table(pa.table({"url": ["http://x/y.jpg"], "caption": ["red"]}), raw / "tars" / "captions.parquet")
    (raw / "tars" / "captions_stats.json").write_text('{"count": 3}')
    (raw / "tars" / "notes.doc").write_text("?")
    assert prepare([raw], tmp_path / "tars", image_tokenizer_folder).records == 9
    assert "3 files" in caplog.text and "captions.parquet, captions_stats.json, notes.doc" in caplog.text
    (raw / "images").mkdir()
    for ending in ("png", "bmp", "gif", "tif", "jfif", "JPG"):
        Image.new("RGB", (32, 32), "red").save(raw / "images" / f"{ending}.{ending}", format=PILLOW.get(ending, ending))
        (raw / "images" / f"{ending}.txt").write_text(ending)
    (raw / "images" / "x.heic").write_bytes(b"?")
    (raw / "images" / "._x.jpg").write_bytes(b"what a system left")
    (raw / "images" / "link").symlink_to(raw / "tars")
    assert prepare([raw / "images"], tmp_path / "images", image_tokenizer_folder).records == 6
    assert "x.heic, link" in caplog.text
    caplog.clear()
    assert prepare([raw], tmp_path / "both", image_tokenizer_folder).records == 9
    assert "11 files" in caplog.text and "x.heic" in caplog.text  # five others and six captioned images
    for name in ("000", "001"):  # as img2dataset writes images
        (raw / "files" / "00000").mkdir(parents=True, exist_ok=True)
        (raw / "files" / "00000" / f"{name}.jpg").write_bytes(image_file(1))
        (raw / "files" / "00000" / f"{name}.txt").write_text("red")
        (raw / "files" / "00000" / f"{name}.json").write_text('{"caption": "red", "key": "000"}')
    for name in ("captions.parquet", "captions_stats.json"):
        shutil.copy(raw / "tars" / name, raw / "files" / name.replace("captions", "00000"))
    assert prepare([raw / "files"], tmp_path / "files", image_tokenizer_folder).records == 2


PILLOW = {"jfif": "jpeg", "JPG": "jpeg", "tif": "tiff"}


def test_a_result_of_no_records_is_an_error(image_tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="records"):
        prepare([tmp_path / "empty.jsonl"], tmp_path / "out", image_tokenizer_folder)
    lines = ('{"image": "\\ud83d.png", "text": "a"}', '{"image": "a.png", "text": "bad \\ud83d"}')
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    options = dataclasses.replace(OPTIONS, skip_broken=True)
    with pytest.raises(ValueError, match=r"2 left out, line 2: .*surrogate"):
        prepare([tmp_path / "bad.jsonl"], tmp_path / "bad", image_tokenizer_folder, options)
    assert not list(tmp_path.rglob(MANIFEST))
    with pytest.raises(ValueError, match=r"bad.jsonl, line 2: .*surrogate"):
        prepare([tmp_path / "bad.jsonl"], tmp_path / "strict", image_tokenizer_folder)


def test_what_was_not_begun_may_be_read_another_way(image_tokenizer_folder: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    source.write_text('{"text": "a"}\n')
    with pytest.raises(ValueError):
        _prepare_as("llava", source, out, image_tokenizer_folder)
    assert _prepare_as("text", source, out, image_tokenizer_folder).records == 1
    with pytest.raises(ValueError, match="--format"):
        _prepare_as("llava", source, out, image_tokenizer_folder)


def _prepare_as(name: str, source: Path, out: Path, tokenizer: Path) -> Totals:
    return prepare_folder([source], out, tokenizer=load(tokenizer), options=OPTIONS, shard_size=4, format_name=name)


def test_an_image_of_several_records_is_encoded_once(
    image_tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, number in (("a", 1), ("same", 1), ("b", 2)):
        (tmp_path / f"{name}.png").write_bytes(image_file(number))
    names = ["a", "same", "b", "a", "a", "b", "same"]
    lines = [json.dumps({"image": f"{name}.png", "caption": str(index)}) for index, name in enumerate(names)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    encoded: list[int] = []
    encode = UniTok.encode
    monkeypatch.setattr(UniTok, "encode", lambda self, pixels: encoded.append(len(pixels)) or encode(self, pixels))
    prepare([tmp_path / "a.jsonl"], tmp_path / "out", image_tokenizer_folder, shard_size=10)
    assert sum(encoded) == 2
    rows = rows_of(tmp_path / "out")
    codes = {
        name: {row[1].partition("assistant")[2] for row, n in zip(rows, names, strict=True) if n == name}
        for name in names
    }
    assert codes["a"] == codes["same"] != codes["b"] and all(len(found) == 1 for found in codes.values())


def test_codes_in_records_are_kept_if_they_are_the_tokenizer_s(image_tokenizer_folder: Path, tmp_path: Path) -> None:
    file, codes = tmp_path / "codes.jsonl", [[1, 2, 3, 4], [15, 6, 7, 0]]
    lines = [{"data_type": kind, "text": "a circle", "vqcode_256": json.dumps(codes)} for kind in ("T2I", "I2T")]
    file.write_text("\n".join(map(json.dumps, lines)))
    prepare([file], tmp_path / "out", image_tokenizer_folder)
    folder = ShardFolder(tmp_path / "out")
    assert [folder[0].kind, folder[1].kind] == ["draw", "chat"]
    for part in (folder[0].messages[1].parts[0], folder[1].messages[0].parts[0]):
        assert part.codes_KN.tolist() == codes and part.grid == (2, 2)
    for number, others in enumerate(([[1] * 4] * 3, [[1] * 4, [16] * 4])):
        file.write_text(json.dumps({"data_type": "T2I", "text": "x", "vqcode_256": json.dumps(others)}))
        with pytest.raises(ValueError, match="codes.jsonl, line 1: "):
            prepare([file], tmp_path / f"out{number}", image_tokenizer_folder)


def test_images_take_the_size_that_fits_their_shape(image_tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for name, size in (("wide", (60, 20)), ("high", (20, 60)), ("square", (30, 31))):
        Image.new("RGB", size, "red").save(tmp_path / "raw" / f"{name}.png")
        (tmp_path / "raw" / f"{name}.txt").write_text(name)
    options = dataclasses.replace(OPTIONS, sizes=((32, 32), (48, 16), (16, 48)))
    prepare([tmp_path / "raw"], tmp_path / "out", image_tokenizer_folder, options)
    folder = ShardFolder(tmp_path / "out")
    grids = [folder[row].messages[1].parts[0].grid for row in range(3)]
    assert grids == [(3, 1), (2, 2), (1, 3)]  # high, square, wide


def test_what_does_not_fit_the_folder_is_refused(
    whole: Path, raw: Path, image_tokenizer_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError):
        prepare([raw], whole, image_tokenizer_folder, shard_size=5)
    other = load(image_tokenizer_folder)
    with torch.no_grad():
        other.quantizer.codebooks.add_(0.1)
    with pytest.raises(ValueError):
        prepare_folder([raw], whole, tokenizer=other, options=OPTIONS, shard_size=4)
    with pytest.raises(FileNotFoundError):
        prepare([tmp_path / "none"], tmp_path / "out", image_tokenizer_folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        prepare([tmp_path / "empty"], tmp_path / "out", image_tokenizer_folder)
    source = tmp_path / "text.jsonl"
    source.write_text('{"text": "a"}\n')
    prepare([source], tmp_path / "out", image_tokenizer_folder)
    source.write_text('{"text": "b"}\n')
    with pytest.raises(ValueError, match="text.jsonl"):
        prepare([source], tmp_path / "out", image_tokenizer_folder)


def test_a_shard_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("train.data.shards.pq.write_table", fail)
    with pytest.raises(OSError):
        write_shard(tmp_path / "a.parquet", [], CodeSource("x", 2, 16))
    assert not (tmp_path / "a.parquet").exists() and np.all([UNFINISHED in path.name for path in tmp_path.iterdir()])


def test_tasks_come_out_the_same_in_any_order(raw: Path, image_tokenizer_folder: Path, tmp_path: Path) -> None:
    """Compressed files and folders are read on from one task to a later one, and again for an earlier one."""
    (tmp_path / "text.jsonl.gz").write_bytes(gzip.compress((raw / "text.jsonl").read_bytes()))
    (tmp_path / "folder").mkdir()
    for number in range(9):
        (tmp_path / "folder" / f"{number}.png").write_bytes(image_file(number))
        (tmp_path / "folder" / f"{number}.txt").write_text(f"caption {number}")
    for source in (tmp_path / "text.jsonl.gz", tmp_path / "folder", raw / "llava.json"):
        out = tmp_path / f"out-{source.stem}"
        prepare([source], out, image_tokenizer_folder, shard_size=2)
        tasks, expected = read_tasks(out), rows_of(out)
        maker = ShardMaker(load(image_tokenizer_folder), OPTIONS)
        for number in (0, 1, 3, 2, 2, 4):
            rows, _ = maker.make(tasks[number], lambda count: None)
            assert [content(row) for row in rows] == expected[2 * number : 2 * number + 2]


def test_progress_is_told_as_records_are_done(raw: Path, image_tokenizer_folder: Path, tmp_path: Path) -> None:
    prepare([raw / "llava.json"], tmp_path / "out", image_tokenizer_folder, shard_size=100)
    (task,) = read_tasks(tmp_path / "out")
    told: list[int] = []
    rows, _ = ShardMaker(load(image_tokenizer_folder), OPTIONS).make(task, told.append)
    assert [count for count in told if count] == [5, 5] and len(rows) == COUNT  # the last one comes with the shard
