"""Metrics: pure functions of predictions and answers, in agreement with the benchmarks' official scorers."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from eval.scoring.vqa_text import on_one_line, simplify, simplify_evalai

Z_95 = 1.959963984540054  # the normal distribution's 97.5% quantile

# of VLMEvalKit: an answer that says one of these names no option, whatever else is in it
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
LAST_WORDS = 4  # of VLMEvalKit: where an option's letter is an answer, not an article or an initial


def exact_match(prediction: str, answer: str) -> bool:
    """Whether both are the same words: surrounding white space, one final full stop and case do not count."""
    return _plain(prediction) == _plain(answer)


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of the VQA challenge (VQAv2), 0 to 1.

    An answer counts a third for each annotator who gave it, at most 1, averaged over leaving one annotator out. Where
    all annotators agree to the letter the scorer compares letter by letter, otherwise in the form of `simplify`.

    Args:
        prediction: the model's answer.
        answers: of the annotators, usually 10.
    """
    prediction, answers = on_one_line(prediction), [on_one_line(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = simplify(prediction), [simplify(answer) for answer in answers]
    return _agreement(prediction, answers)


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of EvalAI's scorer (TextVQA; VizWiz in lmms-eval): as `vqa_accuracy`, but always simplified, and in
    EvalAI's form (`simplify_evalai`)."""
    return _agreement(simplify_evalai(prediction), [simplify_evalai(answer) for answer in answers])


def _agreement(prediction: str, answers: Sequence[str]) -> float:
    given = list(answers).count(prediction)
    return sum(min(3, given - (answer == prediction)) for answer in answers) / (3 * len(answers))


def gqa_form(prediction: str) -> str:
    """What LLaVA hands to GQA's scorer, which compares letter by letter: small letters, no final full stops."""
    return prediction.rstrip(".").lower()


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity (DocVQA, ST-VQA) of one answer, 0 to 1.

    The best 1 - distance / longer length over `answers`, or 0 below `threshold`. Case and white space do not count.
    """
    similarities = []
    for answer in answers:
        words, right = (" ".join(text.lower().split()) for text in (prediction, answer))
        longer = max(len(prediction), len(answer))  # of the unchanged texts, as the official scorer has it
        similarities.append(1 - _edit_distance(words, right) / longer if longer else 1.0)
    best = max(similarities)
    return best if best >= threshold else 0.0


def _edit_distance(first: str, second: str) -> int:
    """Levenshtein's: insertions, deletions and substitutions between both."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        previous = row
        row = [i]
        for j, right in enumerate(second, start=1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (left != right)))
    return row[-1]


def pope_says_yes(text: str) -> bool:
    """How POPE reads an answer: no if its first sentence has the word "No", "no" or "not", otherwise yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def pope_is_plain(text: str) -> bool:
    """Whether an answer says yes or no at all, in any spelling; POPE's scorer takes one that does not for a yes."""
    return bool(re.search(r"\b(yes|no|not)\b", text, re.IGNORECASE))


def binary_scores(true_yes: float, false_yes: float, false_no: float, true_no: float) -> dict[str, float]:
    """POPE's five numbers from the four counts; precision and recall are of "yes". A ratio of nothing is 0."""
    total = true_yes + false_yes + false_no + true_no
    precision = _ratio(true_yes, true_yes + false_yes)
    recall = _ratio(true_yes, true_yes + false_no)
    return {
        "accuracy": _ratio(true_yes + true_no, total),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": _ratio(true_yes + false_yes, total),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def mme_reads(text: str) -> str:
    """How MME reads an answer: "yes" or "no" if its first four letters have that word, otherwise "other"."""
    start = text.lower()
    if start not in ("yes", "no"):
        start = start[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mme_score(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Score of one MME task, 0 to 200: percent of questions answered right plus percent of images with both right.

    Args:
        pairs: for each image whether its two questions are answered right.
    """
    questions = sum(map(sum, pairs)) / (2 * len(pairs))
    images = sum(map(all, pairs)) / len(pairs)
    return questions * 100 + images * 100


def scienceqa_letter(text: str) -> str | None:
    """How LLaVA's scorer reads the option: "B", "B. words", or one "The answer is B." anywhere; None: unreadable."""
    if text in ("A", "B", "C", "D", "E"):
        return text
    if re.match(r"[A-E]\. ", text):
        return text[0]
    stated = re.findall(r"The answer is ([A-Z]).", text)
    return stated[0] if len(stated) == 1 else None


def matched_option(text: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer names (MMBench's matching without a judge); None: none or several.

    The letter if exactly one of them is a word of the answer and stands among its last four words, as "A" in "A dog is
    what I see." does not; otherwise the option whose words alone are in the answer, if the answer is no longer than
    twice all options. A refusal names none. Source: VLMEvalKit's `can_infer`.

    Args:
        text: the answer.
        options: letter -> words of the option.
    """
    if any(refusal in text for refusal in REFUSALS):
        return None
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - LAST_WORDS:
        return letters[0]
    if not letters and "Z" in words:  # how a judge says: none of them
        return None
    if len(text) > 2 * sum(map(len, options.values())):
        return None
    named = [letter for letter, option in options.items() if option.lower() in text.lower()]
    return named[0] if len(named) == 1 else None


def most_frequent(answers: Iterable[str]) -> str:
    """The most frequent answer; of equally frequent ones the first in alphabetical order."""
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def question_only_lookup(training: Iterable[tuple[str, str]], questions: Sequence[str]) -> list[str]:
    """Answers by the question's words alone: what was most often answered to the same words in training, and the most
    frequent answer of all for words never seen there.

    Args:
        training: (question, answer) pairs.
        questions: what is asked.

    Returns:
        an answer for each of `questions`.
    """
    by_text: dict[str, list[str]] = defaultdict(list)
    for text, answer in training:
        by_text[text].append(answer)
    majority = most_frequent(answer for answers in by_text.values() for answer in answers)
    table = {text: most_frequent(answers) for text, answers in by_text.items()}
    return [table.get(question, majority) for question in questions]


def wilson_interval(successes: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a proportion of independent trials.

    Args:
        successes: 0 to total.
        total: at least 1.
        z: quantile of the normal distribution; the default gives 95%.

    Returns:
        (low, high) in [0, 1]; never empty, also at 0 and at `total` successes.
    """
    share, square = successes / total, z * z / total
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)
