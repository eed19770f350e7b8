"""Templates of requests for a description, and the few fixed forms of the answer."""

from __future__ import annotations

# Ask for everything: objects, background, relations.
REQUESTS = (
    "Describe the picture.",
    "Describe the image.",
    "Describe this picture.",
    "Describe this image in detail.",
    "Please describe the picture.",
    "What do you see?",
    "What can you see in this picture?",
    "What is in the picture?",
    "What does the image show?",
    "What is shown here?",
    "Tell me what you see.",
    "Tell me about this picture.",
    "Tell me everything about the image.",
    "Can you describe what is in the image?",
    "Could you describe the scene?",
    "Give me a description of the picture.",
    "Give a full description of the scene.",
    "Explain what is in this image.",
    "Say what is in the picture and where.",
    "List every shape and where it is.",
    "Which shapes are there, and where are they?",
    "I can't see the picture, please describe it.",
    "describe",
    "Description, please.",
)

# Ask for one short sentence: objects and background, no relations.
SHORT_REQUESTS = (
    "Write a caption.",
    "Write a short caption for this picture.",
    "Give a caption for the image.",
    "Caption this image.",
    "Describe the picture in one sentence.",
    "Describe the image briefly.",
    "Briefly, what is in the picture?",
    "What would be a good title for this picture?",
    "Sum up the picture in one sentence.",
    "List the shapes and the background.",
    "In short, what do you see?",
    "caption",
)

# The answer hardly varies, so that only the picture decides it.
ONE = "There is {list} {on}."
MANY = "There are {number} shapes {on}: {list}."
SHORT = "{List} {on}."
BACKGROUND = "on a {background} background"
RELATION = "The {a} is {relation} the {b}."
