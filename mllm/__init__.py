"""One autoregressive model that reads and writes text and images.

`import mllm.model` makes its checkpoints known to the Auto classes of transformers. Importing the package alone does
not, because torch and transformers take seconds to import and most commands print their help without them.
"""

import logging

for _library in ("torchao", "torch.utils._pytree"):  # warn at every start about what no user can change
    logging.getLogger(_library).setLevel(logging.ERROR)
