"""The line of a lock or election: the keys that are bound to the session that they name.

Source: contract C15.
"""

from __future__ import annotations

from datasync.keyval.consul.client import ConsulClient
from datasync.keyval.consul.keys import KeyRange
from datasync.keyval.consul.listing import get_range, sessions_of
from datasync.keyval.consul.lock_lease import lease_id
from datasync.keyval.consul.pictures import read_picture
from datasync.keyval.diff_stream import KnownPictures, PairMarks
from datasync.keyval.driver import Contender, Line
from datasync.runtime.wording import below


def read_line(client: ConsulClient, known: KnownPictures, prefix: str) -> Line:
    """Return the keys under *prefix* that leases hold, in the order of their puts, and note their picture as *known*.

    A key that was put plainly over that of a lease stays when the session ends, since a plain value must not expire. As
    a contender it would hold up everyone behind it for ever.
    """
    keys, what = KeyRange.of(prefix), f"listing {below(prefix)}"
    response = get_range(client, keys, what)
    picture = read_picture(client, known, prefix, response)
    known.note(prefix, picture.revision, PairMarks.of(picture.pairs))
    sessions = sessions_of(response, keys, what, client.name)
    found = [
        Contender(pair.key, pair.value, pair.revision, pair.revision)
        for pair in picture.pairs.values()
        if pair.key in sessions and lease_id(sessions[pair.key]) == pair.key[len(prefix) :].partition("-")[0]
    ]
    return Line(picture.revision, tuple(sorted(found, key=lambda one: one.place)))
