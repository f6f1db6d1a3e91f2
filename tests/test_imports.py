"""Imports point downward: encoder ← bootstrap, vlm, data, integrations, measure ← llava_patch, train, eval, demo."""

import ast
import subprocess
import sys

import pytest

from tests.imports import ROOT, TOP, imports_in, imports_of, modules, within

FILES = {"sparse_vlm.errors", "sparse_vlm.files", "sparse_vlm.dtypes"}  # every part may import these
ENCODER = {
    "sparse_vlm.encoder",
    "sparse_vlm.hub",
    "sparse_vlm.image_files",
    "sparse_vlm.videos",
    "sparse_vlm.recompute",
    *FILES,
}

# Other parts of the project that each part may import. The longest prefix of a module's name decides its part.
PARTS: dict[str, set[str]] = {
    "sparse_vlm.errors": set(),
    "sparse_vlm.files": {"sparse_vlm.errors"},
    "sparse_vlm.dtypes": {"sparse_vlm.errors"},
    "sparse_vlm.devices": FILES,
    "sparse_vlm.command_line": FILES,
    "sparse_vlm.device_arguments": FILES,
    "sparse_vlm.hub": {"sparse_vlm.errors", "sparse_vlm.files"},
    "sparse_vlm.encoder": {"sparse_vlm.errors", "sparse_vlm.files", "sparse_vlm.hub"},
    "sparse_vlm.image_files": {"sparse_vlm.encoder", *FILES},
    "sparse_vlm.videos": {"sparse_vlm.encoder", *FILES},
    "sparse_vlm.integrations.import_hook": set(),
    "sparse_vlm.integrations.timm": {*ENCODER, "sparse_vlm.weight_decay"},
    "sparse_vlm.integrations.lmms_eval": {"sparse_vlm.vlm", "sparse_vlm.devices", *FILES},
    "sparse_vlm.integrations.vlmevalkit": {
        "sparse_vlm.vlm",
        "sparse_vlm.data.instructions",
        "sparse_vlm.devices",
        "sparse_vlm.image_files",
        *FILES,
    },
    "sparse_vlm.bootstrap": {*ENCODER, "sparse_vlm.integrations.timm"},
    "sparse_vlm.data": ENCODER,
    "sparse_vlm.data.conversations": {"sparse_vlm.data", "sparse_vlm.vlm.language", "sparse_vlm.vlm.views", *ENCODER},
    "sparse_vlm.vlm.language": {"sparse_vlm.vlm", *FILES},
    "sparse_vlm.vlm": {"sparse_vlm.vlm.language", "sparse_vlm.bootstrap.teachers", *ENCODER},
    "sparse_vlm.vlm.serving": {"sparse_vlm"},
    "sparse_vlm.measure": {"sparse_vlm.devices", "sparse_vlm.vlm.language", *ENCODER},
    "sparse_vlm": {"sparse_vlm"},
    "llava_patch": {"sparse_vlm"},
    "train": {"sparse_vlm", "train"},
    "train.stages": {"sparse_vlm"},
    "train.vision": {"sparse_vlm", "train.stages"},
    "train.language": {"sparse_vlm", "train.stages"},
    "train.language.frozen_cost": {"sparse_vlm", "train.stages", "train.language", "train.align"},  # measures a stage
    "eval": {"sparse_vlm", "eval"},
    "demo": {"sparse_vlm"},
}


def part_of(name: str) -> str:
    """The part that a module, or a name in it, belongs to; "" outside the packages."""
    return max((part for part in PARTS if within(name, part)), key=len, default="")


def wrong(module: str, imported: frozenset[str]) -> set[str]:
    """The imports of the project that a module's part must not have."""
    part = part_of(module)
    ours = {name for name in imported if name.split(".")[0] in {*TOP, "tests"}}
    return {name for name in ours if part_of(name) != part and not any(within(name, low) for low in PARTS[part])}


@pytest.mark.parametrize("module", modules())
def test_imports_point_downward(module: str) -> None:
    assert wrong(module, imports_of(module).all) == set()


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("sparse_vlm.encoder.x", "import sparse_vlm.vlm.build", {"sparse_vlm.vlm.build"}),
        ("sparse_vlm.encoder.x", "from sparse_vlm import vlm", {"sparse_vlm", "sparse_vlm.vlm"}),
        ("sparse_vlm.encoder.x", "from ..data import images", {"sparse_vlm.data", "sparse_vlm.data.images"}),
        ("sparse_vlm.encoder.x", "from .rois import adjust_rois\nfrom sparse_vlm.errors import UserError", set()),
        ("sparse_vlm.encoder.x", "import sparse_vlm.measure.timing", {"sparse_vlm.measure.timing"}),
        ("sparse_vlm.vlm.x", "import sparse_vlm.data.images.sets", {"sparse_vlm.data.images.sets"}),
        ("sparse_vlm.vlm.x", "import sparse_vlm.vlm.serving.app", {"sparse_vlm.vlm.serving.app"}),
        ("sparse_vlm.data.images.x", "import sparse_vlm.vlm.language.turns", {"sparse_vlm.vlm.language.turns"}),
        ("sparse_vlm.vlm.x", "def f():\n    from train import stages", {"train", "train.stages"}),
        ("train.x", "from eval.score import main", {"eval.score", "eval.score.main"}),
        ("train.vision.x", "import train.language.data", {"train.language.data"}),
        ("train.stages.x", "import train.bootstrap", {"train.bootstrap"}),
        ("eval.x", "import train", {"train"}),
        ("eval.x", "import torch\nfrom sparse_vlm.encoder import SparseFormer", set()),
        ("sparse_vlm.x", "from tests.conftest import tiny_config", {"tests.conftest", "tests.conftest.tiny_config"}),
    ],
)
def test_a_wrong_import_would_be_found(module: str, line: str, found: set[str]) -> None:
    assert wrong(module, imports_in(line, module.rpartition(".")[0]).all) == found


def loaded_by(program: str, names: tuple[str, ...]) -> list[str]:
    """Return those of `names` that a new Python process has imported after running `program`."""
    program = f"import sys\n{program}\nprint([name for name in {names} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return ast.literal_eval(result.stdout.splitlines()[-1])


HEAVY = ("transformers", "deepspeed", "gradio", "llava", "open_clip", "peft", "datasets", "matplotlib")


@pytest.mark.slow
def test_the_encoder_alone_is_light() -> None:
    assert loaded_by("import sparse_vlm.encoder", HEAVY) == []


@pytest.mark.parametrize(
    "program",
    [
        "from sparse_vlm.cli import build_parser; build_parser().format_help()",  # import sparse_vlm, as well
        "from eval.score import build_parser; build_parser().format_help()",
    ],
)
def test_help_is_shown_without_torch(program: str) -> None:
    assert loaded_by(program, ("torch", "timm", *HEAVY)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import sparse_vlm\nassert 'torch' not in sys.modules\nimport timm",
        "from sparse_vlm import SparseFormer\nimport timm",  # the encoder imports timm before it is whole itself
    ],
)
def test_timm_knows_our_models_whatever_is_imported_first(imports: str) -> None:
    program = f"{imports}\nassert timm.is_model('sparseformer_clip_large')"
    assert loaded_by(program, ("sparse_vlm.integrations.timm",)) == ["sparse_vlm.integrations.timm"]


@pytest.mark.slow
def test_a_transformers_that_is_too_old_for_a_vlm_can_be_imported() -> None:
    program = "import transformers\ntransformers.__version__ = '5.17.0'\nimport sparse_vlm"
    assert loaded_by(program, ("sparse_vlm.vlm", "sparse_vlm.vlm.modeling")) == []


def test_the_names_of_the_package_are_those_of_the_encoder() -> None:
    import sparse_vlm
    from sparse_vlm import encoder

    assert set(sparse_vlm.__all__) <= set(dir(sparse_vlm))
    assert all(getattr(sparse_vlm, name) is getattr(encoder, name) for name in sparse_vlm.__all__)
    with pytest.raises(AttributeError, match="'sparse_vlm' has no attribute 'Sparseformer'"):
        sparse_vlm.Sparseformer  # noqa: B018
