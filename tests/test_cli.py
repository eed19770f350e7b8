"""The console command: what it writes and prints, and one line for every wrong input."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from PIL import Image

from mllm.cli.main import PACKAGES, VERBS, main

WIDTH_255 = "model: {text_config: {hidden_size: 255, num_attention_heads: 4}}"
ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, random_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an image, a broken image, a text and a recipe."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 40), "red").save("a.png")
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    Image.new("RGB", (1, 10_000)).save("thin.png")
    Path("notes.txt").write_text("no image")
    Path("deep.json").write_text("[" * 100_000)
    Path("deep").mkdir()
    Path("deep/config.json").write_text("[" * 100_000)
    Path("deep/model.safetensors").write_bytes(b"")
    Path("deep.jsonl").write_text('{"a":' * 100_000)
    Path("empty.jsonl").write_text("")
    for name, text in {"nowhere": "start_from: /nowhere", "width": WIDTH_255}.items():
        files = f"image_tokenizer: {random_model_folder}/image_tokenizer\ntext_tokenizer: {random_model_folder}"
        Path(f"{name}.yaml").write_text(f"kind: mllm\noutput: run\n{files}\n{text}\ntrainer: {{max_steps: 1}}\n")
    os.mkfifo("pipe.png")
    os.mkfifo("pipe.npz")
    Path("null.json").symlink_to("/dev/null")
    Path("recipe.yaml").write_text("kind: image_tokenizer\noutput: run\nstepz: 3\n")
    return tmp_path


@pytest.fixture
def run(random_model_folder: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a verb on the random model; gives its exit status, stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        with_model = (
            words[0] not in ("train", "benchmark", "convert", "merge", "no-such-verb") and "--model" not in words
        )
        code = main([*words, *(("--model", str(random_model_folder)) if with_model else ())])
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


def test_draw_and_edit_write_images_that_are_functions_of_the_seed(run: Run, folder: Path) -> None:
    for name in ("one.png", "two.png"):
        code, out, _ = run("draw", "a red circle", "-o", name, "--seed", "3")
        assert (code, out) == (0, f"{name}  seed 3\n")
    assert (folder / "one.png").read_bytes() == (folder / "two.png").read_bytes()
    assert Image.open(folder / "one.png").size == (48, 48)
    assert run("draw", "a red circle", "-o", "a.png", "-n", "4", "--seed", "3", "--temperature", "1.5")[0] == 0
    assert len({(folder / f"a-{number}.png").read_bytes() for number in range(1, 5)}) == 4
    assert run("draw", "a red circle", "-o", "alone.png", "--seed", "4", "--temperature", "1.5")[0] == 0
    assert (folder / "alone.png").read_bytes() == (folder / "a-2.png").read_bytes()
    code, out, _ = run("edit", "one.png", "make it blue", "-o", "b.jpg", "--seed", "1", "--guidance", "2")
    assert (code, out) == (0, "b.jpg  seed 1\n") and Image.open(folder / "b.jpg").format == "JPEG"


def test_what_the_model_declines_is_not_drawn(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mllm.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "decline", lambda self, prompt, image=None: "I can't draw dogs.")
    for words in (["draw", "a dog"], ["edit", "a.png", "add a dog"]):
        code, out, err = run(*words, "-o", "dog.png", "--seed", "1")
        assert (code, out) == (3, "") and "I can't draw dogs." in err and "--force" in err
        assert not (folder / "dog.png").exists()
        assert run(*words, "-o", "dog.png", "--seed", "1", "--force")[0] == 0
        (folder / "dog.png").unlink()


def test_ask_prints_the_answer_and_nothing_else(run: Run, random_model_folder: Path) -> None:
    from mllm.pipeline import Pipeline

    code, out, _ = run("ask", "a.png", "a.png", "what color is it?", "--max-new-tokens", "9")
    expected = Pipeline.load(random_model_folder).ask(["a.png", "a.png"], "what color is it?", max_new_tokens=9)
    assert (code, out.strip()) == (0, expected) and out.endswith("\n")


def test_codes_decode_to_the_reconstruction(run: Run, folder: Path) -> None:
    code, out, _ = run("tokenize", "encode", "a.png", "-o", "codes.npz")
    assert (code, out) == (0, "codes.npz: 1 x 3 codebooks x 3 x 3 positions\n")
    assert run("tokenize", "decode", "codes.npz", "-o", "decoded")[0] == 0
    code, out, _ = run("tokenize", "reconstruct", "a.png", "-o", "again.png", "--json", "scores.json")
    assert code == 0 and "PSNR" in out and (folder / "scores.json").is_file()
    assert (folder / "decoded" / "a.png").read_bytes() == (folder / "again.png").read_bytes()


def test_chat_answers_in_turn_and_survives_wrong_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["/image none.png", "/image a.png", "what is it?", "", "/nonsense", "/new", "draw it", "/quit", "no"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    code, _, err = run("chat", "--seed", "1", "--images", "drawings")
    assert code == 0 and next(lines) == "no"
    assert "none.png" in err and "got '/nonsense'" in err and len(err.strip().splitlines()) == 2


def test_interrupting_an_answer_keeps_the_conversation(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from mllm.pipeline import Pipeline

    answer, answered = Pipeline.chat, []

    def chat(pipeline: Pipeline, messages: list, **overrides: object) -> object:
        answered.append(len(messages))
        if len(answered) == 2:
            raise KeyboardInterrupt
        return answer(pipeline, messages, **overrides)

    monkeypatch.setattr(Pipeline, "chat", chat)
    monkeypatch.setattr(Pipeline, "shorten", lambda _, messages: messages)  # random answers fill the small context
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"hello\nagain\ncaf\xe9\nand now\n"), "utf-8"))
    code, _, err = run("chat", "--seed", "1", "--images", "drawings")
    assert code == 0 and answered == [1, 3, 3] and "interrupted" in err and "UTF-8" in err


PORT_IN_USE = "47861"
DRAW = ["draw", "red", "-o", "x.png"]
GQA = ["evaluate", "gqa", "--output", "x"]
WRONG: list[tuple[list[str], str]] = [  # words, and what the one line must name
    (["no-such-verb"], "no-such-verb"),
    (["draw", "a \udcff circle", "-o", "x.png"], "UTF-8"),
    (["draw"], "arguments are required"),
    (["draw", "", "-o", "x.png"], "prompt"),
    (["draw", "red " * 300, "-o", "x.png"], "tokens"),
    ([*DRAW, "--temperature", "0"], "temperature must be > 0, got 0.0; use"),
    ([*DRAW, "--temperature", "warm"], "--temperature"),
    ([*DRAW, "--seed", "-1"], "seed"),
    ([*DRAW, "-n", "0"], "'0'"),
    ([*DRAW, "--size", "96x48"], "96x48"),
    ([*DRAW, "--size", "big"], "'big'"),
    (["prepare", "notes.txt", "--out", "x", "--size", "0x32"], "'0x32'"),
    (["ask", "a.png", "no.png", "What? " * 900], "no.png must be an image file"),
    (["draw", "red", "-o", "x.gdoc"], "x.gdoc"),
    (["draw", "red", "-o", "none/x.png"], "does not exist"),
    ([*DRAW, "--device", "abacus"], "abacus"),
    ([*DRAW, "--device", "meta"], "meta"),
    (["draw", "red", "-o", "pipe.png"], "regular file"),
    (["ask", "thin.png", "What?"], "200 times"),
    (["tokenize", "encode", "a.png", "-o", "codes.npz", "--size", "160000x160000"], "pixels"),
    (["tokenize", "encode", "a.png", "-o", "pipe.npz"], "regular file"),
    (["tokenize", "reconstruct", "a.png", "-o", "x.png", "--json", "null.json"], "regular file"),
    (["evaluate", "tokenizer", "--codec", "os:system", "--images", ".", "--output", "x"], "'os:system'"),
    (["evaluate", "tokenizer", "--codec", "os", "--images", ".", "--output", "x"], "'os'"),
    (["evaluate", "requests", "deep.json"], "deep.json, line 1 is not valid JSON (nested too deeply)"),
    (["prepare", "deep.json", "--out", "nested"], "nested too deeply"),
    (["prepare", "deep.jsonl", "--out", "nested"], "nested too deeply"),
    (["prepare", "empty.jsonl", "--out", "empty"], "must get records, got none"),
    (["convert", "unitok", "a.png", "x"], "a.png"),
    (["convert", "export-unitok", ".", "/proc/x.pth"], "config.json"),
    (["convert", "export-unitok", ".", "x.bin"], ".pth"),
    (["convert", "export-unitok", "deep", "x.pth"], "deep/config.json is not valid JSON (nested too deeply)"),
    (["merge", ".", "-o", "a.png"], "must not exist"),
    (["merge", ".", "-o", "x"], "adapter_config.json"),
    ([*DRAW, "-n", "99999999999999"], "1000000"),
    ([*DRAW, "--model", "no/such/folder"], "no/such/folder"),
    ([*DRAW, "--model", "deep"], "nested too deeply"),
    (["tokenize", "encode", "a.png", "-o", "codes.npz", "--model", "deep"], "nested too deeply"),
    ([*DRAW, "--model", "no/such"], "no/such"),
    ([*DRAW, "--model", "."], "model"),
    ([*DRAW, "--class", "3"], "PROMPT"),
    (["ask", "broken.png", "What?"], "broken.png"),
    (["ask", "a.png"], "arguments are required"),
    (["ask", "a.png", "a.png"], "question"),
    (["ask", "a.png", "What?", "--guidance", "2"], "unrecognized arguments"),
    (["edit", "a.png", "", "-o", "b.png"], "instruction"),
    (["edit", "a.png", "x", "-o", "b.png", "--extend", "up"], "left"),
    (["edit", "a.png", "x", "-o", "b.png", "--extend", "right", "--size", "50x48"], "50x48"),
    (["edit", "a.png", "x", "-o", "b.png", "--extend", "right", "--mask", "a.png"], "mask must come without extend"),
    (["tokenize"], "encode, decode, reconstruct"),
    (["tokenize", "encode", "a.png", "-o", "codes.txt"], ".npz"),
    (["tokenize", "encode", "a.png", "-o", "codes.npz", "--size", "50x40"], "multiples of 16"),
    (["tokenize", "decode", "none.npz", "-o", "x.png"], "none.npz"),
    (["tokenize", "reconstruct", "a.png", "a.png", "-o", "x.png"], "2 images"),
    (["evaluate"], "world"),
    (["evaluate", "mmlu"], "'mmlu'"),
    ([*GQA, "--questions", "none.jsonl", "--images", "."], "none.jsonl"),
    ([*GQA, "--questions", "notes.txt", "--images", "."], "notes.txt, line 1"),
    ([*GQA, "--questions", "notes.txt", "--images", ".", "--guidance", "2"], "--guidance"),
    (["evaluate", "world", "--count", "none"], "'none'"),
    (["evaluate", "world", "--jobs", "dance"], "dance"),
    (["prepare", "--out", "x"], "SRC"),
    (["prepare", "none.jsonl", "--out", "x"], "none.jsonl"),
    (["prepare", "notes.txt", "--out", "x"], "'.txt'"),
    (["prepare", "notes.txt", "--out", "x", "--format", "csv"], "invalid choice"),
    (["prepare", "notes.txt", "--out", "x", "--size", "50x40"], "multiples of 16"),
    (["prepare", "notes.txt", "--out", "x", "--image-tokenizer", "none"], "none"),
    (["prepare", "--out", "x", "--show", "2"], "x"),
    (["benchmark", "sing"], "'sing'"),
    (["benchmark", "draw", "--sizes", "XXXL"], "'XXXL'"),
    (["benchmark", "draw", "--json", "nowhere/figures.json"], "nowhere"),
    (["train"], "recipe"),
    (["train", "none.yaml"], "none.yaml"),
    (["train", "recipe.yaml"], "stepz"),
    (["train", "nowhere.yaml"], "/nowhere"),
    (["train", "width.yaml"], "255"),
    (["train", "tiny_tokenizer", "--stepz", "3"], "stepz"),
    (["train", "notes.txt"], "mapping"),
    (["demo", "--port", "many"], "--port"),
    (["demo", "--port", PORT_IN_USE], f"--port must be a free port, got {PORT_IN_USE}"),
    (["demo", "--port", "99999999"], "65535"),
]


@pytest.fixture
def port_in_use() -> Iterator[None]:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # another program has it
            taken.bind(("127.0.0.1", int(PORT_IN_USE)))
            taken.listen()
        yield


@pytest.mark.usefixtures("port_in_use")
def test_wrong_input_gives_one_line_and_status_2(run: Run) -> None:
    failures = []
    for words, fragment in WRONG:
        code, out, err = run(*words)
        one_line = err.startswith("mllm: ") and len(err.strip().splitlines()) == 1
        if code != 2 or out or not one_line or fragment not in err:
            failures.append((" ".join(words)[:60], code, out, err))
    assert not failures, "\n".join(map(str, failures))
    with pytest.raises(ValueError):
        main(["draw", "", "-o", "x.png", "--debug"])


def test_every_verb_explains_itself_with_an_example_and_no_heavy_package() -> None:
    script = (
        "import sys; from mllm.cli.main import main; main(['--help'])\n"
        f"for verb in {tuple(VERBS)}:\n"
        "    try: assert main([verb, '--help']) == 0\n"
        "    except SystemExit as exit: assert not exit.code\n"
        "heavy = {'torch', 'transformers', 'gradio', 'numpy', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert f"\n  {verb} " in done.stdout and f"\nexample: mllm {verb}" in done.stdout


def test_a_successful_command_prints_nothing_else(random_model_folder: Path, tmp_path: Path) -> None:
    words = ["draw", "a red circle", "-o", str(tmp_path / "a.png"), "--model", str(random_model_folder), "--seed", "3"]
    unused = {"scipy", "torchao", "accelerate", "torch._dynamo", "torch.distributed.tensor"}
    script = (
        f"import sys; sys.argv[1:] = {words!r}; from mllm.cli.main import main; main()\n"
        f"assert not (found := {unused} & set(sys.modules)), found\n"
        "import torch; torch.compile(torch.sin, backend='eager')(torch.ones(1))"  # the compiler can still be imported
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{tmp_path / 'a.png'}  seed 3\n", "")


def test_a_package_that_hides_ours_is_named(tmp_path: Path) -> None:
    """`python -m` looks into the current folder first."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def begin(*words: str, folder: Path) -> tuple[int, str]:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr.partition(";")[0]

    for package in PACKAGES[1:]:
        for file in (f"{package}.py", f"{package}/__init__.py"):
            folder = tmp_path / file.replace("/", "-")
            (folder / file).parent.mkdir(parents=True)
            (folder / file).write_text("")
            sentence = f"mllm: the package {package!r} must be the one in {ROOT}, got {folder / file}"
            assert begin("-m", "mllm", "draw", "-h", folder=folder) == (2, sentence)
    folder = tmp_path / "data"
    (folder / "tokenizer").mkdir(parents=True)
    assert begin("-m", "mllm", "draw", "-h", folder=folder) == (0, ""), "a folder of data hides no package on the path"
    # but one that `pip install -e` installed, whose place is not on the path
    script = f"import sys; from mllm.cli.main import main; sys.path = [{str(folder)!r}]; sys.exit(main(['draw', '-h']))"
    sentence = f"mllm: the package 'tokenizer' must be the one in {ROOT}, got {folder / 'tokenizer'}"
    assert begin("-c", script, folder=folder) == (2, sentence)
