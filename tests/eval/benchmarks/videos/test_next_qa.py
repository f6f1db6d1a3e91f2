"""NExT-QA's multiple choice: its table, the prompt, and the official groups of questions."""

from pathlib import Path

import pytest

from eval.benchmarks.videos import next_qa
from eval.scoring.protocol import Video
from sparse_vlm.data.instructions import OPTION_LETTER
from sparse_vlm.errors import UserError

HEADING = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"
ROWS = [
    "40,369,640,480,how do they play,0,6,CH,roll the handle,tap their feet,strum the string,hit with sticks,pat it",
    '40,369,640,480,why did they stop,1,1,CW,"tired, all of them",end of the song,rain,laugh,run',
    "41,369,640,480,what does the dog do after it sits,2,8,TN,jump,bark,sleep,eat,run away",
    "41,369,640,480,what does the dog do before it sits,3,2,TP,jump,bark,sleep,eat,run away",
    "41,369,640,480,what does the dog do as the man sits,4,3,TC,jump,bark,sleep,eat,run away",
    "41,369,640,480,how many dogs are there,0,7,DC,one,two,three,four,five",
    "41,369,640,480,where is this,1,9,DL,pool,garden,street,room,stage",
]


def write(folder: Path, rows: list[str], heading: str = HEADING) -> Path:
    (folder / "val.csv").write_text("\r\n".join([heading, *rows, ""]), encoding="utf-8-sig")
    return folder / "val.csv"


def test_questions(tmp_path: Path) -> None:
    (tmp_path / "1164").mkdir()
    (tmp_path / "1164/40.mp4").touch()  # in folders as in VidOR
    questions = next_qa.load_questions(write(tmp_path, ROWS), tmp_path)
    assert [question.id for question in questions[:3]] == ["40_6", "40_1", "41_8"]
    assert questions[1].text == (
        "why did they stop\nA. tired, all of them\nB. end of the song\nC. rain\nD. laugh\nE. run\n" + OPTION_LETTER
    )
    assert questions[0].image == Video(tmp_path / "1164/40.mp4")
    assert questions[2].image == Video(tmp_path / "41.mp4")


def test_scores(tmp_path: Path) -> None:
    file = write(tmp_path, ROWS)
    questions = next_qa.load_questions(file, None)
    answers = ["A", "(B) end of the song", "sleep", "A.", "The answer is E.", "I cannot tell.", "B"]
    scores = next_qa.BENCHMARK.score(questions, answers, file)
    assert {path: score.value for path, score in scores.items()} == {
        ("accuracy",): 5 / 7,
        ("accuracy_by_group", "causal"): 1,
        ("accuracy_by_group", "descriptive"): 1 / 2,
        ("accuracy_by_group", "temporal"): 2 / 3,
        ("accuracy_by_type", "CH"): 1,
        ("accuracy_by_type", "CW"): 1,
        ("accuracy_by_type", "DC"): 0,
        ("accuracy_by_type", "DL"): 1,
        ("accuracy_by_type", "TC"): 1,
        ("accuracy_by_type", "TN"): 1 / 2,  # with TP, as officially
    }
    known = next_qa.read_known(questions, file)
    marks = list(map(next_qa.mark, questions, answers, known))
    assert [mark.read for mark in marks] == ["A", "B", "C", "A", "E", None, "B"]
    assert next_qa.BENCHMARK.floors(questions, known) == {"always A": ["A"] * 7}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (ROWS[0].replace(",0,6,", ",5,6,"), "line 2: the answer is '5', not the index of an option, 0 to 4"),
        (ROWS[0].replace(",CH,", ",CX,"), "line 2: the type is 'CX'"),
        (ROWS[0] + ",more", "line 2 has fewer or more cells than the heading"),
        (ROWS[0].rpartition(",")[0], "line 2 has fewer or more cells than the heading"),
        (ROWS[1], "two questions '40_1'"),
        ('40,"', r"val\.csv, line \d: unexpected end of data"),
    ],
)
def test_bad_rows(row: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        next_qa.load_questions(write(tmp_path, [row] if row.endswith('"') else [row, *ROWS[1:]]), None)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no column 'a0'\. Give NExT-QA's val\.csv"):
        next_qa.load_questions(write(tmp_path, [], "video,question,answer,qid,type"), None)
    with pytest.raises(UserError, match=r"val\.csv has no questions"):
        next_qa.load_questions(write(tmp_path, []), None)
    (tmp_path / "val.csv").write_text("")
    with pytest.raises(UserError, match="has no column 'video'"):
        next_qa.load_questions(tmp_path / "val.csv", None)
