"""The console command: what it writes and prints, and one line for every wrong input."""

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from PIL import Image

from mllm.cli.main import PACKAGES, VERBS, main
from mllm.pipeline import Pipeline
from tests.train.launching import ROOT, run_program

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, random_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an image, a broken image, a text and recipes."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 40), "red").save("a.png")
    Image.new("RGB", (1, 10_000)).save("thin.png")
    Path("deep").mkdir()
    files = f"image_tokenizer: {random_model_folder}/image_tokenizer\ntext_tokenizer: {random_model_folder}"
    recipe = f"kind: mllm\noutput: run\n{files}\ntrainer: {{max_steps: 1}}\n"
    for name, text in {
        "broken.png": "\x89PNG\r\n\x1a\n and then nothing",
        "notes.txt": "no image",
        "deep.json": "[" * 100_000,
        "deep/config.json": "[" * 100_000,
        "deep/model.safetensors": "",
        "deep.jsonl": '{"a":' * 100_000,
        "empty.jsonl": "",
        "nowhere.yaml": f"{recipe}start_from: /nowhere\n",
        "width.yaml": f"{recipe}model: {{text_config: {{hidden_size: 255, num_attention_heads: 4}}}}\n",
        "recipe.yaml": "kind: image_tokenizer\noutput: run\nstepz: 3\n",
    }.items():
        Path(name).write_text(text)
    os.mkfifo("pipe.png")
    os.mkfifo("pipe.npz")
    Path("null.json").symlink_to("/dev/null")
    return tmp_path


@pytest.fixture
def run(random_model_folder: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> Run:

    def run(*words: str) -> tuple[int, str, str]:
        without = {"train", "benchmark", "convert", "merge", "no-such-verb", "score", "report", "--model"}
        with_model = not without & set(words)
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
    monkeypatch.setattr(Pipeline, "decline", lambda self, prompt, image=None: "I can't draw dogs.")
    for words in (["draw", "a dog"], ["edit", "a.png", "add a dog"]):
        code, out, err = run(*words, "-o", "dog.png", "--seed", "1")
        assert (code, out) == (3, "") and "I can't draw dogs." in err and "--force" in err
        assert not (folder / "dog.png").exists()
        assert run(*words, "-o", "dog.png", "--seed", "1", "--force")[0] == 0
        (folder / "dog.png").unlink()


def test_ask_prints_the_answer_alone_and_codes_decode_to_the_reconstruction(
    run: Run, folder: Path, random_model_folder: Path
) -> None:
    code, out, _ = run("ask", "a.png", "a.png", "what color is it?", "--max-new-tokens", "9")
    expected = Pipeline.load(random_model_folder).ask(["a.png", "a.png"], "what color is it?", max_new_tokens=9)
    assert (code, out.strip()) == (0, expected) and out.endswith("\n")
    code, out, _ = run("tokenize", "encode", "a.png", "-o", "codes.npz")
    assert (code, out) == (0, "codes.npz: 1 x 3 codebooks x 3 x 3 positions\n")
    assert run("tokenize", "decode", "codes.npz", "-o", "decoded")[0] == 0
    code, out, _ = run("tokenize", "reconstruct", "a.png", "-o", "again.png", "--json", "scores.json")
    assert code == 0 and "PSNR" in out and (folder / "scores.json").is_file()
    assert (folder / "decoded" / "a.png").read_bytes() == (folder / "again.png").read_bytes()


def test_chat_answers_in_turn_and_survives_wrong_input_and_interruptions(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(
        ["/image none.png", "/image", "/image a.png", "what is it?", "", "/nonsense", "/new", "draw it", "/quit", "no"]
    )
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    code, _, err = run("chat", "--seed", "1", "--images", "drawings")
    assert code == 0 and next(lines) == "no"
    assert "none.png" in err and "write /image FILE" in err and "got '/nonsense'" in err
    assert len(err.strip().splitlines()) == 3
    monkeypatch.undo()
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
TABLE = Path(__file__).with_name("wrong_commands.txt").read_text(encoding="utf-8").splitlines()
WRONG = [  # words, and what the one line must name
    *((shlex.split(words), named) for words, _, named in (line.partition("  =>  ") for line in TABLE[1:])),
    (["draw", "a \udcff circle", "-o", "x.png"], "UTF-8"),
    (["ask", "a.png", "no.png", "What? " * 900], "no.png must be an image file"),
]


def test_wrong_input_gives_one_line_and_status_2(run: Run) -> None:
    failures = []
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # another program has it
            taken.bind(("127.0.0.1", int(PORT_IN_USE)))
            taken.listen()
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
    printed = run_program(sys.executable, "-c", script)
    for verb in VERBS:
        assert f"\n  {verb} " in printed and f"\nexample: mllm {verb}" in printed
    path = ["mllm/cli/main.py  main", "mllm/files.py  version_of", "2 files, 2 functions"]
    assert run_program(sys.executable, "scripts/trace_path.py", "--version").splitlines()[1:] == path


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

    def begin(folder: Path, *words: str) -> tuple[int, str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr.partition(";")[0]

    for package, file in zip(PACKAGES[1:], ("tokenizer.py", "train/__init__.py", "demo.py"), strict=True):
        (tmp_path / package / file).parent.mkdir(parents=True)
        (tmp_path / package / file).write_text("")
        sentence = f"mllm: the package {package!r} must be the one in {ROOT}, got {tmp_path / package / file}"
        assert begin(tmp_path / package, "-m", "mllm", "draw", "-h") == (2, sentence)
    folder = tmp_path / "data"
    (folder / "tokenizer").mkdir(parents=True)
    assert begin(folder, "-m", "mllm", "draw", "-h") == (0, ""), "a folder of data hides no package on the path"
    # but one that `pip install -e` installed, whose place is not on the path
    script = f"import sys; from mllm.cli.main import main; sys.path = [{str(folder)!r}]; sys.exit(main(['draw', '-h']))"
    sentence = f"mllm: the package 'tokenizer' must be the one in {ROOT}, got {folder / 'tokenizer'}"
    assert begin(folder, "-c", script) == (2, sentence)
