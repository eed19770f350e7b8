"""Random training samples for the tests of the model: text and images, learned or not."""

import numpy as np

from mllm.sequence import IGNORED, TokenSequence
from tests.mllm.engine_helpers import CODEBOOK_SIZE, FIRST_TEXT_ID, IDS, NUM_CODEBOOKS


def learned_sample(*, seed: int, plan: list[str], positions: int = 9) -> TokenSequence:
    """Parts in the order of `plan`: "text" or "image", in capitals where learned."""
    rng = np.random.default_rng(seed)
    ids, labels, targets = [1], [IGNORED], []
    for kind in plan:
        is_learned = kind.isupper()
        if kind.lower() == "text":
            part = rng.integers(FIRST_TEXT_ID, 38, rng.integers(2, 7)).tolist()
            labels += part if is_learned else [IGNORED] * len(part)
        else:
            part = [IDS["begin_image_id"], *[IDS["image_token_id"]] * positions, IDS["end_image_id"]]
            labels += [part[0] if is_learned else IGNORED, *[IGNORED] * (positions + 1)]
            targets += [is_learned] * positions
        ids += part
    return TokenSequence(
        token_ids_T=np.array(ids),
        labels_T=np.array(labels),
        codes_PK=rng.integers(0, CODEBOOK_SIZE, (len(targets), NUM_CODEBOOKS)),
        image_lengths_I=np.full(len(targets) // positions, positions),
        code_targets_P=np.array(targets, dtype=bool),
    )
