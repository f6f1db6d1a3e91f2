"""A `.pth` file (`sparse-vlm llava enable`) that installs the patches in LLaVA's own commands, without a launcher."""

import sysconfig
from pathlib import Path

from sparse_vlm.files import write_text

OFF_SWITCH = "SPARSE_VLM_LLAVA"
# Python runs this line when it starts. It uses only the standard library, and does nothing without this package.
LINE = (
    f"import os, importlib.util; os.environ.get('{OFF_SWITCH}') != '0' and importlib.util.find_spec('llava_patch') "
    "and __import__('llava_patch').install_before_llava()\n"
)


def startup_file() -> Path:
    """Path of the file in the site-packages of this Python."""
    return Path(sysconfig.get_path("purelib")) / "sparse_vlm_llava.pth"


def enable() -> Path:
    """Write the file and return its path."""
    write_text(startup_file(), LINE)
    return startup_file()


def disable() -> bool:
    """Remove the file; return False if it did not exist."""
    existed = startup_file().exists()
    startup_file().unlink(missing_ok=True)
    return existed
