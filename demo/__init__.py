"""A chat in the browser. Talks to the pipeline only: it knows no tensors, no tokens and no checkpoints."""
