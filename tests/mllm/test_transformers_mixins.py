"""transformers' own tests on ours: `ModelTesterMixin` and `ProcessorTesterMixin` of the installed version's sources.

Every test passes, or stands in a table with its reason; one that stands there and passes is an error as well.
"""

import subprocess
import sys
import unittest
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from mllm.checkpoint import BUNDLED
from mllm.config import MLLMConfig
from mllm.model import MLLMForConditionalGeneration
from mllm.processor import MLLMProcessor
from scripts.fetch_transformers_tests import PACKAGE, default_folder, fetch
from tests.mllm.tiny_folder import random_image

B, T, N, K = 3, 13, 4, 3
EXPECTED_OF_MODELS = {
    "test_generation_tester_mixin_inheritance": "the source distribution has no GenerationTesterMixin to inherit from"
}
EXPECTED_OF_PROCESSORS = {
    "test_tokenizer_decode_defaults": "our `decode` leaves special tokens out unless asked: they frame images"
}
"""Tests that fail, each with its reason."""


class TinyModel(SimpleNamespace):
    """What the mixin asks of a "model tester": sizes, a config and inputs."""

    is_training = True
    batch_size, seq_length, hidden_size = B, T, 24
    num_hidden_layers, num_attention_heads = 2, 3

    def get_config(self) -> MLLMConfig:
        sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 3}
        text_config = LlamaConfig(vocab_size=99, intermediate_size=40, max_position_embeddings=160, **sizes)
        codes = {"num_codebooks": K, "codebook_size": 17, "code_width": 4, "image_size": 32, "image_token_id": 5}
        heads = {"embedder_width": 24, "embedder_heads": 3, "head_layers": 1, "head_type": self.head_type}
        return MLLMConfig(text_config=text_config, **codes, **heads)

    def prepare_config_and_inputs_for_common(self) -> tuple[MLLMConfig, dict[str, Any]]:
        config = self.get_config()
        inputs = {"input_ids": torch.randint(6, 99, (B, T)), "attention_mask": torch.ones(B, T, dtype=torch.int64)}
        if self.has_images:
            inputs["input_ids"][:, 3 : 3 + N] = config.image_token_id
            inputs |= images(B)
        return config, inputs


def images(count: int) -> dict[str, torch.Tensor]:
    codes_PK = torch.arange(count * N * K).view(-1, K) * 7 % 17
    return {"codes": codes_PK, "image_lengths": torch.full((count,), N)}


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    try:
        monkeypatch.syspath_prepend(fetch(default_folder()))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the source distribution of transformers cannot be had here: {error}")
    monkeypatch.setattr(pytest.mark, "_config", None)  # their marks are not among ours
    return lambda name: import_module(f"{PACKAGE}.{name}")


def run(case: type[unittest.TestCase], expected: set[str]) -> None:
    """Run all tests; those that fail must be the expected ones."""
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    failed = {test.id().rpartition(".")[2]: text for test, text in [*result.failures, *result.errors]}
    print(f"{result.testsRun} run, {len(result.skipped)} skipped", file=sys.stderr)
    assert failed.keys() == expected, "\n".join(f"{name}: {failed.get(name)}" for name in failed.keys() ^ expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("has_images", "head_type"), [(False, "depth_transformer"), (True, "mlp"), (True, "depth_transformer")]
)
def test_transformers_own_tests_of_models_pass(has_images: bool, head_type: str, theirs: Callable[[str], Any]) -> None:
    mixin = theirs("test_modeling_common").ModelTesterMixin

    class Case(mixin, unittest.TestCase):
        all_model_classes = (MLLMForConditionalGeneration,)
        _is_composite = True

        def _prepare_for_class(self, inputs: dict[str, Any], model_class: type, return_labels: bool = False) -> dict:
            """Labels for a class that transformers' tables do not have, images learned as well; and codes for the
            placeholders where a test picks only the inputs that it knows."""
            inputs = super()._prepare_for_class(inputs, model_class)
            if num_images := int((inputs["input_ids"] == 5).sum()) // N:
                inputs |= images(num_images)
            return {**inputs, "labels": inputs["input_ids"].clone()} if return_labels else inputs

        def setUp(self) -> None:
            torch.manual_seed(0)
            self.model_tester = TinyModel(has_images=has_images, head_type=head_type)

    run(Case, set(EXPECTED_OF_MODELS))


class WithoutVideos(MLLMProcessor):
    """Their tests of chats with images also pass options of videos, which ours refuses."""

    def apply_chat_template(self, *args: Any, processor_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        others = {name: value for name, value in (processor_kwargs or {}).items() if name not in ("num_frames", "fps")}
        return super().apply_chat_template(*args, processor_kwargs=others, **kwargs)


@pytest.mark.slow
def test_transformers_own_tests_of_processors_pass(
    theirs: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that are skipped without an image processor, where they do not set options of one."""
    module, image = theirs("test_processing_common"), tmp_path / "picture.png"
    random_image(size=(400, 30)).save(image)
    monkeypatch.setattr(module, "url_to_local_path", lambda *args: str(image))

    class Case(module.ProcessorTesterMixin, unittest.TestCase):
        processor_class = MLLMProcessor
        model_id = str(BUNDLED)
        images_input_name = "image_lengths"

        def get_processor(self, **options: Any) -> MLLMProcessor:
            processor = super().get_processor(**options)
            processor.image_processor = None  # images with texts are not skipped
            return processor

        def test_chats_with_images(self) -> None:
            self.processor_class = WithoutVideos
            for size, tensors in ((1, "pt"), (2, "pt"), (1, "np"), (2, "np")):
                options = "image", size, tensors, "images_input_name", "tokenizer", [str(image)] * 2
                self._test_apply_chat_template(*options)

        def test_options_given_twice(self) -> None:
            self.get_subprocessor_name = lambda *args: "tokenizer"
            self._test_overlapping_text_modality_kwargs_handling("images")
            self._test_doubly_passed_kwargs("images")

    run(Case, set(EXPECTED_OF_PROCESSORS))
