"""Codes in files: what is written is read again, and what is not a code file is refused. Fingerprints."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tokenizer.codes import CodeFile, fingerprint, read_codes, write_codes


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


def test_codes_come_back_as_written_and_other_files_are_refused(tmp_path: Path) -> None:
    written = make_code_file()
    for ending in (".npz", ".safetensors"):
        path = tmp_path / f"x{ending}"
        with pytest.raises(FileNotFoundError):
            read_codes(path)
        write_codes(path, written)
        read = read_codes(path)
        assert replace(read, codes=written.codes) == written
        for ours, theirs in zip(written.codes, read.codes, strict=True):
            assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
        for content in (b"", b"not a code file at all", b"PK\x03\x04"):
            path.write_bytes(content)
            with pytest.raises(ValueError):
                read_codes(path)
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    with pytest.raises(ValueError):
        read_codes(tmp_path / "other.npz")
    with pytest.raises(ValueError):
        write_codes(tmp_path / "x.txt", written)
    with pytest.raises(ValueError):  # another grid
        replace(written, grids=((2, 5), (3, 2), (1, 7)))
    written.require_fingerprint("0123456789abcdef")
    with pytest.raises(ValueError):
        written.require_fingerprint("fedcba9876543210")


def test_fingerprint_sees_names_and_values_but_no_lossless_dtype() -> None:
    weights = torch.tensor([0.5, -2.0])
    first = fingerprint(["a", b"b", weights])
    assert len(first) == 16 and first == fingerprint(["a", b"b", weights.bfloat16()])
    assert len({first, fingerprint(["a", b"c", weights]), fingerprint(["b", b"b", weights])}) == 3
    assert fingerprint(["a", b"b", weights + 1]) != first
