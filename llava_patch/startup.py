"""`sparse-vlm llava enable`: a `.pth` file, so that LLaVA's own command lines know our towers without a launcher."""

import sysconfig
from pathlib import Path

from sparse_vlm.files import write_text

OFF_SWITCH = "SPARSE_VLM_LLAVA"
# Python runs such a line when it starts: the standard library only, and nothing happens without this package.
LINE = (
    f"import os, importlib.util; os.environ.get('{OFF_SWITCH}') != '0' and importlib.util.find_spec('llava_patch') "
    "and __import__('llava_patch').install_before_llava()\n"
)


def startup_file() -> Path:
    """Where the line is, or would be: in the site-packages of this Python."""
    return Path(sysconfig.get_path("purelib")) / "sparse_vlm_llava.pth"


def enable() -> Path:
    """Writes the file; returns it."""
    write_text(startup_file(), LINE)
    return startup_file()


def disable() -> bool:
    """Removes the file; returns whether there was one."""
    existed = startup_file().exists()
    startup_file().unlink(missing_ok=True)
    return existed
