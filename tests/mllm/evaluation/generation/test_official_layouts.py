"""The folders that official tools of other drawing benchmarks read, and the results that they give back."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from mllm.cli.main import main
from mllm.evaluation.generation.mjhq import describe_references
from tests.mllm.tiny_folder import build_tiny_folder


def draw(folder: Path, benchmark: str, questions: Path, output: Path) -> set[str]:
    """Run a benchmark; the pictures it wrote."""
    words = ["--questions", str(questions), "--output", str(output), "--model", str(folder), "--device", "cpu"]
    assert main(["evaluate", benchmark, *words]) == 0
    return {str(path.relative_to(output)) for path in output.rglob("*.png")}


def score(questions: Path, output: Path, *more: str) -> dict:
    assert main(["evaluate", "score", str(output), "--questions", str(questions), *more]) == 0
    return json.loads((output / "result.json").read_text())


def refusal(questions: Path, output: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    capsys.readouterr()
    assert main(["evaluate", "score", str(output), "--questions", str(questions), *more]) == 2
    return capsys.readouterr().err


def submit(questions: Path, output: Path) -> None:
    assert main(["evaluate", "submit", str(output), "--questions", str(questions)]) == 0


def test_geneval(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions, output = tmp_path / "evaluation_metadata.jsonl", tmp_path / "run"
    tags = ("single_object", "counting")
    lines = [json.dumps({"tag": tag, "include": [], "prompt": f"a photo of {tag}"}) for tag in tags]
    questions.write_text("\n".join(lines))
    names = draw(folder, "geneval", questions, output)
    assert names == {f"0000{index}/samples/000{sample}.png" for index in range(2) for sample in range(4)}
    submit(questions, output)
    assert (output / "00001" / "metadata.jsonl").read_text() == lines[1]
    assert "git clone https://github.com/djghosh13/geneval" in refusal(questions, output, capsys)
    results = tmp_path / "results.jsonl"
    records = [
        {"filename": str(output / name), "tag": tags[int(name[4])], "correct": name[4] == "0" or name[-5] == "3"}
        for name in sorted(names)
    ]
    results.write_text("\n".join(map(json.dumps, records)))
    result = score(questions, output, "--annotations", str(results))
    values = {name: value["value"] for name, value in result["scores"].items()}
    assert values == {"overall": 62.5, "single_object": 100.0, "counting": 25.0}
    assert result["protocol"] == "geneval@official-detector-custom-8"
    results.write_text("\n".join(map(json.dumps, records[1:])))
    assert "found 7 of 8" in refusal(questions, output, capsys, "--annotations", str(results))
    results.write_text("\n".join(map(json.dumps, [records[0], *records])))
    assert "is about another picture" in refusal(questions, output, capsys, "--annotations", str(results))


def test_dpg_bench(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions, output = tmp_path / "prompts", tmp_path / "run"
    questions.mkdir()
    (questions / "partiprompts7.txt").write_text("a long prompt\n")
    assert draw(folder, "dpg-bench", questions, output) == {f"samples/partiprompts7/{n}.png" for n in range(4)}
    submit(questions, output)
    grid = np.asarray(Image.open(output / "grids" / "partiprompts7.png"))
    assert grid.shape == (64, 64, 3)
    for n in range(4):
        quarter = grid[n // 2 * 32 :, n % 2 * 32 :][:32, :32]
        assert (quarter == np.asarray(Image.open(output / f"samples/partiprompts7/{n}.png"))).all()
    assert "ELLA" in refusal(questions, output, capsys)
    results = tmp_path / "results.txt"
    results.write_text("nothing")
    assert "has no line" in refusal(questions, output, capsys, "--annotations", str(results))
    results.write_text("L1: 5\nDPG-Bench score: 81.25\n")
    assert score(questions, output, "--annotations", str(results))["scores"]["overall"]["value"] == 81.25


def test_t2i_compbench(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions, output = tmp_path / "color_val.txt", tmp_path / "run"
    questions.write_text("a red bench\na blue bowl\n")
    names = draw(folder, "t2i-compbench", questions, output)
    assert {"samples/a red bench_000009.png", "samples/a blue bowl_000010.png"} < names and len(names) == 20
    assert "T2I-CompBench" in refusal(questions, output, capsys)
    results = tmp_path / "vqa_result.json"
    results.write_text(json.dumps([{"question_id": n, "answer": str(n / 20)} for n in range(20)]))
    found = score(questions, output, "--annotations", str(results))["scores"]["overall"]["value"]
    assert found == pytest.approx(0.475)
    results.write_text("[]")
    assert "found 0 for 20" in refusal(questions, output, capsys, "--annotations", str(results))
    questions.write_text("either/or")
    assert main(["evaluate", "t2i-compbench", "--questions", str(questions), "--output", str(output)]) == 2
    assert "line 1 cannot name a file" in capsys.readouterr().err


def test_mjhq(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FID itself is clean-fid's; here a function in its place says which folders it was given."""
    questions, output, real = tmp_path / "meta_data.json", tmp_path / "run", tmp_path / "real"
    records = {"a1": "animals", "b2": "food", "c3": "food"}
    questions.write_text(json.dumps({name: {"category": c, "prompt": f"a {c}"} for name, c in records.items()}))
    assert draw(folder, "mjhq-30k", questions, output) == {f"images/{c}/{name}.png" for name, c in records.items()}
    monkeypatch.setitem(sys.modules, "cleanfid", None)
    assert "give it as --annotations" in refusal(questions, output, capsys)
    for category in records.values():
        (real / category).mkdir(parents=True, exist_ok=True)
    assert "pip install 'mllm-toolkit[eval-images]'" in refusal(questions, output, capsys, "--annotations", str(real))
    package, module = ModuleType("cleanfid"), ModuleType("cleanfid.fid")
    asked: list[tuple[str, str]] = []

    def compute_fid(first: str, second: str) -> float:
        asked.append((first, second))
        return float(len(asked))

    module.compute_fid = compute_fid
    monkeypatch.setitem(sys.modules, "cleanfid", package)
    monkeypatch.setitem(sys.modules, "cleanfid.fid", module)
    assert "holds no reference pictures" in refusal(questions, output, capsys, "--annotations", str(real))
    Image.new("RGB", (4, 4)).save(real / "food" / "b2.jpg")
    result = score(questions, output, "--annotations", str(real))
    pairs = [(real, output / "images")] + [(real / c, output / "images" / c) for c in ("animals", "food")]
    assert asked == [(str(a), str(b)) for a, b in pairs]
    assert {name: (s["value"], s["count"]) for name, s in result["scores"].items()} == {
        "FID": (1.0, 3),
        "FID animals": (2.0, 1),
        "FID food": (3.0, 2),
    }
    assert "clean-fid" in result["scored_with"]
    Image.new("RGB", (5, 4)).save(real / "animals" / "a1.png")
    assert describe_references(real) == "jpg-png-mixed-sizes"
    (real / "animals" / "a1.png").write_bytes(b"no picture")
    assert "a1.png does not open" in refusal(questions, output, capsys, "--annotations", str(real))
    shutil.rmtree(real / "animals")
    assert "has no references of 'animals'" in refusal(questions, output, capsys, "--annotations", str(real))
    assert result["protocol"] == "mjhq-30k@clean-fid-png-against-jpg-4x4-custom-3"


def test_class_samples_for_the_evaluator_of_adm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = build_tiny_folder(
        tmp_path / "model", layout="bare", prompt_style="class", num_classes=4, tasks=["draw_class"], image_guidance=1.0
    )
    questions, output = tmp_path / "classes.txt", tmp_path / "run"
    questions.write_text("3\n0\n3\n")
    names = sorted(draw(folder, "class-samples", questions, output))
    assert names == [f"images/00000{n}.png" for n in (1, 2, 3)]
    submit(questions, output)
    archive = np.load(output / "samples_3x32x32x3.npz")
    assert archive["arr_0"].dtype == np.uint8 and archive["arr_1"].tolist() == [3, 0, 3]
    assert all((archive["arr_0"][n] == np.asarray(Image.open(output / names[n]))).all() for n in range(3))
    assert "guided-diffusion" in refusal(questions, output, capsys)
    questions.write_text("3\ncat\n")
    assert main(["evaluate", "class-samples", "--questions", str(questions), "--output", str(output)]) == 2
    assert "line 2 is no class: found 'cat'" in capsys.readouterr().err
