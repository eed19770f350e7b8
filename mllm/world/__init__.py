"""A small world of flat shapes: scenes, pictures, sentences about them, and a checker that parses pictures back.

Knows no model and needs no torch: numpy and PIL only.
"""
