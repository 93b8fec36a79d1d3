"""``python -m datasync``: the same as the command ``datasync``."""

import sys

from datasync.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
