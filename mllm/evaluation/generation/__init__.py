"""Benchmarks of drawing, and what scores pictures."""
