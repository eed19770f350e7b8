"""Templates of requests in several steps, and the words between the pictures of the answer.

Slots: {caption} what to draw, {edit} an instruction with its final mark ({Edit} with a capital), {question}.
"""

from __future__ import annotations

DRAW_THEN_EDIT = (
    "Draw {caption}. Then {edit}",
    "Draw {caption}, then {edit}",
    "First draw {caption}, then {edit}",
    "Please draw {caption} and then {edit}",
    "Paint {caption}. After that, {edit}",
    "In two steps: draw {caption}, then {edit}",
    "Step 1: draw {caption}. Step 2: {edit}",
    "Show me {caption}. Next, {edit}",
    "I want two pictures: {caption}; then {edit}",
    "Begin with {caption}. {Edit} Show both pictures.",
    "Start with {caption} and afterwards {edit}",
    "Make a picture of {caption}. In a second picture, {edit}",
    "Draw {caption}. Now {edit}",
    "Create {caption}; in the next image {edit}",
    "Could you draw {caption} and afterwards {edit}",
)
DRAW_THEN_DESCRIBE = (
    "Draw {caption} and describe it.",
    "Draw {caption}. Then describe what you drew.",
    "Please draw {caption} and tell me what can be seen.",
    "Show me {caption} and describe the picture.",
    "Make a picture of {caption} and describe it.",
    "First draw {caption}, then describe the picture.",
    "Paint {caption} and say what is where.",
    "Give me {caption} with a description.",
    "I want a picture of {caption} and a description of it.",
    "Illustrate and describe {caption}.",
    "Can you draw {caption} and tell me what it shows?",
    "Could you paint {caption}, then describe it?",
    "Sketch {caption}, then put it into words.",
)
DRAW_THEN_ANSWER = (
    "Draw {caption}. {question}",
    "Draw {caption} and answer: {question}",
    "Show me {caption}. {question}",
    "Please draw {caption}. Then tell me: {question}",
    "First draw {caption}. Then answer this: {question}",
    "Make a picture of {caption} and answer my question: {question}",
    "Paint {caption}. In your picture: {question}",
    "I want a picture of {caption}. And: {question}",
    "Sketch {caption}. {question}",
    "Could you draw {caption}? And tell me: {question}",
)
DRAW_THEN_DENSE = {
    "depth": (
        "Draw {caption} and show its depth.",
        "Draw {caption}. Then estimate the depth.",
        "Show me {caption} and its depth map.",
        "First draw {caption}, then make a depth map of it.",
        "Please draw {caption} together with the depth.",
        "Make a picture of {caption} and a depth map.",
        "Paint {caption}. Depth estimation.",
    ),
    "segmentation": (
        "Draw {caption} and show its segmentation.",
        "Draw {caption}. Then segment it.",
        "Show me {caption} and its segmentation map.",
        "First draw {caption}, then segment the picture.",
        "Please draw {caption} together with the segmentation.",
        "Make a picture of {caption} and a segmentation of it.",
        "Paint {caption}. Semantic segmentation.",
    ),
}
EDIT_THEN_DESCRIBE = (
    "{Edit} Then describe the result.",
    "{Edit} What do you see now?",
    "{Edit} Describe the new picture.",
    "{Edit} And tell me what the picture shows then.",
    "First {edit} Then describe the picture.",
    "Please {edit} Then say what is in it.",
    "{Edit} Show me the picture and describe it.",
    "{Edit} Then tell me what you see.",
    "{Edit} How does the picture look now?",
    "Could you {edit} After that, describe it.",
)

THE_OTHER_ONE = (
    "And the other one?",
    "What about the other one?",
    "And what about the other shape?",
    "And the second one?",
    "How about the other one?",
    "the other one?",
)

# The words between pictures; they do not vary, so that only the request decides the answer.
HERE = "Here is the picture."
CHANGED = "Here is the changed picture."
DENSE_HERE = {"depth": "Here is the depth.", "segmentation": "Here is the segmentation."}
