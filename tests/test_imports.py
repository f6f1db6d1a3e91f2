"""Imports point downward: encoder ← bootstrap, vlm, data, integrations, measure ← llava_patch, train, eval, demo."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What a part of the project may import of the project. The longest matching name of a module decides its part.
PARTS: dict[str, set[str]] = {
    "sparse_vlm.errors": set(),
    "sparse_vlm.integrations.import_hook": set(),
    "sparse_vlm.files": {"sparse_vlm.errors"},
    "sparse_vlm.encoder": {"sparse_vlm.errors", "sparse_vlm.files"},
    "sparse_vlm.bootstrap": {"sparse_vlm"},
    "sparse_vlm.vlm": {"sparse_vlm"},
    "sparse_vlm.data": {"sparse_vlm"},
    "sparse_vlm": {"sparse_vlm"},
    "llava_patch": {"sparse_vlm"},
    "train": {"sparse_vlm"},
    "eval": {"sparse_vlm"},
    "demo": {"sparse_vlm"},
}
TOP = {"sparse_vlm", "llava_patch", "train", "eval", "demo", "tests"}
FILES = sorted(file for top in TOP - {"tests"} for file in (ROOT / top).rglob("*.py"))


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, by its full name."""
    package = module_name(file).split(".")[: None if file.name == "__init__.py" else -1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from sparse_vlm import vlm` imports a module as well
            found |= {origin} | {
                f"{origin}.{alias.name}" for alias in node.names if is_module(f"{origin}.{alias.name}")
            }
    return found


def is_module(name: str) -> bool:
    path = ROOT / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def wrong_imports(file: Path) -> set[str]:
    """Imports of the project that the file's part must not have."""
    name = module_name(file)
    part = max((part for part in PARTS if within(name, part)), key=len)
    allowed = PARTS[part] | {part}
    ours = {module for module in imported(file) if module.split(".")[0] in TOP}
    return {module for module in ours if not any(within(module, choice) for choice in allowed)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_downward(file: Path) -> None:
    assert wrong_imports(file) == set()


def test_the_vlm_does_not_import_the_data() -> None:
    """`sparse_vlm.data` imports `sparse_vlm.vlm` for its chat formats, so the reverse would be a cycle."""
    vlm = [file for file in FILES if within(module_name(file), "sparse_vlm.vlm")]
    assert [file for file in vlm if any(within(module, "sparse_vlm.data") for module in imported(file))] == []


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("sparse_vlm/encoder/x.py", "import sparse_vlm.vlm.build", {"sparse_vlm.vlm.build"}),
        ("sparse_vlm/encoder/x.py", "from sparse_vlm import vlm", {"sparse_vlm", "sparse_vlm.vlm"}),
        ("sparse_vlm/encoder/x.py", "from ..data import images", {"sparse_vlm.data", "sparse_vlm.data.images"}),
        ("sparse_vlm/encoder/x.py", "from .rois import adjust_rois\nfrom sparse_vlm.errors import UserError", set()),
        ("sparse_vlm/vlm/x.py", "def f():\n    from train import stage", {"train", "train.stage"}),
        ("train/x.py", "from eval.score import main", {"eval.score"}),
        ("eval/x.py", "import train", {"train"}),
        ("eval/x.py", "import torch\nfrom sparse_vlm.encoder import SparseFormer", set()),
        ("sparse_vlm/x.py", "from tests.conftest import tiny_config", {"tests.conftest"}),
    ],
)
def test_a_wrong_import_would_be_found(
    file: str, line: str, wrong: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("sparse_vlm/vlm", "sparse_vlm/data/images", "train/stages"):
        (tmp_path / folder).mkdir(parents=True)
    for empty in ("sparse_vlm/data/images.py", "train/stage.py"):
        (tmp_path / empty).touch()
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(line)
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert wrong_imports(tmp_path / file) == wrong


def loaded_by(program: str, names: tuple[str, ...]) -> list[str]:
    """Which of `names` a fresh Python has imported behind `program`."""
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
