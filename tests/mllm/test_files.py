"""Files are written completely or not at all, also by two processes at once."""

import errno
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from mllm.files import fingerprint_of, read_lines, whole_file, whole_folder, write_json, write_text


def test_a_file_or_folder_appears_whole_at_the_end_or_stays_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "parent" / "file", tmp_path / "folder"
    with whole_file(path) as unfinished:
        unfinished.write_text("half")
        assert not path.exists()
    with pytest.raises(RuntimeError), whole_file(path) as unfinished:
        unfinished.write_text("ne")
        raise RuntimeError("midway")
    assert path.read_text() == "half" and list(path.parent.iterdir()) == [path]
    for text in ("old", "new"):
        with whole_folder(folder) as unfinished:
            (unfinished / text).write_text(text)
    with pytest.raises(OSError) as raised, whole_folder(folder) as unfinished:
        (unfinished / "newest").write_text("")
        raise OSError(errno.ENOSPC, "no space")
    assert raised.value.filename == str(folder) and [file.name for file in folder.rglob("*")] == ["new"]
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if source == unfinished:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt), whole_folder(folder) as unfinished:
        pass
    assert [path.name for path in tmp_path.rglob("new")] == ["new"] and (folder / "new").is_file()


def test_links_are_followed_and_devices_refused(tmp_path: Path) -> None:
    target, link, null = tmp_path / "folder" / "target", tmp_path / "link", tmp_path / "null"
    target.parent.mkdir()
    link.symlink_to(target)
    for text in ("new", "newer"):  # the link dangles at first
        write_text(link, text)
        assert link.is_symlink() and target.read_text() == text
    target.chmod(0o600)
    write_text(link, "private")
    assert target.stat().st_mode & 0o777 == 0o600
    null.symlink_to("/dev/null")
    for path in (null, tmp_path):
        with pytest.raises(ValueError):
            write_text(path, "lost")
    assert Path("/dev/null").is_char_device()


def test_a_reader_never_meets_half_a_file_while_another_process_rewrites_it(tmp_path: Path) -> None:
    """What two ranks of a training run do with the description of a folder of codes."""
    path, value = tmp_path / "meta.json", {"tokenizer": "0" * 50_000}
    write_json(path, value)
    rewrite = [lambda: write_json(path, value)] * 100
    writer = multiprocessing.get_context("fork").Process(target=lambda: [write() for write in rewrite])
    writer.start()
    while writer.is_alive():
        assert json.loads(path.read_text(encoding="utf-8")) == value
    writer.join()
    assert writer.exitcode == 0


def test_the_fingerprint_of_a_folder_follows_its_texts_or_names_and_sizes_of_images(tmp_path: Path) -> None:
    found = []
    for name, content in (("1.png", b"a"), ("1.png", b"ab"), ("2.png", b"a"), ("x.json", b"[1]"), ("x.json", b"[2]")):
        (tmp_path / name).write_bytes(content)
        found.append(fingerprint_of(tmp_path))
    (tmp_path / "3.png").write_bytes(b"")
    assert len(set(found)) == 5 and fingerprint_of(tmp_path) == found[-1], "texts count alone where there are any"


def test_lines_are_read_without_a_mark_and_errors_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xe2\x80\xa8"}\r\n\n{"a": "\\ud83d\\ude00"}')
    assert read_lines(path) == [(f"{path}, line 1", {"a": "\u2028"}), (f"{path}, line 3", {"a": "\U0001f600"})]
    for content, place in (
        (b'{}\n{"a": "\\ud83d?"}', "line 2"),
        (b'{"a": "caf\xe9"}', "UTF-8"),
        (b'{"a":' * 100_000, "line 1"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.jsonl.*{place}"):
            read_lines(path)
