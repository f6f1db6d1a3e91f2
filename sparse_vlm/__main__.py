"""`python -m sparse_vlm` is `sparse-vlm`."""

import sys

from sparse_vlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
