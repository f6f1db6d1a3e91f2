"""Recipes and flags: which wins, and what is refused."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sparse_vlm.errors import UserError
from train.stages.arguments import StageArguments
from train.stages.command_line import check_ranges, parse_arguments


@dataclass
class Kitchen:
    """Two values and a switch."""

    dish: str = field(metadata={"help": "required"})
    spoons: float = 1.0
    hot: bool = False


@dataclass
class Guests:
    """A list."""

    names: list[str] = field(default_factory=list)


def parse(*words: str) -> tuple[Kitchen, Guests]:
    kitchen, guests = parse_arguments((Kitchen, Guests), words)
    return kitchen, guests


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text("# a comment\ndish: soup\nspoons: 1e-3\nhot: true\nnames: [a, b]\n")
    return file


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults(recipe: Path) -> None:
    assert parse("--dish", "stew") == (Kitchen("stew"), Guests([]))
    assert parse(str(recipe)) == (Kitchen("soup", 0.001, True), Guests(["a", "b"]))
    found = parse(str(recipe), "--spoons", "2", "--hot", "False", "--names", "c")
    assert found == (Kitchen("soup", 2.0, False), Guests(["c"]))


def test_null_leaves_the_default(recipe: Path) -> None:
    recipe.write_text("dish: soup\nspoons: null\nhot:\nnames: ~\n")
    assert parse(str(recipe)) == (Kitchen("soup"), Guests())
    recipe.write_text("dish: null\n")  # not the dish "None"
    assert parse(str(recipe), "--dish", "stew")[0] == Kitchen("stew")
    with pytest.raises(SystemExit):
        parse(str(recipe))


def test_a_recipe_in_another_encoding_is_a_sentence(recipe: Path) -> None:
    recipe.write_bytes("dish: purée".encode("latin-1"))
    with pytest.raises(UserError, match=r"The recipe .*recipe\.yaml is no text in UTF-8: .* position 9"):
        parse(str(recipe))


def test_the_launchers_rank_may_stand_before_the_recipe(recipe: Path) -> None:
    @dataclass
    class Ranked:
        local_rank: int = -1

    kitchen, _, ranked = parse_arguments((Kitchen, Guests, Ranked), ["--local_rank=3", str(recipe), "--spoons=2"])
    assert (kitchen.dish, kitchen.spoons, ranked.local_rank) == ("soup", 2.0, 3)


def test_a_mapping_in_a_recipe_is_one(recipe: Path) -> None:
    recipe.write_text('lr_scheduler_kwargs: {num_cycles: 0.5, label: "it\'s", last: true}\nreport_to: [none]\n')
    (args,) = parse_arguments((StageArguments,), [str(recipe), "--output_dir", "out", "--use_cpu", "True"])
    assert args.lr_scheduler_kwargs == {"num_cycles": 0.5, "label": "it's", "last": True}


def test_json_is_a_recipe_too(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps({"dish": "soup", "spoons": 3}))
    assert parse(str(tmp_path / "recipe.json"))[0] == Kitchen("soup", 3.0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "There is no recipe .*recipe.yaml"),
        ("dish: [", "is no valid YAML: while parsing"),
        ("- dish", "does not hold argument names and values"),
        ("dishes: soup", r"Unknown argument in the recipe .*recipe.yaml 'dishes'. Did you mean 'dish'"),
    ],
)
def test_a_bad_recipe_is_a_sentence(text: str | None, sentence: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        parse(str(tmp_path / "recipe.yaml"))


def test_an_unknown_flag_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"Unknown argument 'spoon'\. Did you mean 'spoons'"):
        parse("--dish", "soup", "--spoon=2")
    with pytest.raises(UserError, match=r"Unknown argument 'spoon'\. Did you mean 'spoons'"):
        parse("--dish", "soup", "--spoon", "2")


@pytest.mark.parametrize("interval", ["[1, 2]", "(0.9, 2)", "[1, inf)", "(-inf, 1]"])
def test_a_number_in_its_range_passes(interval: str) -> None:
    check_ranges(Kitchen("soup", spoons=1.0), {"spoons": interval})


@pytest.mark.parametrize("interval", ["(1, 2]", "[0, 1)", "[1.5, inf)", "(-inf, 0]"])
def test_a_number_outside_its_range_is_a_sentence(interval: str) -> None:
    with pytest.raises(UserError) as caught:
        check_ranges(Kitchen("soup", spoons=1.0), {"spoons": interval})
    assert str(caught.value) == f"--spoons must lie in {interval}, got 1."


def test_a_number_that_is_not_given_lies_anywhere() -> None:
    kitchen = Kitchen("soup")
    kitchen.spoons = None  # type: ignore[assignment]
    check_ranges(kitchen, {"spoons": "[1, 2]"})
