"""transformers' own tests of processors on ours: `ProcessorTesterMixin` of the installed version's sources.

Every test of it passes, or stands in `EXPECTED` with its reason; one that stands there and passes is an error as well.
"""

from __future__ import annotations

import subprocess
import sys
import unittest
from importlib import import_module

import pytest

from mllm.checkpoint import BUNDLED
from mllm.processor import MLLMProcessor
from scripts.fetch_transformers_tests import PACKAGE, default_folder, fetch

EXPECTED = {
    "test_tokenizer_decode_defaults": "our `decode` leaves special tokens out unless asked: they frame images",
}
"""Tests that fail, each with its reason."""


@pytest.mark.slow
def test_transformers_own_tests_of_processors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        monkeypatch.syspath_prepend(fetch(default_folder()))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the source distribution of transformers cannot be had here: {error}")
    mixin = import_module(f"{PACKAGE}.test_processing_common").ProcessorTesterMixin

    class Case(mixin, unittest.TestCase):
        processor_class = MLLMProcessor
        model_id = str(BUNDLED)
        images_input_name = "codes"

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    print(f"{result.testsRun} run, {len(result.skipped)} skipped", file=sys.stderr)
    failed = {test.id().rpartition(".")[2]: text for test, text in [*result.failures, *result.errors]}
    assert failed.keys() == EXPECTED.keys(), "\n".join(failed[name] for name in failed.keys() - EXPECTED.keys())
