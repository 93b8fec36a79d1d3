"""Keys as the bytes that the server stores, the keys of the store itself, and prefixes as ranges."""

from __future__ import annotations

from datasync.errors import InvalidArgumentError

#: The store's own keys begin so; no other key may.
RESERVED = "datasync:"
_OWN = ("log", "index", "revisions", "state")


class KeySpace:
    """The keys of one store: *tag* is in front of each, as ``{tag}``, so that a cluster has all of them in one slot."""

    def __init__(self, tag: str = "") -> None:
        self._cut = f"{{{tag}}}".encode() if tag else b""
        #: The keys that every script is given, in the order of ``common.lua``, which knows the names of the others.
        self.own = tuple(self._cut + f"{RESERVED}{name}".encode() for name in _OWN)
        self.log, self.index = self.own[:2]
        self._reserved = RESERVED.encode()

    def encode(self, key: str) -> bytes:
        """Return the bytes of *key*. Lone surrogates become the bytes, not valid UTF-8, that they were decoded from."""
        return self._cut + self._checked(key)

    def prefix(self, prefix: str) -> bytes:
        """Return the bytes with which the keys under *prefix* start; it may be a part of the store's own keys."""
        return self._cut + _bytes(prefix)

    def decode(self, key: bytes) -> str:
        return key[len(self._cut) :].decode("utf-8", "surrogateescape")

    def is_own(self, key: bytes) -> bool:
        """Return True if *key*, as the server has it, is no key of a user: of the store, or under another tag."""
        return not key.startswith(self._cut) or key.startswith(self._reserved, len(self._cut))

    def span(self, prefix: str) -> tuple[bytes, bytes]:
        """Return the bounds of the keys that start with *prefix*, as ZRANGEBYLEX takes them."""
        low = self.prefix(prefix)
        stem = low.rstrip(b"\xff")
        return b"[" + low, b"(" + stem[:-1] + bytes([stem[-1] + 1]) if stem else b"+"

    def _checked(self, key: str) -> bytes:
        encoded = _bytes(key)
        if encoded.startswith(self._reserved):
            raise InvalidArgumentError(f"the key {key[:40]!r} is reserved: keys of the store begin with {RESERVED!r}")
        return encoded


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        pass
    raise InvalidArgumentError(f"the key {text[:40]!r} must be valid Unicode: it has half of a surrogate pair")
