"""Checkpoints: written, gathered, resharded, averaged."""
