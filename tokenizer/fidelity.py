"""FID and Inception Score of folders of pictures, by torch-fidelity (optional: extra `eval-images`).

In: two folders of pictures. Out: numbers. FID of few pictures is biased upwards; compare equal counts only.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import torch


def fidelity(made: Path, real: Path | None, *, batch_size: int) -> dict[str, float]:
    """rFID and IS of a folder of pictures against another, as UniTok reports them (Inception of 2015, seed 0)."""
    torch_fidelity = need_fidelity()
    found = torch_fidelity.calculate_metrics(
        input1=str(made),
        input2=str(real),
        cuda=torch.cuda.is_available(),
        batch_size=batch_size,
        isc=True,
        fid=True,
        rng_seed=0,
        verbose=False,
    )
    return {"rfid": found["frechet_inception_distance"], "inception_score": found["inception_score_mean"]}


def need_fidelity() -> ModuleType:
    """The library, or how to get it."""
    try:
        import torch_fidelity
    except ImportError as error:
        raise ImportError(
            f"rFID and IS need torch-fidelity: found none ({error}); `pip install 'mllm-toolkit[eval-images]'` in an "
            "environment whose torchvision fits its torch"
        ) from error
    return torch_fidelity
