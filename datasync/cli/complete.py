"""Completion candidates of a shell for the positional arguments: URLs, files, and the keys of the store.

Completion must be quick, silent and harmless: it reads one page of keys, creates nothing, and offers nothing when the
store does not answer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

from click.shell_completion import CompletionItem

from datasync.cli.targets import default_url, looks_like_url, open_store
from datasync.errors import DatasyncError
from datasync.keyval.urls import DRIVERS

#: Keys that are read.
MOST = 200
#: Arguments that name a key or its beginning, and those that name a file.
KEYS, FILES = ("key", "prefix"), ("source", "destination", "other")


def complete_positional(names: Sequence[str], given: Sequence[str], incomplete: str) -> list[CompletionItem]:
    """Return what the next argument can be, after *given* for the first of *names*."""
    # With DATASYNC_URL the first argument may be a URL all the same.
    urls = _urls(incomplete) if names and names[0] == "url" and len(given) <= bool(default_url()) else []
    if len(given) >= len(names):
        return urls
    name = names[len(given)]
    if name in FILES:
        return [*urls, CompletionItem(incomplete, type="file")]
    return [*urls, *(_keys(given[0], incomplete) if name in KEYS and given else ())]


def _urls(incomplete: str) -> list[CompletionItem]:
    default = "" if "@" in default_url() else default_url()  # a password is not shown
    known = [default, *(f"{scheme}://" for scheme in DRIVERS), "http://"]
    return [CompletionItem(url) for url in dict.fromkeys(known) if url and url.startswith(incomplete)]


def _keys(url: str, incomplete: str) -> list[CompletionItem]:
    """Return the keys that start with *incomplete*, each up to its next slash."""
    if not looks_like_url(url):
        return []
    logging.disable(logging.CRITICAL)  # a line of the log would end up in the user's prompt
    found: dict[str, None] = {}
    with suppress(DatasyncError, OSError, ValueError), open_store(url) as store:
        for pair in islice(store.scan_page(incomplete, limit=MOST, keys_only=True), MOST):
            head, slash, _ = pair.key[len(incomplete) :].partition("/")
            found[incomplete + head + slash] = None
    return [CompletionItem(key) for key in found if key.isprintable()]
