"""`python -m eval.score`: the report, its tables, and refused input."""

import contextlib
import json
from pathlib import Path

import pytest

from eval.benchmarks import mme
from eval.report import make_report
from eval.score import main
from eval.tables import as_markdown, table_rows
from sparse_vlm.data import easy_vqa as dataset
from sparse_vlm.errors import UserError


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 1,500 of easy-VQA's test questions, as a question file."""
    entries = json.loads((dataset.split_folder("test") / "questions.json").read_text())[:1500]
    path = tmp_path_factory.mktemp("questions") / "questions.json"
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture(scope="module")
def questions(file: Path) -> list[dataset.VqaQuestion]:
    return dataset.read_questions(file)


def write_answers(path: Path, questions: list[dataset.VqaQuestion], texts: list[str], image: bool = True) -> Path:
    """Write an answers file like eval.generate."""
    lines = [
        {"question_id": q.id, "prompt": q.text, "text": text, "model_id": "test", "metadata": {"image": image}}
        for q, text in zip(questions, texts, strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def answers(tmp_path: Path, questions: list[dataset.VqaQuestion]) -> Path:
    """Answers that are all right, except to the yes/no questions about the first 80 images."""
    texts = ["maybe" if q.kind == "yes/no" and q.image_id < 80 else q.answer for q in questions]
    return write_answers(tmp_path / "answers.jsonl", questions, texts)


@pytest.fixture
def blind(tmp_path: Path, questions: list[dataset.VqaQuestion]) -> Path:
    return write_answers(tmp_path / "blind.jsonl", questions, ["no"] * len(questions), image=False)


@pytest.mark.slow
def test_report(
    file: Path,
    answers: Path,
    blind: Path,
    tmp_path: Path,
    questions: list[dataset.VqaQuestion],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out" / "report.json"
    arguments = ["easy_vqa", "--questions", str(file), "--answers", str(answers), "--output", str(output)]
    assert main([*arguments, "--no_image_answers", str(blind)]) == 0
    report = json.loads(output.read_text())
    wrong = sum(q.kind == "yes/no" and q.image_id < 80 for q in questions)
    assert report["scores"]["accuracy"] == pytest.approx(1 - wrong / 1500)
    assert report["scores"]["accuracy_by_type"] == {
        "colour": 1.0,
        "shape": 1.0,
        "yes/no": pytest.approx(1 - wrong / sum(q.kind == "yes/no" for q in questions)),
    }
    assert report["counts"]["accuracy"] == report["questions"] == 1500
    assert (report["model_id"], report["image"], report["benchmark"]) == ("test", True, "easy_vqa")
    low, high = report["confidence_95"]["accuracy"]
    assert low < report["scores"]["accuracy"] < high
    assert set(report["floors"]) == {"majority", "question_only", "no_image"}
    no = sum(q.answer == "no" for q in questions)
    assert report["floors"]["no_image"]["accuracy"] == pytest.approx(no / 1500)
    assert report["floors"]["no_image"]["accuracy_by_type"]["colour"] == 0
    printed = capsys.readouterr().out
    assert f"{report['scores']['accuracy']:.2%}" in printed
    assert "question_only" in output.with_suffix(".md").read_text()


def test_markdown_has_a_row_for_each_score(file: Path, answers: Path) -> None:
    report = make_report("easy_vqa", answers, questions=file)
    rows = table_rows(report)
    assert [row[0] for row in rows[1:]] == [
        "accuracy",
        "accuracy_by_type: colour",
        "accuracy_by_type: shape",
        "accuracy_by_type: yes/no",
    ]
    assert {len(row) for row in rows} == {6}  # name, count, value, interval, two floors
    lines = as_markdown(report).strip().split("\n")
    assert lines[0] == report["protocol"] + "."
    assert {line.count("|") for line in lines[2:]} == {7}
    assert len(lines[2:]) == 6


def test_a_run_without_images_says_so(file: Path, blind: Path) -> None:
    report = make_report("easy_vqa", blind, questions=file)
    assert report["image"] is False
    assert table_rows(report)[0][2] == "model without images"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda lines: lines[:-1], "question id 1499 has no answer"),
        (lambda lines: [*lines, lines[5]], "question id 5 is answered more than once"),
        (lambda lines: [*lines, '{"question_id": "x", "text": ""}'], "question id 'x' is not among"),
        (lambda lines: [*lines[:-1], lines[-1][:20]], "line 1500 is not JSON"),
        (lambda lines: [], "question id 0 has no answer"),
        (lambda lines: [lines[0].replace('"test"', '"other"'), *lines[1:]], 'different "model_id": other, test'),
    ],
)
def test_answers_to_other_questions_are_refused(
    file: Path, answers: Path, damage: object, sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert callable(damage)
    answers.write_text("".join(f"{line}\n" for line in damage(answers.read_text().splitlines())))
    output = tmp_path / "report.json"
    arguments = ["easy_vqa", "--questions", str(file), "--answers", str(answers)]
    assert main([*arguments, "--output", str(output)]) == 2
    assert sentence in capsys.readouterr().err
    assert not output.exists()


def test_the_no_image_floor_must_be_one(file: Path, answers: Path) -> None:
    with pytest.raises(UserError, match="was not made by"):
        make_report("easy_vqa", answers, questions=file, no_image_answers=answers)


def test_metadata_of_other_programs_is_ignored(file: Path, answers: Path) -> None:
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    for line in lines:
        line["metadata"] = {"image": f"{line['question_id']}.png", "visual_tokens": ["<im>"]}
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = make_report("easy_vqa", answers, questions=file)
    assert (report["image"], report["visual_tokens"]) == (True, None)


def test_annotations_of_other_questions_are_refused(
    file: Path, answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["easy_vqa", "--questions", str(file), "--answers", str(answers)]
    assert main([*arguments, "--annotations", str(dataset.split_folder("test") / "questions.json")]) == 2
    assert "do not belong" in capsys.readouterr().err


def test_the_report_has_published_scores_beside_ours(tmp_path: Path) -> None:
    """They are on the benchmark's own scale, with a note about their protocol."""
    folder = tmp_path / "templates"
    folder.mkdir()
    answers = []
    for task in (*mme.PERCEPTION, *mme.COGNITION):
        questions = [(f"Is it {word}?", label) for word, label in (("one", "Yes"), ("two", "No"))]
        rows = [f"1.jpg\t{text} Please answer yes or no.\t{label}" for text, label in questions]
        (folder / f"{task}.txt").write_text("\n".join(rows) + "\n")
        for text, label in questions:
            line = {"question_id": f"{task}/1.jpg", "prompt": text, "text": label, "model_id": "ours"}
            answers.append(json.dumps(line | {"metadata": {"visual_tokens": 49}}))
    (tmp_path / "answers.jsonl").write_text("\n".join(answers) + "\n")
    arguments = ["--questions", str(folder), "--annotations", str(folder), "--answers", str(tmp_path / "answers.jsonl")]
    assert main(["mme", *arguments, "--output", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["scores"]["perception"], report["scores"]["cognition"]) == (2000, 800)
    assert (report["visual_tokens"], report["scale"]) == (49, "points")
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "| perception | 20 | 2000.00 | 2000.00 – 2000.00 | 500.00 |" in lines
    assert "Published, MME: perception." in lines
    assert "| **ours** | 49 | 2000.0 | this report |" in lines
    assert "| LLaVA-1.5 (CLIP-L/14-336) | 576 | 1510.7 | LLaVA docs/MODEL_ZOO.md |" in lines


def test_options_that_a_benchmark_does_not_support(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are refused before anything is read."""
    for option in ("--judge_inputs", "--judgements", "--submission"):
        assert main(["easy_vqa", "--answers", str(tmp_path / "absent"), option, str(tmp_path / "x")]) == 2
        assert f"Leave out {option}" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--output", "r.md"], "--output and the table beside --output are the same file, r.md"),
        (["--output", "."], "Cannot write --output .: it is a directory"),
        (["--output", "/proc/x.json"], "Cannot write --output /proc/x.json: No such file"),
        (["--output", "answers.jsonl/r.json"], "answers.jsonl is a file"),
        (["--output", "answers.jsonl"], "--output would replace the input answers.jsonl"),
        (["--output", "answers.json", "--no_image_answers", "answers.md"], "would replace the input answers.md"),
        (["--output", "official/r.json", "--annotations", "official"], "would replace the input official/r.json"),
    ],
)
def test_outputs_that_cannot_be_written_or_would_replace_something(
    file: Path,
    answers: Path,
    more: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("answers.md").touch()
    Path("official").mkdir()
    Path("official/r.json").write_text("precious")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["easy_vqa", "--questions", str(file), "--answers", "answers.jsonl", *more]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_full_disk_is_a_one_line_error(file: Path, answers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["easy_vqa", "--questions", str(file), "--answers", str(answers), "--output", "/dev/full"]) == 2
    assert capsys.readouterr().err == "error: Cannot write /dev/full: No space left on device.\n"
    assert not Path("/dev/full").is_file()  # it is still the device


def test_results_are_written_before_they_are_printed(
    file: Path, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader of the pipe may have closed it, as with `| head -3`."""

    def gone(*things: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("eval.score.Console.print", gone)
    arguments = ["easy_vqa", "--questions", str(file), "--answers", str(answers)]
    with contextlib.suppress(BrokenPipeError):
        main([*arguments, "--output", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text())["questions"] == 1500
    assert {path.name for path in tmp_path.glob("r.*")} == {"r.json", "r.md", "r.results.jsonl"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mark", "blank", "returns"])
def test_files_with_other_line_ends_and_marks(file: Path, answers: Path, tmp_path: Path, kind: str) -> None:
    """A byte order mark, a blank last line or Windows' line ends, in answers and question file."""
    for path in (file, answers):
        text = path.read_text(encoding="utf-8")
        changed = {"mark": "\ufeff" + text, "blank": text + "\n\n", "returns": text.replace("\n", "\r\n")}[kind]
        (tmp_path / f"other_{path.name}").write_bytes(changed.encode())
    questions, given = (tmp_path / f"other_{path.name}" for path in (file, answers))
    other = make_report("easy_vqa", given, questions=questions)
    assert other["scores"] == make_report("easy_vqa", answers, questions=file)["scores"]


@pytest.mark.slow
def test_the_report_says_how_answers_were_generated(file: Path, answers: Path) -> None:
    assert (
        "how the answers were generated is not recorded" in make_report("easy_vqa", answers, questions=file)["protocol"]
    )
    settings = {"max_new_tokens": 8}
    for more, words in (({}, "greedy generation (at most 8"), ({"temperature": 0.5}, "sampled (temperature 0.5, at")):
        lines = [json.loads(line) for line in answers.read_text().splitlines()]
        for line in lines:
            line["metadata"]["generation"] = settings | more
        answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
        report = make_report("easy_vqa", answers, questions=file)
        assert report["generation"] == settings | more
        assert words in report["protocol"]
