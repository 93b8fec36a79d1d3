"""``python -m tests.faults.report``: see ``tests.faults.report.page``."""

import sys

from tests.faults.report.page import main

if __name__ == "__main__":
    sys.exit(main())
