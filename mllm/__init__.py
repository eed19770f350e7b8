"""One autoregressive model that reads and writes text and images."""
