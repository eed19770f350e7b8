"""A synthetic world of flat shapes: scenes, images, sentences about them, and a checker that parses images back.

Knows no model; numpy, scipy, PIL and YAML suffice for everything but `plan`, which shares the grid of mllm.sequence.
"""
