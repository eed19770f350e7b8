"""The chat of the page and the messages of the pipeline are the same conversation; the endpoints for programs."""

import base64
import html
import io
import re
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from demo import app
from demo.answer import (
    BAR,
    FAILED,
    NO_ANSWER,
    NO_ROOM,
    NOTE,
    Settings,
    answer_entry,
    error_entry,
    progress_part,
    reduced,
    show,
    stopped,
    stream_answer,
    to_messages,
    user_entry,
)
from demo.app import BUNDLED, Models, build_demo, load_models
from demo.page import add_request
from mllm.conversation import CodesPart, ImagePart, Message, TextPart
from mllm.engine.request import GenerationResult
from mllm.pipeline import Done, ImageDone, ImagePreview, ImageProgress, Pipeline
from tests.mllm.tiny_folder import build_tiny_folder

CODES = CodesPart(np.zeros((2, 4), dtype=np.int64), (2, 2))
DEFAULTS = Settings(guidance=3.0, temperature=1.0, top_k="")


def as_sent_back(entry: dict) -> dict:
    """An entry as the page returns it: images are files with a type."""
    parts = [p if p.get("type") == "text" else {"type": "file", "file": {"path": p["path"]}} for p in entry["content"]]
    return {"metadata": {}, **entry, "content": parts}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.load(build_tiny_folder(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="module")
def client(pipeline: Pipeline) -> Iterator[Client]:
    demo = build_demo(Models("Random", pipeline, {"Again": lambda: pipeline}))
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    yield Client(address, verbose=False)
    demo.close()


def test_programs_draw_ask_edit_and_chat(client: Client, pipeline: Pipeline, tmp_path: Path) -> None:
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/draw", "/ask", "/edit", "/chat"}
    drawn = Image.open(client.predict("a red circle", 3, api_name="/draw"))
    assert drawn.convert("RGB").tobytes() == pipeline.draw("a red circle", seed=3)[0].tobytes()
    file = tmp_path / "a.png"
    drawn.save(file)
    assert client.predict(handle_file(file), "What?", api_name="/ask") == pipeline.ask(file, "What?")
    edited = client.predict(handle_file(file), "a", 3, api_name="/edit")
    assert Image.open(edited).convert("RGB").tobytes() == pipeline.edit(file, "a", seed=3).tobytes()
    url = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    chat = [{"role": "user", "content": [{"type": "image", "url": url}, {"type": "text", "text": "What?"}]}]
    assert all(part["type"] in ("text", "image") for part in client.predict(chat, 3, api_name="/chat"))
    chat[0]["content"][0]["url"] = "/etc/hostname"
    for wrong, name in (((" ", 3), "/draw"), ((handle_file(file), "", 3), "/edit"), ((chat, 3), "/chat")):
        with pytest.raises(Exception, match="must"):
            client.predict(*wrong, api_name=name)


def test_a_visitor_chooses_among_the_bundled_models(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str | None] = []

    def load(options: Namespace) -> Pipeline:
        loaded.append(options.model)
        return pipeline

    monkeypatch.setattr(app, "load_pipeline", load)
    monkeypatch.setattr(app, "installed_models", lambda: ["tiny", "emoji"])
    for model, names in (
        (None, ["Shapes", "Emoji"]),
        ("emoji", ["Emoji", "Shapes"]),
        ("my/Emoji", ["Emoji (--model)", "Shapes", "Emoji"]),
    ):
        loaded.clear()
        models = load_models(Namespace(model=model, device="cpu"))
        assert models.names == names and loaded == [model], "others are loaded when they are wanted"
        assert models["Emoji"] is models["Emoji"] is pipeline
        assert loaded == ([model] if model == "emoji" else [model, "emoji"])
    files = [file for _, welcome in BUNDLED.values() for each in welcome.examples for file in each.get("files", [])]
    assert len(files) > 4 and all(Path(file).is_file() for file in files if isinstance(file, str))


def test_while_a_model_is_loaded_the_others_answer(pipeline: Pipeline) -> None:
    begins, may_end, others = Event(), Event(), {"Other": lambda: pipeline}

    def load_slowly() -> Pipeline:
        begins.set()
        assert may_end.wait(60)
        return pipeline

    models = Models("First", pipeline, {"Slow": load_slowly, **others})
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(models.__getitem__, "Slow")
        assert begins.wait(60) and models["First"] is models["Other"] is pipeline and not slow.done()
        may_end.set()
        assert slow.result() is pipeline


def test_any_error_is_a_sentence_without_paths(pipeline: Pipeline, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a.png").write_text("no image")

    def answer(*files: Path, find: Callable[[], Pipeline] = lambda: pipeline) -> str:
        history = [as_sent_back(user_entry("look", list(map(str, files))))]
        *_, shown = stream_answer(find, history, DEFAULTS, folder=tmp_path)
        return shown[-1]["content"][0]["text"]

    said = answer(tmp_path / "a.png")
    assert "uploaded file" in said and str(tmp_path) not in said

    def fail(*_: Any, error: Exception, **__: Any) -> Any:
        raise error

    assert "No weights." in answer(find=partial(fail, error=ValueError("no weights")))
    with pytest.raises(gr.Error, match="No weights."):  # as where a visitor chooses a model
        app.in_words(lambda: fail(error=ValueError("no weights")))()
    monkeypatch.setattr(Pipeline, "chat", partial(fail, error=RuntimeError("no such kernel")))
    assert FAILED in answer()


def test_a_long_conversation_drops_its_oldest_turns_and_says_so(pipeline: Pipeline, tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 32), "red")
    turn = [Message("user", (ImagePart(image), TextPart("a"))), Message("assistant", (TextPart("a red circle"),))]
    last = Message("user", (TextPart("a"),))
    assert len(pipeline.shorten([*turn, last])) == 3
    kept = pipeline.shorten([*turn * 40, last])
    assert 1 <= len(kept) < 81 and kept[-1] == last and kept[0].role == "user"
    history = [user_entry("a red circle " * 3, []), {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]
    entries = [as_sent_back(entry) for entry in [*history * 40, user_entry("a", [])]]
    *_, shown = stream_answer(lambda: pipeline, entries, DEFAULTS, folder=tmp_path)
    assert shown[len(entries)]["content"][0]["text"].startswith(NOTE)
    assert len(to_messages([as_sent_back(entry) for entry in shown])) == len(entries) + 1


def test_an_empty_answer_is_an_error_and_says_where_an_image_had_no_room(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: Any
) -> None:
    """A note before it is no answer, with which the conversation could not be continued."""
    turn = [user_entry("a red circle " * 3, []), answer_entry([{"type": "text", "text": "a"}])]
    for has_room, sentence in ((True, NO_ANSWER), (False, NO_ROOM)):
        done = Done(result=GenerationResult([], [], "eos", 0, not has_room, []))
        monkeypatch.setattr(Pipeline, "chat", lambda *_, done=done, **__: (event for event in [done]))
        for num_turns in (0, 40):
            history = [as_sent_back(entry) for entry in [*turn * num_turns, user_entry("a", [])]]
            *_, shown = stream_answer(lambda: pipeline, history, DEFAULTS, folder=tmp_path)
            assert shown[:-1] == history and sentence in shown[-1]["content"][0]["text"]


def test_texts_and_images_become_messages_in_order(tmp_path: Path) -> None:
    Image.new("RGB", (5000, 3000), "red").save(tmp_path / "a.png")
    small = reduced(str(tmp_path / "a.png"))
    assert reduced(small) == small, "a large upload is reduced once"
    Image.new("RGB", (5, 3), "red").save(tmp_path / "a.tiff")
    assert reduced(str(tmp_path / "a.tiff")).endswith(".png"), "browsers show no TIFF"
    typed = "# 1. *a* <b>this</b> [b](c) <img src=x> &amp; $d$\n    `e`"
    request = user_entry(typed, [small])
    messages = to_messages([as_sent_back(request), as_sent_back(answer_entry([{"type": "text", "text": "red"}]))])
    assert [message.role for message in messages] == ["user", "assistant"]
    image, text = messages[0].parts
    assert isinstance(image, ImagePart) and image.image.size == (2048, 1229) and text == TextPart(typed)
    shown = user_entry(typed, [])["content"][0]["text"]
    assert not re.search(r"[#*\[<$\\`]|&(?!#)|1\.|^ ", shown.replace("&#", ""), re.MULTILINE)
    assert html.unescape(shown) == typed
    for value, is_busy in (({"text": " ", "files": []}, False), ({"text": "a", "files": []}, True)):
        with pytest.raises(gr.Error):  # an empty request, or one while an answer comes
            add_request(value, [], is_busy)
    _, history, is_busy = add_request({"text": typed, "files": []}, [], False)
    assert is_busy and to_messages([as_sent_back(history[0])])[0].parts == (TextPart(typed),)


def test_failed_requests_and_unfinished_images_are_no_part_of_the_conversation() -> None:
    text, bar = {"type": "text", "text": "yes"}, progress_part(0.3)
    failed = [user_entry("one", []), error_entry("too <long>")]
    history = [*failed, user_entry("two", []), answer_entry([text]), error_entry("no room"), user_entry("three", [])]
    texts = [message.parts[0].text for message in to_messages([as_sent_back(entry) for entry in history])]
    assert texts == ["two", "yes", "three"]
    assert "&lt;long&gt;" in history[1]["content"][0]["text"]
    assert stopped([user_entry("draw", []), answer_entry([text, bar])])[-1]["content"] == [text]
    only_bar = stopped([user_entry("draw", []), answer_entry([bar])])
    assert len(only_bar) == 2 and BAR not in str(only_bar) and to_messages(only_bar) == []


def test_an_image_is_shown_as_it_grows(tmp_path: Path) -> None:
    """The last preview, faint where it is guessed, stays while the share goes on, and both make room for the image."""
    content: list[dict] = []
    preview = ImagePreview(index=0, done=3, codes=CODES, image=Image.new("RGB", (8, 8), "red"))
    for event in (ImageProgress(index=0, done=16, total=64), preview, ImageProgress(index=0, done=32, total=64)):
        show(event, content, tmp_path)
    (part,) = content
    assert part["text"].startswith(BAR) and "50 %" in part["text"]
    data = base64.b64decode(part["text"].split("base64,")[1].split('"')[0])
    opacity = Image.open(io.BytesIO(data)).getchannel("A")
    assert opacity.getpixel((7, 0)) == 255 and opacity.getpixel((0, 7)) < 64, "of 3 positions one row of 2 is complete"
    show(ImageDone(index=0, codes=CODES, image=Image.new("RGB", (8, 8))), content, tmp_path)
    assert [set(part) for part in content] == [{"path"}]


def test_settings_left_alone_are_left_to_the_model() -> None:
    untouched = Settings(seed="", guidance=3.0, temperature=1.0, top_k=None)
    assert untouched.overrides(DEFAULTS) == {"seed": None}
    changed = Settings(seed=" 7 ", guidance=5.0, temperature=1.0, top_k="40")
    assert changed.overrides(DEFAULTS) == {"seed": 7, "guidance": 5.0, "top_k": 40}
    limited = Settings(guidance=3.0, temperature=1.0, top_k="40")
    assert untouched.overrides(limited)["top_k"] >= 2**16, "an empty field means all"
    with pytest.raises(ValueError):
        Settings(seed="x", guidance=3.0, temperature=1.0, top_k="").overrides(DEFAULTS)
