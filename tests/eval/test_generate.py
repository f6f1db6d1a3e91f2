"""`python -m eval.generate` on the tiny model: complete, resumable, and clear about bad input."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from PIL import Image

from eval import score
from eval.answer_log import AnswerLog
from eval.answers import read_answers
from eval.benchmarks import easy_vqa
from eval.generate import generate_answers, main
from eval.scoring.protocol import EncodedImage, Question
from sparse_vlm.data import easy_vqa as dataset
from sparse_vlm.errors import UserError
from sparse_vlm.image_files import open_image
from sparse_vlm.vlm import chat
from sparse_vlm.vlm.answering import Answerer
from train.forked import fork_python

QUESTIONS = 400


@pytest.fixture(scope="module")
def question_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first test questions in the official format."""
    file = tmp_path_factory.mktemp("questions") / "questions.json"
    file.write_text(json.dumps([[q.text, q.answer, q.image_id] for q in dataset.load_questions("test")[:QUESTIONS]]))
    return file


@pytest.fixture(scope="module")
def uninterrupted(vlm_dir: Path, question_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers file of one run."""
    file = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    assert main(command(vlm_dir, question_file, file)) == 0
    return file


def command(model: Path, questions: Path, answers: Path, *more: str) -> list[str]:
    paths = ["--model", str(model), "--questions", str(questions), "--answers", str(answers)]
    return ["easy_vqa", *paths, "--device", "cpu", "--dtype", "float32", *more]


def test_cuda_graphs_need_cuda(
    vlm_dir: Path, question_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(vlm_dir, question_file, tmp_path / "answers.jsonl", "--cuda_graphs")) == 2
    assert "CUDA graphs need a CUDA device, and the model is on cpu" in capsys.readouterr().err


def texts(file: Path) -> dict[int | str, str]:
    return {answer.question_id: answer.text for answer in read_answers(file)}


def test_lines_are_in_llavas_format(uninterrupted: Path, vlm_dir: Path) -> None:
    lines = [json.loads(line) for line in uninterrupted.read_text().splitlines()]
    assert sorted(line["question_id"] for line in lines) == list(range(QUESTIONS))
    first = next(line for line in lines if line["question_id"] == 0)
    assert first["prompt"] == dataset.load_questions("test")[0].text
    assert first["model_id"] == f"{vlm_dir.parent.name}/tiny-vlm"
    assert first["metadata"]["image"] is True
    assert first["metadata"]["visual_tokens"] == 6
    assert (first["metadata"]["device"], first["metadata"]["dtype"]) == ("cpu", "float32")


def test_answers_in_another_dtype_are_not_mixed(
    vlm_dir: Path, question_file: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = uninterrupted.read_bytes()
    assert main(command(vlm_dir, question_file, uninterrupted, "--dtype", "bfloat16")) == 2
    assert "'dtype': 'float32'" in capsys.readouterr().err
    assert uninterrupted.read_bytes() == before


def test_the_number_of_visual_tokens_is_recorded_and_not_mixed(
    vlm_dir: Path, answerer: Answerer, question_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, limit = tmp_path / "answers.jsonl", ["--limit", "12"]
    assert main(command(vlm_dir, question_file, file, *limit, "--visual_tokens", "4")) == 0
    answers = read_answers(file)
    assert {answer.metadata["visual_tokens"] for answer in answers} == {4}
    model, processor = answerer.model, answerer.processor
    questions = easy_vqa.load_questions(question_file, None)[:12]
    for question, said in zip(questions, answers, strict=True):
        assert isinstance(question.image, Path)
        image = open_image(question.image)
        assert said.text == chat.answer(model, processor, image, question.text, 8, visual_tokens=4)
    for other in ([], ["--visual_tokens", "5"]):
        capsys.readouterr()
        assert main(command(vlm_dir, question_file, file, *limit, *other)) == 2
        error = capsys.readouterr().err
        assert "'visual_tokens': 4" in error
        assert error.endswith("Delete the file to start afresh, or choose another one.\n")
    assert main(command(vlm_dir, question_file, file, "--limit", "13", "--visual_tokens", "4")) == 0
    assert len(read_answers(file)) == 13


def test_the_models_own_number_continues_a_file_without_one(
    vlm_dir: Path, question_file: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = uninterrupted.read_bytes()
    assert main(command(vlm_dir, question_file, uninterrupted, "--visual_tokens", "6")) == 0
    assert f"({QUESTIONS} of {QUESTIONS} questions)" in capsys.readouterr().out
    assert uninterrupted.read_bytes() == before


def test_reports_have_the_number_of_visual_tokens(vlm_dir: Path, question_file: Path, tmp_path: Path) -> None:
    for count in ("3", "9"):
        file = tmp_path / f"{count}.jsonl"
        arguments = command(vlm_dir, question_file, file, "--limit", "10", "--visual_tokens", count)
        assert main(arguments) == 0
        scored = ["easy_vqa", "--questions", str(question_file), "--annotations", str(question_file), "--limit", "10"]
        assert score.main([*scored, "--answers", str(file), "--output", str(tmp_path / f"{count}.json")]) == 0
        assert json.loads((tmp_path / f"{count}.json").read_text())["visual_tokens"] == int(count)


def start(model: Path, questions: Path, answers: Path) -> BaseProcess:
    """Start another process on the same file, in small batches; return once it has answered some questions."""
    arguments = command(model, questions, answers, "--batch_size", "2")
    process = fork_python(["-m", "eval.generate", *arguments], printed=Path(os.devnull), threads=1)
    while not (answers.exists() and answers.stat().st_size > 2000):
        assert process.is_alive(), "the run ended before it could be disturbed"
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_a_killed_run_resumes(uninterrupted: Path, vlm_dir: Path, question_file: Path, tmp_path: Path) -> None:
    """After kill -9, an incomplete last line and another batch size, no line is missing, repeated or different."""
    file = tmp_path / "answers.jsonl"
    process = start(vlm_dir, question_file, file)
    process.kill()
    process.join()
    before = file.read_bytes()
    assert 0 < before.count(b"\n") < QUESTIONS
    file.write_bytes(before[:-7])
    assert main(command(vlm_dir, question_file, file)) == 0
    kept = before[: before[:-7].rfind(b"\n") + 1].splitlines()
    assert set(kept) <= set(file.read_bytes().splitlines())
    assert [answer.question_id for answer in read_answers(file)] == list(range(QUESTIONS))
    assert texts(file) == texts(uninterrupted)
    complete = file.read_bytes()
    assert main(command(vlm_dir, question_file, file)) == 0  # nothing is left to do
    assert file.read_bytes() == complete


@pytest.mark.slow
def test_processes_share_the_work(uninterrupted: Path, vlm_dir: Path, question_file: Path, tmp_path: Path) -> None:
    """While another process answers its part, this one answers the others; the last one sorts the file."""
    file = tmp_path / "answers.jsonl"
    process = start(vlm_dir, question_file, file)
    assert main(command(vlm_dir, question_file, file)) == 0
    process.join()
    assert process.exitcode == 0
    assert texts(file) == texts(uninterrupted)
    assert [answer.question_id for answer in read_answers(file)] == list(range(QUESTIONS))
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


def test_without_images_the_same_words_get_the_same_answer(
    vlm_dir: Path, question_file: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    file = tmp_path / "answers.jsonl"
    assert main(command(vlm_dir, question_file, file, "--no_image")) == 0
    answers = read_answers(file)
    assert len(answers) == QUESTIONS
    assert {answer.metadata["image"] for answer in answers} == {False}
    by_prompt: dict[str, set[str]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt, set()).add(answer.text)
    assert {len(different) for different in by_prompt.values()} == {1}
    assert texts(file) != texts(uninterrupted)


class CountingAnswerer(Answerer):
    """Count the questions."""

    asked = 0

    def answer(
        self, images: Iterable[Image.Image] | None, questions: Sequence[tuple[int, str]]
    ) -> Iterator[list[tuple[int, str]]]:
        self.asked += len(questions)
        return super().answer(images, questions)


def test_equal_questions_are_asked_once_and_counted_each(answerer: Answerer, tmp_path: Path) -> None:
    questions = easy_vqa.load_questions(None, None)[:5]
    doubled = questions + [replace(question, id=f"again {question.id}") for question in questions]
    counting = CountingAnswerer(answerer.model, answerer.processor, 4)
    generate_answers(doubled, tmp_path / "answers.jsonl", counting, model_id="tiny")
    assert counting.asked == 5
    answered = texts(tmp_path / "answers.jsonl")
    assert len(answered) == 10
    assert all(answered[question.id] == answered[f"again {question.id}"] for question in questions)


class WatchedSet(set[int]):
    """Counts the elements that operations on whole sets look at."""

    looked_at = 0

    def __iter__(self) -> Iterator[int]:
        WatchedSet.looked_at += len(self)
        return super().__iter__()

    def __and__(self, other: Set[object]) -> set[int]:
        WatchedSet.looked_at += len(self)
        return super().__and__(other)

    def __rsub__(self, other: Set[int]) -> set[int]:  # type: ignore[misc]
        WatchedSet.looked_at += len(self)
        return set(other) - set(self)


def test_a_question_costs_the_same_in_a_long_file(
    answerer: Answerer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No set of all questions is gone through for each batch."""
    first, *others = easy_vqa.load_questions(None, None)[:41]
    questions = [*(replace(first, id=f"again {i}") for i in range(2000)), *others]
    one_by_one = Answerer(answerer.model, answerer.processor, 1, batch_rows=1)
    file = tmp_path / "answers.jsonl"
    generate_answers(questions, file, one_by_one, model_id="tiny", places=range(2000))
    assert len(read_answers(file)) == 2000
    begin = AnswerLog._begin

    def watch(log: AnswerLog) -> None:
        begin(log)
        log.done, log.open = WatchedSet(log.done), WatchedSet(log.open)

    monkeypatch.setattr(AnswerLog, "_begin", watch)
    monkeypatch.setattr(WatchedSet, "looked_at", 0)
    generate_answers(questions, file, one_by_one, model_id="tiny")
    assert len(read_answers(file)) == len(questions)
    assert WatchedSet.looked_at < 4 * len(questions)


@pytest.mark.parametrize("images_in_memory", [1, 3])
def test_few_images_in_memory(answerer: Answerer, tmp_path: Path, images_in_memory: int) -> None:
    questions = easy_vqa.load_questions(None, None)[:60]
    held: list[int] = []

    class Watching(Answerer):
        def answer(
            self, images: Iterable[Image.Image] | None, questions: Sequence[tuple[int, str]]
        ) -> Iterator[list[tuple[int, str]]]:
            held.append(1 + max(place for place, _ in questions))
            return super().answer(images, questions)

    watching = Watching(answerer.model, answerer.processor, 4)
    few, all_at_once = tmp_path / "few.jsonl", tmp_path / "all.jsonl"
    generate_answers(questions, few, watching, model_id="tiny", images_in_memory=images_in_memory)
    assert max(held) == images_in_memory
    generate_answers(questions, all_at_once, watching, model_id="tiny")
    assert max(held) > 3
    assert texts(few) == texts(all_at_once)


def test_questions_with_and_without_images_in_one_benchmark(answerer: Answerer, tmp_path: Path) -> None:
    seen, unseen = easy_vqa.load_questions(None, None)[:2]
    questions = [seen, Question("text only", unseen.text, None)]
    generate_answers(questions, tmp_path / "mixed.jsonl", answerer, model_id="tiny")
    generate_answers(questions[1:], tmp_path / "alone.jsonl", answerer, model_id="tiny")
    assert texts(tmp_path / "mixed.jsonl")["text only"] == texts(tmp_path / "alone.jsonl")["text only"]
    assert len(texts(tmp_path / "mixed.jsonl")) == 2
    counted = Answerer(answerer.model, answerer.processor, answerer.max_new_tokens, visual_tokens=9)
    generate_answers(questions, tmp_path / "counted.jsonl", counted, model_id="tiny")
    assert texts(tmp_path / "counted.jsonl")["text only"] == texts(tmp_path / "alone.jsonl")["text only"]


def test_images_inside_the_question_file_get_the_same_answers(answerer: Answerer, tmp_path: Path) -> None:
    """MMBench's table has them in base64."""
    questions = easy_vqa.load_questions(None, None)[:8]
    encoded = [
        replace(question, image=EncodedImage(question.image.name, question.image.read_bytes()))
        for question in questions
        if isinstance(question.image, Path)
    ]
    generate_answers(questions, tmp_path / "files.jsonl", answerer, model_id="tiny")
    generate_answers(encoded, tmp_path / "encoded.jsonl", answerer, model_id="tiny")
    assert texts(tmp_path / "encoded.jsonl") == texts(tmp_path / "files.jsonl")
    assert len(set(texts(tmp_path / "files.jsonl").values())) > 1
    damaged = [replace(encoded[0], image=EncodedImage("table.tsv 7", b"GIF89a"))]
    with pytest.raises(UserError, match=r"table\.tsv 7 cannot be read"):
        generate_answers(damaged, tmp_path / "damaged.jsonl", answerer, model_id="tiny")


def test_answers_of_other_weights_are_not_mixed(
    vlm_dir: Path, question_file: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = uninterrupted.read_bytes()
    assert main(command(vlm_dir, question_file, uninterrupted, "--no_image")) == 2
    assert "Delete the file to start afresh" in capsys.readouterr().err
    assert uninterrupted.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["easy_vka", "--model", "m", "--answers", "a"], "Did you mean 'easy_vqa'"),
        (["easy_vqa", "--model", "m", "--answers", "a", "--questions", "absent.json"], "absent.json"),
        (["easy_vqa", "--model", "absent", "--answers", "a"], "no model directory absent"),
    ],
)
def test_bad_input_is_a_one_line_error(
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert not (tmp_path / "a").exists()


def test_errors_name_a_missing_image_or_device(
    vlm_dir: Path, question_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(vlm_dir, question_file, tmp_path / "answers.jsonl")
    assert main([*arguments, "--images", str(tmp_path)]) == 2
    assert f"{tmp_path / '0.png'} does not exist" in capsys.readouterr().err
    assert main([*arguments, "--device", "abacus"]) == 2
    assert "device 'abacus'" in capsys.readouterr().err


def test_missing_images_are_counted_before_anything_is_answered(
    vlm_dir: Path, question_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = dict.fromkeys(question.image for question in easy_vqa.load_questions(question_file, None))
    for image in shown:
        assert isinstance(image, Path)
        (tmp_path / image.name).symlink_to(image)
    images = ["--images", str(tmp_path)]
    (tmp_path / "3.png").unlink()
    answers = tmp_path / "answers.jsonl"
    assert main([*command(vlm_dir, question_file, answers), *images]) == 2
    error = capsys.readouterr().err
    assert f"The image {tmp_path / '3.png'} does not exist; 1 of {len(shown)} images are missing. Check" in error
    assert not answers.exists()
    assert main([*command(vlm_dir, question_file, answers), *images, "--limit", "5"]) == 0  # about the first images


@pytest.mark.slow
def test_a_limited_run_is_continued_without_the_limit(
    uninterrupted: Path,
    vlm_dir: Path,
    question_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "answers.jsonl"
    assert main(command(vlm_dir, question_file, file, "--limit", "7")) == 0
    printed = capsys.readouterr()
    assert printed.out == f"Answers: {file} (7 of {QUESTIONS} questions)\n"
    assert "easy_vqa: 100%" in printed.err
    assert [answer.question_id for answer in read_answers(file)] == list(range(7))
    assert main(command(vlm_dir, question_file, file)) == 0
    assert f"({QUESTIONS} of {QUESTIONS} questions)" in capsys.readouterr().out
    assert texts(file) == texts(uninterrupted)
    before = file.read_bytes()
    assert main(command(vlm_dir, question_file, file, "--limit", "7")) == 0  # nothing to do, nothing lost
    assert file.read_bytes() == before


@pytest.mark.slow
def test_generation_options_are_recorded(vlm_dir: Path, question_file: Path, tmp_path: Path) -> None:
    found = {}
    for name, options in {
        "greedy": [],
        "beams": ["--num_beams", "2"],
        "sampled": ["--temperature", "1.5", "--top_p", "0.9", "--seed", "3"],
        "again": ["--temperature", "1.5", "--top_p", "0.9", "--seed", "3"],
        "short": ["--max_new_tokens", "2", "--system", "be brief"],
    }.items():
        file = tmp_path / f"{name}.jsonl"
        assert main(command(vlm_dir, question_file, file, "--limit", "20", *options)) == 0
        found[name] = read_answers(file)
    generation = {name: answers[0].metadata["generation"] for name, answers in found.items()}
    assert generation["greedy"] == {"max_new_tokens": 8}
    assert generation["beams"] == {"max_new_tokens": 8, "num_beams": 2}
    assert generation["sampled"] == {"max_new_tokens": 8, "temperature": 1.5, "top_p": 0.9, "seed": 3}
    assert generation["short"] == {"max_new_tokens": 2, "system": "be brief"}
    assert found["sampled"] == found["again"]
    words = {name: [answer.text for answer in answers] for name, answers in found.items()}
    assert len({tuple(each) for each in words.values()}) == 4


def test_several_benchmarks_with_one_model(
    vlm_dir: Path, question_file: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """POPE's questions about easy-VQA's images; the answers are in a folder."""
    images = easy_vqa.load_questions(None, None)[0].image
    assert isinstance(images, Path)
    lines = [{"question_id": i, "image": f"{i}.png", "text": "is it red?", "category": "random"} for i in range(3)]
    pope = tmp_path / "pope.jsonl"
    pope.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["easy_vqa", "pope", "--model", str(vlm_dir), "--dtype", "float32", "--images", str(images.parent)]
    arguments += ["--questions", f"easy_vqa={question_file}", "--questions", f"pope={pope}"]
    assert main([*arguments, "--answers", str(tmp_path / "runs")]) == 0
    assert texts(tmp_path / "runs" / "easy_vqa.jsonl") == texts(uninterrupted)
    assert len(texts(tmp_path / "runs" / "pope.jsonl")) == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--answers", "."], "Cannot write --answers .: it is a directory"),
        (["--answers", "/proc/x.jsonl"], "Cannot write --answers /proc/x.jsonl"),
        (["--answers", "/dev/full"], "/dev/full is not a regular file"),
        (["--answers", "questions.json"], "--answers would replace the input questions.json"),
        (["--answers", "a", "--temperature", "-1"], "--temperature must be 0 (greedy) or more, got -1"),
        (["--answers", "a", "--num_beams", "0"], "--num_beams must be 1 or more, got 0"),
        (["--answers", "a", "--num_beams", "2", "--temperature", "1"], "Choose either --temperature"),
        (["--answers", "a", "--images_in_memory", "0"], "--images_in_memory must be 1 or more, got 0"),
        (["--answers", "a", "--max_new_tokens", "0"], "--max_new_tokens must be 1 or more, got 0"),
        (["--answers", "a", "--limit", "0"], "--limit must be 1 or more"),
        (["--answers", "a", "--questions", "long.json"], "Question id 1: The question 'is it red? "),
        (["--answers", "a", "--visual_tokens", "0"], "at least 1, got 0"),
        (["--answers", "a", "--visual_tokens", "-1"], "at least 1, got -1"),
        (["--answers", "a", "--visual_tokens", "3000"], "An image of 3000 visual tokens exceeds the 2048 positions"),
        (["--answers", "a", "--visual_tokens", "2045"], "Shorten the question or ask for fewer visual tokens"),
        (["--answers", "a", "--visual_tokens", "4", "--no_image"], "leave out --visual_tokens"),
        (["--answers", "a", "--visual_tokens", "4", "--cuda_graphs"], "leave out --visual_tokens"),
    ],
)
def test_errors_before_long_work(
    vlm_dir: Path,
    options: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("questions.json").write_text(json.dumps([["is it red?", "yes", 0]]))
    Path("long.json").write_text(json.dumps([["is it red?", "yes", 0], ["is it red? " * 9000, "yes", 0]]))
    questions = [] if "--questions" in options else ["--questions", "questions.json"]
    assert main(["easy_vqa", "--model", str(vlm_dir), *questions, *options]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert not Path("a").exists()
