"""A static page that runs an exported VLM in the browser: its files, and two packages from the npm registry."""

import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

from sparse_vlm.errors import UserError

SITE = Path(__file__).parent / "site"
LIBRARIES = "lib"  # folder beside the page


class Package(NamedTuple):
    """A package of the npm registry.

    Attributes:
        name, version: as in the registry.
        files: the files in it that the page needs.
    """

    name: str
    version: str
    files: tuple[str, ...]

    @property
    def archive(self) -> str:
        """Name of the file that `npm pack` writes."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = (
    Package(
        "onnxruntime-web",
        "1.30.0",
        ("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"),
    ),
    Package("@huggingface/tokenizers", "0.2.0", ("dist/tokenizers.min.mjs",)),
)


def fetch_packages(folder: Path) -> None:
    """Download the archives of PACKAGES with `npm pack`; those already in `folder` are kept.

    Raises:
        UserError: npm is missing or fails.
    """
    missing = [package for package in PACKAGES if not (folder / package.archive).is_file()]
    if not missing:
        return
    names = [f"{package.name}@{package.version}" for package in missing]
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"The page needs {' and '.join(names)} from the npm registry, and npm is missing. Install Node.js, or run "
            f"`npm pack {' '.join(names)}` elsewhere and give its folder with --npm_packages."
        )
    folder.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", "--silent", "--pack-destination", str(folder), *names]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr or result.stdout).strip().splitlines() or ["no reason given"]
        raise UserError(f"`npm pack {' '.join(names)}` failed: {reason[-1]}.")


def write_page(folder: Path, packages: Path) -> None:
    """Write the page and its libraries into the folder of an export.

    Args:
        folder: an existing folder.
        packages: folder with the archives of PACKAGES.

    Raises:
        UserError: an archive is missing or damaged.
    """
    for file in sorted(SITE.iterdir()):
        shutil.copyfile(file, folder / file.name)
    (folder / LIBRARIES).mkdir()
    for package in PACKAGES:
        archive = packages / package.archive
        try:
            with tarfile.open(archive) as contents:
                for name in package.files:
                    member = contents.extractfile(f"package/{name}")
                    assert member is not None
                    (folder / LIBRARIES / Path(name).name).write_bytes(member.read())
        except FileNotFoundError:
            raise UserError(f"There is no {archive}: `npm pack {package.name}@{package.version}` writes it.") from None
        except (OSError, tarfile.TarError, KeyError, EOFError) as error:
            raise UserError(f"{archive} is damaged: {error}. Delete it and run npm pack again.") from error
