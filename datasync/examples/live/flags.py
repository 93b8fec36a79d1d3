"""Live flags in four lines: a mapping of JSON values that follows the store.

Run it with a store, and change a flag meanwhile::

    export FLAGS=sqlite:flags.db
    datasync put $FLAGS flags/checkout '{"on": true}'
    python -m datasync.examples.live.flags
"""

import os

# [flags]
from datasync import open_view

flags = open_view(os.environ.get("FLAGS", "sqlite:flags.db"), "flags/", cache="flags.cache")
if flags.get("checkout", {}).get("on"):
    print("the new checkout is on")
# [end]
