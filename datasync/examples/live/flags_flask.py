"""Live flags in a Flask application, under any server that forks workers, with or without preloading.

Run it (``pip install flask gunicorn``)::

    FLAGS=sqlite:flags.db gunicorn -w 4 --preload datasync.examples.live.flags_flask:app
"""

import os

# [flags]
from flask import Flask

from datasync import open_view

app = Flask(__name__)
flags = open_view(os.environ["FLAGS"], "flags/", cache=os.environ.get("FLAGS_CACHE", "flags.cache"))
app.add_url_rule("/flags", "flags", lambda: dict(flags))
# [end]
