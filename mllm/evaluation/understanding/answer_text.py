"""Bring a short answer to the form in which VQA answers are compared: the normaliser of EvalAI and of the VQA server.

In: what a person or a model said. Out: the same in lower case, numbers as digits, no articles, no punctuation,
contractions with their apostrophes. Pure functions of strings. The rules and their quirks are those of the reference
scorers (VQA 2.0's evaluation, "M4C" in Pythia), because published numbers depend on them.
"""

from __future__ import annotations

import re

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {"none": "0"} | {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
PERIOD = re.compile(r"\.(?!\d)")  # the reference means "nor after a digit" too, but its pattern does not say so
MAX_PERIODS = 32  # the reference passes the flag re.UNICODE (32) where the number of replacements goes
DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")

CONTRACTIONS = dict(
    pair.split("=")
    for pair in """
aint=ain't arent=aren't cant=can't couldve=could've couldnt=couldn't couldn'tve=couldn't've couldnt've=couldn't've
didnt=didn't doesnt=doesn't dont=don't hadnt=hadn't hadnt've=hadn't've hadn'tve=hadn't've hasnt=hasn't havent=haven't
hed=he'd hed've=he'd've he'dve=he'd've hes=he's howd=how'd howll=how'll hows=how's isnt=isn't itd=it'd itd've=it'd've
it'dve=it'd've itll=it'll let's=let's maam=ma'am mightnt=mightn't mightnt've=mightn't've mightn'tve=mightn't've
mightve=might've mustnt=mustn't mustve=must've neednt=needn't notve=not've oclock=o'clock oughtnt=oughtn't
ow's'at='ow's'at 'ows'at='ow's'at 'ow'sat='ow's'at shant=shan't shed've=she'd've she'dve=she'd've she's=she's
shouldve=should've shouldnt=shouldn't shouldnt've=shouldn't've shouldn'tve=shouldn't've somebody'd=somebodyd
somebodyd've=somebody'd've somebody'dve=somebody'd've somebodyll=somebody'll somebodys=somebody's someoned=someone'd
someoned've=someone'd've someone'dve=someone'd've someonell=someone'll someones=someone's somethingd=something'd
somethingd've=something'd've something'dve=something'd've somethingll=something'll thats=that's thered=there'd
thered've=there'd've there'dve=there'd've therere=there're theres=there's theyd=they'd theyd've=they'd've
they'dve=they'd've theyll=they'll theyre=they're theyve=they've twas='twas wasnt=wasn't wed've=we'd've we'dve=we'd've
weve=we've werent=weren't whatll=what'll whatre=what're whats=what's whatve=what've whens=when's whered=where'd
wheres=where's whereve=where've whod=who'd whod've=who'd've who'dve=who'd've wholl=who'll whos=who's whove=who've
whyll=why'll whyre=why're whys=why's wont=won't wouldve=would've wouldnt=wouldn't wouldnt've=wouldn't've
wouldn'tve=wouldn't've yall=y'all yall'll=y'all'll y'allll=y'all'll yall'd've=y'all'd've y'alld've=y'all'd've
y'all'dve=y'all'd've youd=you'd youd've=you'd've you'dve=you'd've youll=you'll youre=you're youve=you've
""".split()
)
"""As the reference has them, the odd ones (somebody'd) included. Its capitalised ones never match and are left out."""


def normalise(answer: str) -> str:
    """The answer as EvalAI's processor leaves it."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return tidy(text.replace("\n", " ").replace("\t", " ").strip())


def tidy(text: str) -> str:
    """Punctuation, then numbers, articles and contractions: all that the VQA server does to an answer."""
    return replace_words(remove_punctuation(text))


def remove_punctuation(text: str) -> str:
    """Take a mark out where it touches a space, else put a space in its place; periods go except before digits.

    One comma between digits anywhere ("1,000-2,000") makes every mark go without a space.
    """
    has_long_number = DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        is_loose = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if is_loose or has_long_number else " ")
    return PERIOD.sub("", result, count=MAX_PERIODS)


def replace_words(text: str) -> str:
    """Lower case; number words to digits, articles out, contractions mended."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
