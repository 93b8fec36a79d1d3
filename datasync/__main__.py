"""Run the ``datasync`` command as ``python -m datasync``."""

import sys

from datasync.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
