"""Measuring a model: protocols, scores and their tables."""
