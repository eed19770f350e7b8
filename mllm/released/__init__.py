"""The published checkpoints: their layout, keys and memory, to ours and back."""
