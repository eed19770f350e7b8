"""Loads the model that a person named, quietly: what is printed belongs to the verb."""

from __future__ import annotations

from argparse import Namespace

from transformers.utils import logging

from mllm.checkpoint import find_model_folder
from mllm.commands.arguments import load_options
from mllm.pipeline import Pipeline


def load_pipeline(arguments: Namespace) -> Pipeline:
    """The pipeline of --model and the options beside it; only fetching a model shows a progress bar."""
    folder = find_model_folder(arguments.model)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return Pipeline.load(folder, **load_options(arguments))
