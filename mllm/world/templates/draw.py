"""Templates of requests to draw.

Slots: {a} {b} {c} {d} objects with their article, {the_a} a reference back, {ab} the relation of a to b, {at_a} the
place of a, {on} the background phrase, {background} its color, {list} all objects, {number} how many, {groups} all
objects counted. A slot that is used becomes a constraint; what no slot says is left free.
"""

from __future__ import annotations

# Around a caption (a noun phrase). The bare caption is chosen more often, see draw_language.BARE_SHARE.
REQUESTS = (
    "Draw {caption}.",
    "Draw {caption}.",
    "Please draw {caption}.",
    "Paint {caption}.",
    "Sketch {caption}.",
    "Show me {caption}.",
    "Give me {caption}.",
    "Can you draw {caption}?",
    "Could you paint {caption}?",
    "Would you draw {caption} for me?",
    "I want {caption}.",
    "I would like a picture of {caption}.",
    "I'd like to see {caption}.",
    "I need an image of {caption}.",
    "Generate an image of {caption}.",
    "Generate {caption}.",
    "Create an image of {caption}.",
    "Create a picture showing {caption}.",
    "Make a picture of {caption}.",
    "Make an image with {caption}.",
    "Produce an image of {caption}.",
    "An image of {caption}.",
    "A picture of {caption}.",
    "A drawing of {caption}.",
    "A picture with {caption}.",
    "Let me see {caption}.",
    "Now draw {caption}.",
    "Hi, please draw {caption}.",
    "Draw me {caption}, please.",
    "Image: {caption}.",
)

# Around a statement (a whole sentence).
STATEMENT_REQUESTS = (
    "{Statement}",
    "{Statement}",
    "Draw this: {statement}",
    "Draw a picture: {statement}",
    "Please draw this scene: {statement}",
    "Paint what I say: {statement}",
    "Make an image of this: {statement}",
    "Picture this: {statement}",
    "Here is the scene: {statement}",
    "Draw a picture in which {statement}",
    "Make an image where {statement}",
    "I want a picture where {statement}",
)

# Everything about the scene, by number of objects: captions, then statements.
CAPTIONS: dict[int, tuple[str, ...]] = {
    1: (
        "{a} {on}",
        "{a} {at_a} {on}",
        "{a} {at_a}",
        "{a} {on}, {at_a}",
        "a {background} background with {a}",
        "a {background} background with {a} {at_a}",
        "{a} alone {on}",
        "just {a} {on}",
        "a single shape {on}: {a}",
        "{a}, {at_a}, {on}",
    ),
    2: (
        "{a} {ab} {b} {on}",
        "{a} {ab} {b}",
        "{a} that is {ab} {b} {on}",
        "{a} placed {ab} {b} {on}",
        "{b} with {a} {ab} it {on}",
        "{a} and {b} {on}, {the_a} {ab} {the_b}",
        "{a} and {b}, with {the_a} {ab} {the_b}, {on}",
        "a {background} background with {a} {ab} {b}",
        "{a} {at_a} and {b} {at_b} {on}",
        "two shapes {on}: {a} {ab} {b}",
        "{list} {on}",
        "{a} next to {b} {on}, {the_a} {ab} {the_b}",
    ),
    3: (
        "{a} {ab} {b} and {c} {on}, {the_b} {bc} {the_c}",
        "{a} {ab} {b}, which is {bc} {c}, {on}",
        "{a} {ab} {b}, and {c} {cb} {the_b}, {on}",
        "{list} {on}, {the_a} {ab} {the_b} and {the_b} {bc} {the_c}",
        "{a}, {b} and {c} {on}; {the_a} is {ab} {the_b}, {the_c} is {cb} {the_b}",
        "a {background} background with {a} {ab} {b} and {c} {cb} {the_b}",
        "{a} {at_a}, {b} {at_b} and {c} {at_c} {on}",
        "three shapes {on}: {a}, {b} and {c}, {the_a} {ab} {the_b}",
        "{list} {on}",
        "{list} {on}, with {the_a} {ac} {the_c}",
    ),
    4: (
        "{list} {on}, {the_a} {ab} {the_b}, {the_c} {cd} {the_d}",
        "{a} {ab} {b} and {c} {cd} {d} {on}",
        "{a} {ab} {b}, {c} {cb} {the_b} and {d} {da} {the_a}, {on}",
        "{a} {at_a}, {b} {at_b}, {c} {at_c} and {d} {at_d} {on}",
        "a {background} background with {a} {ab} {b} and {c} {cd} {d}",
        "four shapes {on}: {a} {ab} {b}, and {c} {cd} {d}",
        "{a} {ab} {b}, which is {bc} {c}, which is {cd} {d}, {on}",
        "{list} {on}",
        "{a}, {b}, {c} and {d} {on}, {the_a} {ab} {the_b}, {the_b} {bc} {the_c}",
    ),
}
STATEMENTS: dict[int, tuple[str, ...]] = {
    1: (
        "there is {a} {on}.",
        "the background is {background} and there is {a}.",
        "there is {a} {at_a} {on}.",
        "the background is {background}. There is {a} {at_a}.",
        "{on} there is {a}.",
    ),
    2: (
        "{a} is {ab} {b} {on}.",
        "there is {a} {ab} {b}. The background is {background}.",
        "the background is {background}. {A} is {ab} {b}.",
        "{on} there are two shapes: {a} and {b}. {The_a} is {ab} {the_b}.",
        "there are {list} {on}. {The_b} is {ba} {the_a}.",
        "{ab} {b} there is {a}. The background is {background}.",
        "{on}, {a} is {ab} {b}.",
    ),
    3: (
        "there are three shapes {on}: {list}. {The_a} is {ab} {the_b}. {The_b} is {bc} {the_c}.",
        "{a} is {ab} {b}. {C} is {cb} {the_b}. The background is {background}.",
        "the background is {background}. There are {list}. {The_a} is {ab} {the_b} and {the_c} is {cb} {the_b}.",
        "{on} there are {a} {ab} {b} and {c} {ca} {the_a}.",
    ),
    4: (
        "there are four shapes {on}: {list}. {The_a} is {ab} {the_b}. {The_c} is {cd} {the_d}.",
        "{a} is {ab} {b}. {C} is {cd} {d}. The background is {background}.",
        "the background is {background}. There are {list}. {The_a} is {ab} {the_b}, {the_b} is {bc} {the_c}.",
        "{on}, {a} is {ab} {b}, and {c} is {cd} {d}.",
    ),
}

# Little is said; the rest is free.
BRIEF = ("{list}", "{list} {on}", "{list}", "simply {list}", "{a} {ab} {b}", "{a} {at_a}")

COUNTING = (
    "{groups}",
    "{groups} {on}",
    "{groups} {on}",
    "exactly {groups}",
    "exactly {groups} {on}",
    "a {background} background with {groups}",
    "a scene of {groups}",
    "{groups}, no more and no less",
    "{groups} in one picture",
)
COUNTING_STATEMENTS = (
    "there are {groups}.",
    "there are {groups} {on}.",
    "the background is {background} and there are {groups}.",
    "{on} there are exactly {groups}.",
)

# {larger} {smaller}: two objects without their sizes, {rest}: further objects with a leading comma or nothing.
COMPARISON = (
    "{larger} and {smaller}, {the_larger} larger than {the_smaller} {on}",
    "{larger} that is larger than {smaller} {on}",
    "{larger} bigger than {smaller}",
    "{larger} bigger than {smaller} {on}",
    "{smaller} smaller than {larger} {on}",
    "{smaller} that is smaller than {larger}",
    "{larger} and a smaller {smaller_noun} {on}",
    "{smaller} and a larger {larger_noun} {on}",
    "{larger} and {smaller}, the first bigger than the second {on}",
)
COMPARISON_STATEMENTS = (
    "{larger} is larger than {smaller}.",
    "{larger} is bigger than {smaller} {on}.",
    "{smaller} is smaller than {larger}.",
    "there are {larger} and {smaller} {on}. {The_larger} is larger than {the_smaller}.",
    "there are {larger} and {smaller}. {The_smaller} is the smaller one.",
)
# More than two objects, named without sizes; a is larger than b.
COMPARISON_AMONG = (
    "{list} {on}, {the_a} larger than {the_b}",
    "{list} {on}, with {the_a} bigger than {the_b}",
    "{list}, {the_b} smaller than {the_a}",
    "{list}, of which {the_a} is larger than {the_b}, {on}",
    "{list} {on}, {the_b} being smaller than {the_a}",
)
COMPARISON_AMONG_STATEMENTS = (
    "there are {list} {on}. {The_a} is larger than {the_b}.",
    "there are {list}. {The_b} is smaller than {the_a}.",
    "the background is {background}. There are {list}, and {the_a} is bigger than {the_b}.",
)
SAME_SIZE = (
    "{a} and {b} of the same size {on}",
    "{a} and {b}, equally large, {on}",
    "{a} as big as {b} {on}",
    "{a} and {b} of equal size",
)
TWINS = (
    "a large {noun} and a small {noun} {on}",
    "a small {noun} and a large {noun}",
    "a big {noun} and a little {noun} {on}",
    "one large and one small {noun} {on}",
)

# {kind}: what the objects share ("two hearts"), {ones}: "one red and one blue".
DIFFERENTIATION = (
    "{kind}, {ones} {on}",
    "{kind}, {ones}",
    "{kind} {on}, {ones}",
    "{kind}: {ones}",
    "{kind} {on}: {ones}",
    "{kind}, namely {ones}, {on}",
)
DIFFERENT = (
    "{kind} of different {attribute}s {on}",
    "{kind}, each of a different {attribute} {on}",
    "{kind} that differ in {attribute}",
    "{kind}, no two of the same {attribute} {on}",
)

# {none}: what is absent, "squares" or "red shapes"; {one}: its singular.
NEGATION = (
    "{list} with no {none} {on}",
    "{list} {on} with no {none}",
    "{list} and no {none}",
    "{list} {on} but no {none}",
    "{list} without any {none} {on}",
    "{list} without a {one}",
    "{list}, but not a single {one} {on}",
    "nothing but {list} {on}",
    "nothing but {list}",
    "only {list} {on}",
    "{list} and nothing else {on}",
    "{list} and no other shape {on}",
)
NEGATION_STATEMENTS = (
    "there are {groups} {on}, and none of them is {not_attribute}.",
    "there is no {one}, only {list} {on}.",
    "no shape is {not_attribute}; there are {groups}.",
)
NEGATED_OBJECT = ("{negated} {on}", "{negated}", "just {negated} {on}", "one shape: {negated}")

# {every}: "green", "small", {plural}: "green shapes" or "stars", {number}: how many shapes.
UNIVERSALITY = (
    "{number} shapes, all of them {every} {on}",
    "{number} shapes, all {every}",
    "{number} shapes, every one {every} {on}",
    "{number} {plural} and nothing else {on}",
    "only {plural} {on}, {number} of them",
    "{number} shapes {on}, each of them {every}",
)
UNIVERSALITY_STATEMENTS = (
    "every shape is {every}.",
    "every shape is {every} {on}.",
    "all shapes are {every} {on}.",
    "there are {number} shapes {on} and all of them are {every}.",
    "there are {number} shapes. Each is {every}.",
    "all {number} shapes are {every} {on}.",
    "everything is {every}; there are {number} shapes.",
)
UNIVERSALITY_SHAPE_STATEMENTS = (
    "every shape is {every}.",
    "every shape is {every} {on}.",
    "every one of the {number} shapes is {every} {on}.",
    "there are {number} shapes {on} and each of them is {every}.",
)
