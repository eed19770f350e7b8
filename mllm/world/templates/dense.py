"""Requests for a depth picture and for a segmentation picture."""

from __future__ import annotations

CANONICAL = {"depth": "Depth estimation.", "segmentation": "Semantic segmentation."}

DEPTH = (
    "Estimate the depth.",
    "Show the depth.",
    "Show me the depth map.",
    "Depth map, please.",
    "Make a depth map of this picture.",
    "Compute the depth of the image.",
    "How near is everything? Draw the depth.",
    "Predict the depth of every pixel.",
    "Give me the depth image.",
    "What is near and what is far? Show it as a depth map.",
    "Can you estimate the depth?",
    "Turn this picture into a depth map.",
    "Please estimate depth.",
    "depth",
    "depth map",
)
SEGMENTATION = (
    "Segment the image.",
    "Segment the picture.",
    "Show the segmentation.",
    "Show me the segmentation map.",
    "Segmentation map, please.",
    "Make a segmentation of this picture.",
    "Color every shape by its class.",
    "Predict the class of every pixel.",
    "Give me the segmentation mask.",
    "Label every pixel.",
    "Can you segment the picture?",
    "Turn this picture into a segmentation map.",
    "Please segment the shapes.",
    "segment",
    "segmentation",
)
