"""One autoregressive model that reads and writes text and images.

`import mllm.model` makes its checkpoints known to the Auto classes of transformers. Importing the package alone does
not, because torch and transformers take seconds to import and most commands print their help without them.
"""
