"""Questions that need no picture, with their answers, and requests that lie outside the world."""

from __future__ import annotations

# (ways to ask, answer). The answer does not vary.
FACTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "Which shape has three sides?",
            "What has three corners?",
            "Name the shape with three sides.",
            "What shape has 3 corners?",
        ),
        "triangle",
    ),
    (
        (
            "Which shape has four equal sides?",
            "What shape has four corners?",
            "Name the shape with four sides.",
            "What has 4 corners?",
        ),
        "square",
    ),
    (
        (
            "Which shape has no corners?",
            "Which shape is round?",
            "Name the round shape.",
            "What shape has no corners and no sides?",
        ),
        "circle",
    ),
    (("Which shape has five points?", "What shape has 5 tips?", "Name the shape that shines at night."), "star"),
    (("Which shape stands for love?", "What shape is a sign of love?", "Name the shape of love."), "heart"),
    (
        ("Which shape looks like a plus sign?", "What shape is the sign for adding?", "Name the shape with four arms."),
        "cross",
    ),
    (
        (
            "How many sides does a triangle have?",
            "How many corners does a triangle have?",
            "Count the sides of a triangle.",
        ),
        "3",
    ),
    (
        (
            "How many sides does a square have?",
            "How many corners does a square have?",
            "Count the corners of a square.",
        ),
        "4",
    ),
    (("How many points does a star have?", "How many tips does a star have?", "Count the points of a star."), "5"),
    (("How many arms does a cross have?", "Count the arms of a cross.", "How many arms has a plus sign?"), "4"),
    (
        (
            "How many corners does a circle have?",
            "How many sides does a circle have?",
            "Count the corners of a circle.",
        ),
        "0",
    ),
    (("Is a circle round?", "Is a disk round?", "Are circles round?"), "yes"),
    (("Is a square round?", "Are squares round?", "Is a triangle round?"), "no"),
    (("Does a triangle have more corners than a square?", "Has a circle more corners than a triangle?"), "no"),
    (("Does a square have more corners than a triangle?", "Has a triangle more corners than a circle?"), "yes"),
    (("What is the opposite of left?", "Which side is opposite to left?", "If it is not left, it is ..."), "right"),
    (("What is the opposite of right?", "Which side is opposite to right?"), "left"),
    (("What is the opposite of above?", "What is the opposite of over?"), "below"),
    (("What is the opposite of below?", "What is the opposite of under?"), "above"),
    (("What is the opposite of small?", "What is the opposite of little?"), "large"),
    (("What is the opposite of large?", "What is the opposite of big?"), "small"),
    (("What color do red and yellow make?", "Mix red and yellow.", "What do you get from yellow and red?"), "orange"),
    (("What color do blue and yellow make?", "Mix blue and yellow.", "What do you get from yellow and blue?"), "green"),
    (("What color do red and blue make?", "Mix red and blue.", "What do you get from blue and red?"), "purple"),
    (("What color do black and white make?", "Mix black and white.", "What do you get from white and black?"), "gray"),
    (("What color is grass?", "What color are leaves in summer?"), "green"),
    (("What color is the sky on a clear day?", "What color is the sea?"), "blue"),
    (("What color is a lemon?", "What color is the sun in a child's drawing?"), "yellow"),
    (("What color is snow?", "What color is milk?"), "white"),
    (("What color is the night?", "What color is coal?"), "black"),
    (("What color is a ripe tomato?", "What color is blood?"), "red"),
    (
        (
            "Which shapes do you know?",
            "What shapes can you draw?",
            "Which shapes can you draw?",
            "List your shapes.",
            "What can you draw?",
        ),
        "I can draw circles, squares, triangles, stars, crosses and hearts.",
    ),
    (
        (
            "Which colors do you know?",
            "What colors can you use?",
            "Which colors can you draw with?",
            "List your colors.",
        ),
        "I can use red, orange, yellow, green, blue and purple.",
    ),
    (
        (
            "Which backgrounds do you know?",
            "What backgrounds can you use?",
            "List your backgrounds.",
            "What can the background be?",
        ),
        "The background can be white, gray, black or cream.",
    ),
    (
        ("Which sizes do you know?", "What sizes can you draw?", "List your sizes."),
        "I can draw small and large shapes.",
    ),
    (
        (
            "How many shapes can you draw at once?",
            "What is the most you can draw?",
            "How many shapes fit into a picture?",
        ),
        "I can draw up to four shapes.",
    ),
    (
        ("Who are you?", "What are you?", "Tell me about yourself.", "What is your name?"),
        "I am a small model that draws, describes and edits pictures of flat shapes.",
    ),
    (
        ("What can you do?", "Help!", "How can you help me?", "What are you good at?", "help"),
        "I can draw shapes, answer questions about a picture, describe it and change it.",
    ),
    (("Hello!", "Hi!", "Hello", "Good morning!", "Hey there!", "hi"), "Hello! What shall I draw?"),
    (("Thank you!", "Thanks!", "Thanks a lot.", "thank you"), "You are welcome!"),
    (("Goodbye!", "Bye!", "See you later.", "bye"), "Goodbye!"),
    (("Do you like shapes?", "Do you like drawing?", "Is drawing fun?"), "Yes, very much."),
)
# What nobody can draw here, and the honest answer.
OUTSIDE = (
    "a dog",
    "a cat",
    "a house",
    "a tree",
    "a car",
    "a person",
    "a horse",
    "a flower",
    "a mountain",
    "the sea",
    "a boat",
    "a robot",
    "a portrait of my mother",
    "a city at night",
    "an elephant",
    "a bird",
    "a fish",
    "a castle",
    "a dragon",
    "a bicycle",
    "an airplane",
    "a landscape",
)
OUTSIDE_REQUESTS = (
    "Draw {thing}.",
    "Please draw {thing}.",
    "Can you draw {thing}?",
    "Show me {thing}.",
    "I want a picture of {thing}.",
    "Generate an image of {thing}.",
    "Paint {thing}.",
    "Make a picture of {thing}.",
)
REFUSAL = "I can only draw circles, squares, triangles, stars, crosses and hearts."

COMPARED_SIZES = ("Which is larger, {a} or {b}?", "Which is bigger: {a} or {b}?", "What is larger, {a} or {b}?")
REVERSED = (
    "If the {a} is {relation} the {b}, where is the {b}?",
    "The {a} is {relation} the {b}. Where is the {b}, seen from the {a}?",
)
SUMS = (
    "What is {a} plus {b}?",
    "How much is {a} and {b}?",
    "{a} shapes and {b} more: how many shapes?",
    "Add {a} and {b}.",
)
