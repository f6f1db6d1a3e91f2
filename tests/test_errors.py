"""Errors are one sentence; bugs keep their traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from sparse_vlm.errors import (
    UserError,
    check_choice,
    error_context,
    exit_with_sentence,
    one_line,
    optional_import,
    short,
    some_of,
    unknown_choice,
)


class Damaged(Dataset):
    """A data set of one damaged image."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise UserError(f"Image {index} is damaged.")


def test_an_unknown_choice_lists_the_nearest_and_all() -> None:
    error = unknown_choice("fruit", "aple", ["quince", "apple", "fig"])
    assert isinstance(error, UserError)
    assert str(error) == "Unknown fruit 'aple'. Did you mean 'apple'? Choices: apple, fig, quince."
    assert str(unknown_choice("fruit", "xyz", ["pear"])) == "Unknown fruit 'xyz'. Choices: pear."


def test_long_values_are_cut() -> None:
    assert short({"a": "é"}) == "{'a': 'é'}"
    assert short("x" * 98) == f"'{'x' * 98}'"
    assert short("x" * 99) == f"'{'x' * 96}…"


def test_a_choice_is_checked() -> None:
    check_choice("fruit", "fig", iter(["apple", "fig"]))
    with pytest.raises(UserError, match=r"^Unknown fruit 'aple'\. Did you mean 'apple'\? Choices: apple, fig\.$"):
        check_choice("fruit", "aple", iter(["apple", "fig"]))


def test_the_context_of_an_error_precedes_it() -> None:
    with pytest.raises(UserError, match=r"^Sample 7: It is damaged\.$"), error_context("Sample 7"):
        raise UserError("It is damaged.")
    with pytest.raises(ZeroDivisionError), error_context("Sample 7"):
        _ = 1 // 0


def test_a_missing_package_names_its_extra() -> None:
    sentence = r"^Counting needs sparse_vlm_abacus: pip install 'sparse-vlm\[train\]'\.$"
    with pytest.raises(UserError, match=sentence), optional_import("Counting", "train"):
        import sparse_vlm_abacus  # noqa: F401


def test_at_most_ten_names_are_listed() -> None:
    assert some_of(["a", "b"]) == "a, b"
    assert some_of([]) == "(none)"
    assert some_of(map(str, range(300))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 290 more"


def test_at_most_thirty_choices_are_listed() -> None:
    numbers = [f"{number:04}" for number in range(1000)]
    message = str(unknown_choice("number", "9999", numbers))
    assert message == "Unknown number '9999'. Did you mean '0999' or '0998' or '0997'?"
    assert str(unknown_choice("number", "x", numbers)).endswith("0029 and 970 more.")


def test_a_user_error_prints_its_message_and_returns_2(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError("The value 3 is too small. Use 4.")

    assert exit_with_sentence(fail) == 2
    assert capsys.readouterr().err == "error: The value 3 is too small. Use 4.\n"


@pytest.mark.parametrize("name", ["a" * 5000, "/dev/null/a"])
def test_an_os_error_that_names_a_file_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is too long, a parent that is not a folder: pathlib raises these even from `exists`."""
    assert exit_with_sentence(lambda: Path(name).stat().st_size) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: [Errno ")
    assert message.count("\n") == 1


def test_other_os_errors_keep_their_traceback() -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        exit_with_sentence(fail)


def test_the_error_of_a_data_worker_has_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_with_sentence(lambda: len(list(DataLoader(Damaged(), num_workers=1)))) == 2
    assert capsys.readouterr().err == "error: Image 0 is damaged.\n"


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (5, 5)])
def test_the_status_of_a_command_is_returned(result: int | None, status: int) -> None:
    assert exit_with_sentence(lambda: result) == status


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_with_sentence(lambda: 1 // 0)


def test_errors_of_other_libraries_fit_on_one_line() -> None:
    assert one_line(OSError("first\n  second")) == "first second"
    assert one_line(OSError()) == "OSError"
    assert one_line(KeyError(105)) == "KeyError: 105"
    assert one_line(OSError("x " * 300)) == "x " * 250 + " …"


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    script = (
        "from sparse_vlm.errors import exit_with_sentence; raise SystemExit(exit_with_sentence(lambda: print('x')))"
    )
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (ran.returncode, ran.stderr) == (2, "error: Cannot print: No space left on device.\n")
