"""An answers file written by one or several processes, each of which may be killed at any time.

The questions are divided into parts. A process claims a part, answers its unanswered questions and appends them. Claims
and appends are operating-system locks on the file `.NAME.locks` beside the answers file, one byte each, so they end
with their process. If a process dies while writing, the next one drops the incomplete last line. The process that finds
all questions answered sorts the lines into the order of the questions.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.answers import Answer, Key, Places, parse_answer
from eval.scoring.protocol import Question
from eval.scoring.records import numbered_lines
from sparse_vlm.errors import UserError
from sparse_vlm.files import write_text, writing


class AnswerLog:
    """The answers file of a run.

    Args:
        path: the .jsonl file; missing folders are created.
        questions: the benchmark's questions.
        model_id, metadata: the same for every line.
        asked: indices of the questions to answer; None: all.

    Attributes:
        done: indices of the answered questions, whichever process answered them.
        open: indices of the unanswered ones among those to answer.

    Raises:
        UserError: a malformed, duplicate or unknown line; answers of another model or under other conditions.
    """

    def __init__(
        self,
        path: Path,
        questions: Sequence[Question],
        model_id: str,
        metadata: dict[str, Any],
        asked: Iterable[int] | None = None,
    ) -> None:
        self.path, self.model_id, self.metadata = path, model_id, metadata
        self._questions, self._places = questions, Places(questions)
        self._asked = frozenset(range(len(questions)) if asked is None else asked)
        self._inode = 0
        self._begin()
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._locks = (path.parent / f".{path.name}.locks").open("wb")
        try:
            with self._appending():
                pass
        except UserError:
            self.close()
            raise

    def _begin(self) -> None:
        """Forget what was read of the file."""
        self._answers: list[Answer] = []
        self._order: list[int] = []  # index of each answer's question
        self._seen: Counter[Key] = Counter()
        self._lines, self._read_bytes = 0, 0
        self.done: set[int] = set()
        self.open = set(self._asked)

    def close(self) -> None:
        """Release all claims."""
        self._locks.close()

    @contextmanager
    def claim(self, number: int, part: Sequence[int]) -> Iterator[list[int]]:
        """Claim a part of the questions until the end of the block.

        Args:
            number: number of the part, the same in all processes.
            part: indices of its questions.

        Yields:
            those to answer that nobody has answered; none if another process has claimed the part.
        """
        if self.open.isdisjoint(part):
            yield []
            return
        byte = number + 1  # byte 0 is for appending
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except BlockingIOError:
            yield []
            return
        try:
            with self._appending():
                pending = [index for index in part if index in self.open]
            yield pending
        finally:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, byte)

    def append(self, texts: Sequence[tuple[int, str]]) -> None:
        """Append (index of the question, answer) pairs. They survive a crash of this process."""
        answers = [self._answer(index, text) for index, text in texts]
        lines = "".join(_line(answer) for answer in answers).encode()
        with self._appending(), writing(self.path):
            with self.path.open("ab") as file:
                file.write(lines)
            self._lines += len(answers)
            self._read_bytes += len(lines)
            self._add(answers)

    def sort(self) -> None:
        """Sort the lines into the order of the questions, which some official scorers require.

        Does nothing until the questions to answer are answered. The lock file is deleted once all of the benchmark's
        are; until then other processes may answer more.
        """
        with self._appending():
            if self.open:
                return
            if self._order != sorted(self._order):
                by_place = dict(zip(self._order, self._answers, strict=True))
                write_text(self.path, "".join(_line(by_place[place]) for place in sorted(by_place)))
            if len(self.done) == len(self._questions):
                (self.path.parent / f".{self.path.name}.locks").unlink(missing_ok=True)

    def _answer(self, index: int, text: str) -> Answer:
        question = self._questions[index]
        return Answer(question.id, question.text, text, self.model_id, self.metadata)

    @contextmanager
    def _appending(self) -> Iterator[None]:
        """Lock the file for this process, and read it to its end, which is a complete line."""
        fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, 0)
        try:
            self._read_on()
            yield
        finally:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, 0)

    def _read_on(self) -> None:
        with self.path.open("rb+") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:  # opened for the first time, or sorted by another process
                self._begin()
                self._inode = inode
            file.seek(self._read_bytes)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                print(f"{self.path}: dropping the last line, which was cut off; its question is asked again.")
                file.truncate(self._read_bytes + whole)
        text = _text(content[:whole], self.path)
        lines = [(self._lines + number, line) for number, line in numbered_lines(text)]
        answers = [parse_answer(line, f"{self.path}, line {number}") for number, line in lines]
        for answer in answers:
            self._check(answer)
        self._add(answers)
        self._lines += text.count("\n")
        self._read_bytes += whole

    def _add(self, answers: Sequence[Answer]) -> None:
        order = self._places.find(answers, self.path, self._seen)
        self._answers += answers
        self._order += order
        self.done.update(order)
        self.open.difference_update(order)

    def _check(self, answer: Answer) -> None:
        if (answer.model_id, answer.metadata) != (self.model_id, self.metadata):
            raise UserError(
                f"{self.path} holds answers of {answer.model_id} {answer.metadata}, but this run is {self.model_id} "
                f"{self.metadata}. Delete the file to start afresh, or choose another one."
            )


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")  # a byte order mark occurs only at the start of the file
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}).") from None


def _line(answer: Answer) -> str:
    return json.dumps(asdict(answer), ensure_ascii=False) + "\n"


@contextmanager
def open_log(
    path: Path,
    questions: Sequence[Question],
    model_id: str,
    metadata: dict[str, Any],
    asked: Iterable[int] | None = None,
) -> Iterator[AnswerLog]:
    """Open an `AnswerLog` for a block. At its end the log is sorted, see `AnswerLog.sort`, and closed."""
    log = AnswerLog(path, questions, model_id, metadata, asked)
    try:
        yield log
        log.sort()
    finally:
        log.close()
