import pytest

from llava_patch.names import TowerName, is_ours, parse_tower_name
from sparse_vlm.encoder import list_encoders
from sparse_vlm.errors import UserError


@pytest.mark.parametrize("name", list_encoders())
def test_every_variant_is_a_tower(name: str) -> None:
    assert is_ours(name)
    assert parse_tower_name(name) == TowerName(name, None)


def test_options_follow_the_name() -> None:
    parsed = parse_tower_name("sparseformer-clip-l?image_size=336&weights=/a b/c+d=e.pth&aspect=native")
    assert parsed == TowerName("sparseformer-clip-l", None, 336, "/a b/c+d=e.pth", "native")
    assert parse_tower_name("sparseformer:some/id?image_size=448") == TowerName(None, "some/id", 448)
    assert parse_tower_name("sparseformer-clip-l?tokens=25") == TowerName("sparseformer-clip-l", None, tokens=25)
    own = parse_tower_name("sparseformer:some/id?aspect=native&tokens=9")
    assert own == TowerName(None, "some/id", aspect="native", tokens=9)


@pytest.mark.parametrize("name", ["openai/clip-vit-large-patch14-336", "laion/CLIP", "/a/sparseformer-clip-l", None, 3])
def test_other_towers_are_left_to_llava(name: object) -> None:
    assert not is_ours(name)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("sparseformer-clip-x", "Did you mean 'sparseformer-clip-l'"),
        ("sparseformer-clip-l?image_sise=3", "Did you mean 'image_size'"),
        ("sparseformer-clip-l?image_size=336&image_size=224", "image_size twice"),
        ("sparseformer-clip-l?image_size=", "image_size without a value"),
        ("sparseformer-clip-l?image_size=3e2", "image_size=3e2"),
        ("sparseformer-clip-l?image_size=8", "from 16 to 8192"),
        ("sparseformer-clip-l?aspect=naive", "Did you mean 'native'"),
        ("sparseformer-clip-l?tokens=0", "tokens=0: it must be a whole number from 1 to 8192"),
        ("sparseformer-clip-l?tokens=-1", "tokens=-1: it must be"),
        ("sparseformer:a/b?tokens=abc", "tokens=abc: it must be"),
        ("sparseformer-clip-l?tokens=9,16", "tokens=9,16: it must be"),
        (f"sparseformer-clip-l?tokens={'9' * 5000}", "from 1 to 8192"),
        (f"sparseformer-clip-l?image_size={'9' * 5000}", "from 16 to 8192"),
        ("sparseformer-clip-l?tokens=9&tokens=16", "tokens twice"),
        ("sparseformer-clip-l?tokens=", "tokens without a value"),
        ("sparseformer-clip-l?token=9", "Did you mean 'tokens'"),
        ("sparseformer-clip-l?", "no options after"),
        ("sparseformer:", "does not name an encoder"),
        ("sparseformer:a/b?weights=random", "weights= is only for variants"),
    ],
)
def test_bad_names_are_one_sentence_errors(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        parse_tower_name(name)
    assert "\n" not in str(error.value)
