"""The Lua scripts that the server runs: each reads or changes data, index and log together, or nothing."""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files


class Script:
    """A script, which the server is sent once, and then by its digest."""

    def __init__(self, name: str) -> None:
        self.name = name
        folder = files("datasync.keyval.redis").joinpath("lua")
        self.text = "".join(folder.joinpath(f"{part}.lua").read_text("utf-8") for part in ("common", name))
        self.digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


COMMIT = Script("commit")
READ = Script("read")
PAGE = Script("page")
LOOK = Script("look")
COMPACT = Script("compact")
SETTLE = Script("settle")
RENEW = Script("renew")
RESTORE = Script("restore")
RELEASE = Script("release")
ABSORB = Script("absorb")
TAKE = Script("take")
HOLD = Script("hold")
END = Script("end")
