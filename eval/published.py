"""Published scores to print ours beside: the LLaVA-1.5 recipe with Vicuna-7B and few visual tokens."""

import csv
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("published.csv")
# what a column's numbers are of, where that is not our own protocol
NOTES = {
    "VQAv2": "test-dev, scored by the server",
    "GQA": "testdev_balanced",
    "TextVQA": "val, with LLaVA's OCR hints unless said",
    "POPE": "F1, mean of random, popular and adversarial",
    "MME": "perception",
    "MMB": "MMBench dev, English",
    "SQA-I": "ScienceQA test, questions with a picture",
    "VizWiz": "test-dev, scored by the server",
}


@dataclass(frozen=True)
class PublishedScore:
    """One method's score, in percent or the benchmark's points."""

    method: str
    tokens: int
    value: float
    source: str


def published_scores(column: str) -> list[PublishedScore]:
    """The published rows that have the benchmark `column` (of published.csv), as they stand there."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [
            PublishedScore(row["method"], int(row["tokens"]), float(row[column]), row["source"])
            for row in csv.DictReader(file)
            if row[column]
        ]
