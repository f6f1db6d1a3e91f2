"""How the official scorers simplify answers before they compare them.

Tables and rules are those of the scorers, their slips included, because a score agrees with published ones only with
the same slips. Sources: the VQA challenge's vqaEval.py; EvalAIAnswerProcessor of MMF, which LLaVA and lmms-eval use.
"""

import re
from functools import lru_cache

# The official tables list every misspelling; each is one of these words without one of its apostrophes ...
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
CONTRACTIONS["somebody'd"] = "somebodyd"  # ... but this one, which the scorers have the wrong way round
_COUNT = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_COUNT)}
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS_REMOVED = 32  # the scorers give re.UNICODE, which is 32, where re.sub takes the number of replacements


def on_one_line(answer: str) -> str:
    """Line breaks and tabs become spaces, surrounding white space goes."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(1 << 16)  # annotators mostly give the same answers
def simplify(answer: str) -> str:
    """The VQA challenge's form of an answer: without punctuation and articles, numbers as digits, small letters.

    A punctuation mark vanishes if it stands beside a space anywhere in the answer, or if there is a comma between
    digits; otherwise it becomes a space. Full stops vanish unless a digit follows.
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
    """EvalAI's form of an answer: `simplify`, after commas and question marks are dropped and "'s" is set apart."""
    words = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return simplify(on_one_line(words))
