"""The console command: what it writes and prints, and one sentence for every wrong input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mllm.cli.main import PACKAGES, VERBS, main

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a picture, a broken picture and a text."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 40), "red").save("a.png")
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    Path("notes.txt").write_text("no picture")
    Path("recipe.yaml").write_text("kind: image_tokenizer\noutput: run\nstepz: 3\n")
    return tmp_path


@pytest.fixture
def run(random_model_folder: Path, folder: Path, capfd: pytest.CaptureFixture[str]):
    """Run a verb on the random model; gives its exit code, stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        with_model = words[0] not in ("train", "no-such-verb") and "--model" not in words
        code = main([*words, *(("--model", str(random_model_folder)) if with_model else ())])
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


def test_draw_writes_the_same_bytes_for_the_same_seed(run, folder: Path) -> None:
    for name in ("one.png", "two.png"):
        code, out, _ = run("draw", "a red circle", "-o", name, "--seed", "3")
        assert (code, out) == (0, f"{name}  seed 3\n")
    assert (folder / "one.png").read_bytes() == (folder / "two.png").read_bytes()
    assert Image.open(folder / "one.png").size == (48, 48)


def test_draw_of_several_gives_different_pictures(run, folder: Path) -> None:
    assert run("draw", "a red circle", "-o", "a.png", "-n", "4", "--seed", "3", "--temperature", "1.5")[0] == 0
    assert len({(folder / f"a-{number}.png").read_bytes() for number in range(1, 5)}) == 4
    assert run("draw", "a red circle", "-o", "alone.png", "--seed", "4", "--temperature", "1.5")[0] == 0
    assert (folder / "alone.png").read_bytes() == (folder / "a-2.png").read_bytes()


def test_ask_prints_the_answer_and_nothing_else(run, random_model_folder: Path) -> None:
    from mllm.pipeline import Pipeline

    code, out, _ = run("ask", "a.png", "a.png", "what color is it?", "--max-new-tokens", "9")
    expected = Pipeline.load(random_model_folder).ask(["a.png", "a.png"], "what color is it?", max_new_tokens=9)
    assert (code, out.strip()) == (0, expected) and out.endswith("\n")


def test_edit_writes_a_picture(run, folder: Path) -> None:
    code, out, _ = run("edit", "a.png", "make it blue", "-o", "b.jpg", "--seed", "1", "--guidance", "2")
    assert (code, out) == (0, "b.jpg  seed 1\n")
    assert Image.open(folder / "b.jpg").format == "JPEG"


def test_codes_decode_to_the_reconstruction(run, folder: Path) -> None:
    code, out, _ = run("tokenize", "encode", "a.png", "-o", "codes.npz")
    assert (code, out) == (0, "codes.npz: 1 x 3 codebooks x 3 x 3 positions\n")
    assert run("tokenize", "decode", "codes.npz", "-o", "decoded")[0] == 0
    code, out, _ = run("tokenize", "reconstruct", "a.png", "-o", "again.png", "--json", "scores.json")
    assert code == 0 and "PSNR" in out and (folder / "scores.json").is_file()
    assert (folder / "decoded" / "a.png").read_bytes() == (folder / "again.png").read_bytes()


def test_chat_answers_in_turn_and_survives_wrong_input(
    run, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["/image none.png", "/image a.png", "what is it?", "", "/nonsense", "/new", "draw it", "/quit", "no"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    code, _, err = run("chat", "--seed", "1", "--images", "drawings")
    assert code == 0 and next(lines) == "no"
    assert "cannot open picture none.png" in err and "there is no command '/nonsense'" in err
    assert len(err.strip().splitlines()) == 2


WRONG = [
    (["no-such-verb"], "there is no verb 'no-such-verb'"),
    (["draw"], "arguments are required"),
    (["draw", "", "-o", "x.png"], "the prompt is empty"),
    (["draw", "   ", "-o", "x.png"], "the prompt is empty"),
    (["draw", "red " * 300, "-o", "x.png"], "context"),
    (["draw", "red", "-o", "x.png", "--temperature", "0"], "temperature"),
    (["draw", "red", "-o", "x.png", "--temperature", "-1"], "temperature"),
    (["draw", "red", "-o", "x.png", "--temperature", "warm"], "--temperature"),
    (["draw", "red", "-o", "x.png", "--top-k", "0"], "top_k"),
    (["draw", "red", "-o", "x.png", "--top-p", "1.5"], "top_p"),
    (["draw", "red", "-o", "x.png", "--guidance", "0.5"], "guidance"),
    (["draw", "red", "-o", "x.png", "--seed", "-1"], "seed"),
    (["draw", "red", "-o", "x.png", "-n", "0"], "not a count"),
    (["draw", "red", "-o", "x.png", "--size", "96x48"], "no pictures of 96x48"),
    (["draw", "red", "-o", "x.png", "--size", "big"], "not a size"),
    (["draw", "red", "-o", "x.gdoc"], "does not end like a picture file"),
    (["draw", "red", "-o", "none/x.png"], "does not exist"),
    (["draw", "red", "-o", "x.png", "--device", "abacus"], "cannot compute on abacus"),
    (["draw", "red", "-o", "x.png", "--model", "no/such/folder"], "there is no model folder no/such/folder"),
    (["draw", "red", "-o", "x.png", "--model", "no/such"], "there is no model 'no/such'"),
    (["draw", "red", "-o", "x.png", "--model", "."], "holds no model"),
    (["ask", "none.png", "What?"], "cannot open picture none.png"),
    (["ask", "broken.png", "What?"], "cannot read picture broken.png"),
    (["ask", "notes.txt", "What?"], "cannot read picture notes.txt"),
    (["ask", ".", "What?"], "it is a folder"),
    (["ask", "a.png"], "arguments are required"),
    (["ask", "a.png", "a.png"], "the question is missing"),
    (["ask", "a.png", ""], "the question is empty"),
    (["ask", "a.png", "What?", "--guidance", "2"], "unrecognized arguments"),
    (["edit", "none.png", "make it blue", "-o", "b.png"], "cannot open picture none.png"),
    (["edit", "a.png", "", "-o", "b.png"], "the instruction is empty"),
    (["tokenize"], "encode|decode|reconstruct"),
    (["tokenize", "encode", "a.png", "-o", "codes.txt"], "use .npz or .safetensors"),
    (["tokenize", "encode", "a.png", "-o", "codes.npz", "--size", "50x40"], "multiples of 16"),
    (["tokenize", "encode", "broken.png", "-o", "codes.npz"], "cannot read picture"),
    (["tokenize", "decode", "none.npz", "-o", "x.png"], "there is no code file"),
    (["tokenize", "reconstruct", "a.png", "a.png", "-o", "x.png"], "name a folder"),
    (["evaluate", "mmlu"], "there is nothing to evaluate called 'mmlu'"),
    (["evaluate", "pope"], "arguments are required"),
    (["evaluate", "gqa", "--questions", "none.jsonl", "--images", ".", "--output", "x"], "there is no file none.jsonl"),
    (["evaluate", "gqa", "--questions", "notes.txt", "--images", ".", "--output", "x"], "notes.txt, line 1 is no JSON"),
    (["evaluate", "gqa", "--questions", "notes.txt", "--images", "none", "--output", "x"], "no folder of pictures"),
    (["evaluate", "world", "--count", "none"], "not a count"),
    (["evaluate", "world", "--jobs", "dance"], "dance"),
    (["evaluate", "world", "--json", "none/x.json"], "does not exist"),
    (["tokenize", "reconstruct", "a.png", "-o", "x.png", "--json", "none/x.json"], "does not exist"),
    (["prepare"], "arguments are required"),
    (["prepare", "--out", "x"], "nothing to prepare"),
    (["prepare", "none.jsonl", "--out", "x"], "there is no file none.jsonl"),
    (["prepare", "notes.txt", "--out", "x"], "found the ending '.txt'"),
    (["prepare", "notes.txt", "--out", "x", "--format", "csv"], "invalid choice"),
    (["prepare", "notes.txt", "--out", "x", "--size", "50x40"], "multiples of 16"),
    (["prepare", "notes.txt", "--out", "x", "--preparation", "squash"], "unknown preparation"),
    (["prepare", "a.png", "--out", "x", "--device", "abacus"], "cannot compute on abacus"),
    (["prepare", "notes.txt", "--out", "x", "--image-tokenizer", "none"], "there is no model folder none"),
    (["prepare", "--out", "x", "--show", "none"], "not a count"),
    (["prepare", "--out", "x", "--show", "2"], "no finished folder of shards"),
    (["train"], "no recipe was given"),
    (["train", "none.yaml"], "there is no recipe 'none.yaml'"),
    (["train", "recipe.yaml"], "stepz"),
    (["train", "tiny_tokenizer", "--stepz", "3"], "stepz"),
    (["train", "notes.txt"], "must be a mapping"),
    (["demo", "--port", "many"], "--port"),
    (["demo", "--model", "no/such/folder"], "there is no model folder"),
]


@pytest.mark.parametrize(("words", "fragment"), WRONG, ids=[" ".join(words)[:50] for words, _ in WRONG])
def test_wrong_input_gives_one_sentence_and_exit_code_2(run, words: list[str], fragment: str) -> None:
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    assert err.startswith("mllm: ") and len(err.strip().splitlines()) == 1, err
    assert fragment in err


def test_debug_shows_where_an_error_came_from(run) -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        run("draw", "", "-o", "x.png", "--debug")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([verb, "--help"])
    except SystemExit as exit_:  # argparse leaves this way
        code = exit_.code
    assert code == 0
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith(f"example: mllm {verb}")


def test_help_needs_no_heavy_package() -> None:
    script = (
        "import sys; from mllm.cli.main import main; main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'gradio', 'numpy', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)


def test_a_command_that_goes_well_says_nothing_else(random_model_folder: Path, tmp_path: Path) -> None:
    words = ["draw", "a red circle", "-o", str(tmp_path / "a.png"), "--model", str(random_model_folder), "--seed", "3"]
    done = subprocess.run([sys.executable, "-m", "mllm", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{tmp_path / 'a.png'}  seed 3\n", "")


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "mllm"])
def test_a_package_that_hides_ours_is_named(package: str, tmp_path: Path) -> None:
    (tmp_path / f"{package}.py").write_text("")
    script = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; from mllm.cli.main import main\n"
    script += "sys.exit(main(['draw', '--help']))"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"the package {package!r} of this toolkit is hidden" in done.stderr
    assert str(tmp_path / f"{package}.py") in done.stderr
