"""Simplify answers as the official scorers do before they compare them.

The tables and rules include the scorers' mistakes; without them, scores would not agree with published ones. Sources:
the VQA challenge's vqaEval.py; EvalAIAnswerProcessor of MMF, which LLaVA and lmms-eval use.
"""

import re
from functools import lru_cache

# The official table lists misspellings: each is one of these words without one of its apostrophes ...
_WITH_APOSTROPHES = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've
    must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't
    what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _WITH_APOSTROPHES.split()
    for place, letter in enumerate(word)
    if letter == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # ... except this one, which the scorers have reversed
_COUNT = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_COUNT)}
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS_REMOVED = 32  # the scorers pass re.UNICODE, which is 32, as re.sub's number of replacements


def on_one_line(answer: str) -> str:
    """Replace line breaks and tabs by spaces, and strip surrounding white space."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(1 << 16)  # many annotators give the same answer
def simplify(answer: str) -> str:
    """Return the VQA challenge's form of an answer: lower case, no punctuation, no articles, numbers as digits.

    A punctuation mark is removed if it occurs next to a space anywhere in the answer, or if the answer has a comma
    between digits; otherwise it becomes a space. Full stops are removed unless a digit follows.
    """
    text = answer
    in_number = _COMMA_IN_NUMBER.search(answer) is not None
    for mark in PUNCTUATION:
        loose = in_number or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if loose else " ")
    text = _FULL_STOP.sub("", text, count=_FULL_STOPS_REMOVED)
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def simplify_evalai(answer: str) -> str:
    """Return EvalAI's form of an answer: `simplify` after removing commas and question marks and separating "'s"."""
    words = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return simplify(on_one_line(words))
