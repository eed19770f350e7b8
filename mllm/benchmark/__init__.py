"""Speed and memory: ours beside a naive reference and beside what the machine's memory allows, in one run."""
