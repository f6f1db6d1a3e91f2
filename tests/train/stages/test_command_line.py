"""Recipes and options: precedence and errors."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sparse_vlm.errors import UserError
from train.stages.arguments import StageArguments
from train.stages.command_line import StageParser, check_ranges, parse_arguments


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


def test_options_override_the_recipe_and_the_recipe_overrides_defaults(recipe: Path) -> None:
    assert parse("--dish", "stew") == (Kitchen("stew"), Guests([]))
    assert parse(str(recipe)) == (Kitchen("soup", 0.001, True), Guests(["a", "b"]))
    found = parse(str(recipe), "--spoons", "2", "--hot", "False", "--names", "c")
    assert found == (Kitchen("soup", 2.0, False), Guests(["c"]))


def test_null_keeps_the_default(recipe: Path) -> None:
    recipe.write_text("dish: soup\nspoons: null\nhot:\nnames: ~\n")
    assert parse(str(recipe)) == (Kitchen("soup"), Guests())
    recipe.write_text("dish: null\n")  # not the dish "None"
    assert parse(str(recipe), "--dish", "stew")[0] == Kitchen("stew")
    with pytest.raises(SystemExit):
        parse(str(recipe))


def test_a_recipe_in_another_encoding_is_a_one_line_error(recipe: Path) -> None:
    recipe.write_bytes("dish: purée".encode("latin-1"))
    with pytest.raises(UserError, match=r"The recipe .*recipe\.yaml is not UTF-8 text: .* position 9"):
        parse(str(recipe))


def test_the_launchers_rank_may_stand_before_the_recipe(recipe: Path) -> None:
    @dataclass
    class Ranked:
        local_rank: int = -1

    kitchen, _, ranked = parse_arguments((Kitchen, Guests, Ranked), ["--local_rank=3", str(recipe), "--spoons=2"])
    assert (kitchen.dish, kitchen.spoons, ranked.local_rank) == ("soup", 2.0, 3)


def test_a_recipe_may_hold_a_mapping(recipe: Path) -> None:
    recipe.write_text('lr_scheduler_kwargs: {num_cycles: 0.5, label: "it\'s", last: true}\nreport_to: [none]\n')
    (args,) = parse_arguments((StageArguments,), [str(recipe), "--output_dir", "out", "--use_cpu", "True"])
    assert args.lr_scheduler_kwargs == {"num_cycles": 0.5, "label": "it's", "last": True}


def test_json_is_a_recipe_too(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps({"dish": "soup", "spoons": 3}))
    assert parse(str(tmp_path / "recipe.json"))[0] == Kitchen("soup", 3.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "Cannot read the recipe .*recipe.yaml: No such file or directory"),
        ("dish: [", "is not valid YAML: while parsing"),
        ("- dish", "must hold option names and values"),
        ("dishes: soup", r"The recipe .*recipe.yaml: Unknown option --dishes. Did you mean --dish\?"),
    ],
)
def test_a_bad_recipe_is_a_one_line_error(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        parse(str(tmp_path / "recipe.yaml"))


def test_an_unknown_option_is_a_one_line_error() -> None:
    for words in (["--spoon=2"], ["--spoon", "2"]):
        with pytest.raises(UserError) as caught:  # before argparse asks for --dish
            parse(*words)
        assert str(caught.value) == "Unknown option --spoon. Did you mean --spoons? See python -m train --help."


@pytest.mark.parametrize("interval", ["[1, 2]", "(0.9, 2)", "[1, inf)", "(-inf, 1]"])
def test_a_number_in_its_range_passes(interval: str) -> None:
    check_ranges(Kitchen("soup", spoons=1.0), {"spoons": interval})


@pytest.mark.parametrize("interval", ["(1, 2]", "[0, 1)", "[1.5, inf)", "(-inf, 0]"])
def test_a_number_outside_its_range_is_a_one_line_error(interval: str) -> None:
    with pytest.raises(UserError) as caught:
        check_ranges(Kitchen("soup", spoons=1.0), {"spoons": interval})
    assert str(caught.value) == f"--spoons must lie in {interval}, got 1."


def test_none_passes_any_range() -> None:
    kitchen = Kitchen("soup")
    kitchen.spoons = None  # type: ignore[assignment]
    check_ranges(kitchen, {"spoons": "[1, 2]"})


def test_hyphens_are_accepted_and_underscores_are_shown(recipe: Path) -> None:
    @dataclass
    class Oven:
        oven_heat: float = 1.0

    assert parse_arguments((Oven,), ["--oven-heat", "2"]) == (Oven(2.0),)
    assert parse_arguments((Oven,), ["--oven_heat=2"]) == (Oven(2.0),)
    recipe.write_text("oven-heat: 3")
    assert parse_arguments((Oven,), [str(recipe)]) == (Oven(3.0),)
    shown = StageParser((Oven,), "train.cook", "Cook.\n\n    python -m train.cook --oven_heat 3\n").format_help()
    assert "--oven_heat OVEN_HEAT" in shown
    assert "--oven-heat" not in shown
    assert shown.startswith("usage: python -m train.cook [RECIPE.yaml] [--OPTION VALUE ...]\n\nCook.\n")
    assert shown.endswith("examples:\n  python -m train.cook --oven_heat 3\n")


def test_a_recipe_overrides_its_base(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    derived = tmp_path / "more" / "derived.yaml"
    derived.write_text("base: ../recipe.yaml\nspoons: 5\nnames: null\n")
    assert parse(str(derived)) == (Kitchen("soup", 5.0, True), Guests([]))
    assert parse(str(derived), "--spoons", "6")[0] == Kitchen("soup", 6.0, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "Cannot read the recipe .*base.yaml: No such file"),
        ("dishes: soup", "The recipe .*base.yaml: Unknown option --dishes. Did you mean --dish"),
        ("base: base.yaml", "The recipe .*base.yaml: Unknown option --base."),
    ],
)
def test_a_bad_base_is_a_one_line_error(text: str | None, message: str, recipe: Path, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "base.yaml").write_text(text)
    recipe.write_text("base: base.yaml\n")
    with pytest.raises(UserError, match=message):
        parse(str(recipe))
