"""Codes in files: what is written is read again, and what is not a code file is refused in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tokenizer.codes import CodeFile, read_codes, write_codes


def make_code_file() -> CodeFile:
    generator = np.random.default_rng(3)
    grids = ((2, 5), (3, 3), (1, 7))
    return CodeFile(
        names=("a.png", "b c.jpg", "a.png"),
        grids=grids,
        codes=tuple(generator.integers(0, 65536, (3, h * w)).astype(np.uint16) for h, w in grids),
        num_codebooks=3,
        codebook_size=65536,
        fingerprint="0123456789abcdef",
    )


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_codes_come_back_as_written(tmp_path: Path, ending: str) -> None:
    written = make_code_file()
    write_codes(tmp_path / f"x{ending}", written)
    read = read_codes(tmp_path / f"x{ending}")
    assert read.names == written.names
    assert (read.grids, read.fingerprint) == (written.grids, written.fingerprint)
    assert (read.num_codebooks, read.codebook_size) == (3, 65536)
    for ours, theirs in zip(written.codes, read.codes, strict=True):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a code file at all", b"PK\x03\x04"])
def test_a_file_that_holds_no_codes_is_refused(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"x{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a readable code file"):
        read_codes(path)


def test_an_archive_of_other_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", something=np.zeros(3))
    with pytest.raises(ValueError, match="not a readable code file"):
        read_codes(tmp_path / "x.npz")


def test_missing_files_and_unknown_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no code file"):
        read_codes(tmp_path / "x.npz")
    with pytest.raises(ValueError, match="use .npz or .safetensors"):
        write_codes(tmp_path / "x.txt", make_code_file())


def test_codes_must_fill_their_grid() -> None:
    with pytest.raises(ValueError, match="do not fit their grid"):
        replace(make_code_file(), grids=((2, 5), (3, 2), (1, 7)))


def test_codes_of_another_tokenizer_are_refused() -> None:
    make_code_file().require_fingerprint("0123456789abcdef")
    with pytest.raises(ValueError, match="another image tokenizer"):
        make_code_file().require_fingerprint("fedcba9876543210")
