"""Choices out of bytes: one string of bytes from the engine decides everything that a target does with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

#: What is put into the middle of a seed beside bytes of the engine's own: what parsers trip over.
TRIPPERS: tuple[bytes, ...] = (
    b"",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",  # half of a surrogate pair, as UTF-8 would have it
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\n\n",
    b"%",
    b"%00",
    b"%ff",
    b"..",
    b"-1",
    b"1e999",
    b"NaN",
    b"9" * 20,
    b"9" * 5000,
    b"\\ud800",
    b'"',
    b"[" * 200,
    b'{"a":' * 200,
    b"[" * 20_000,
    b"\x0a\x80\x80\x80\x80\x08",  # a field of 2 GiB, in protobuf's words
    b"\xff" * 10,
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"\xd9\xa3",  # a digit that is not ASCII
)

#: Stands for every secret and value that a target puts in: what comes out must not hold it.
SECRET = "Zq9canary"


class Supply:
    """Reads choices off *data*; when it is used up every choice is the first one. Threads: one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def __bool__(self) -> bool:
        return self._place < len(self._data)

    def number(self, below: int) -> int:
        """A number from 0 on."""
        size = 1 if below <= 256 else 2 if below <= 65536 else 4
        return int.from_bytes(self.take(size), "big") % max(1, below)

    def one_of(self, choices: Sequence[T]) -> T:
        return choices[self.number(len(choices))]

    def chance(self, one_in: int) -> bool:
        return bool(self) and self.number(one_in) == 0

    def take(self, size: int) -> bytes:
        """The next *size* bytes, or what is left of them."""
        piece = self._data[self._place : self._place + size]
        self._place += size
        return piece

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(len(self._data))

    def mutated(self, seeds: Sequence[bytes], edits: int = 6) -> bytes:
        """One of *seeds* after some edits; or, now and then, bytes that owe nothing to a seed."""
        if self.chance(16):
            return self.rest()
        found = bytearray(self.one_of(seeds))
        for _ in range(self.number(edits)):
            self._edit(found, seeds)
        return bytes(found)

    def text(self, seeds: Sequence[str], edits: int = 6) -> str:
        """The same for text; bytes that are no UTF-8 become lone surrogates, as they do on a command line."""
        mutated = self.mutated([seed.encode("utf-8", "surrogateescape") for seed in seeds], edits)
        return mutated.decode("utf-8", "surrogateescape")

    def _edit(self, found: bytearray, seeds: Sequence[bytes]) -> None:
        place = self.number(len(found) + 1)
        kind = self.number(8)
        if kind == 0 and found:  # a bit
            found[place % len(found)] ^= 1 << self.number(8)
        elif kind == 1 and found:  # a byte
            found[place % len(found)] = self.number(256)
        elif kind == 2:  # a piece less
            del found[place : place + 1 + self.number(16)]
        elif kind == 3:  # nothing from here on
            del found[place:]
        elif kind == 4:  # the same again
            found[place:place] = _public(found[place : place + 1 + self.number(32)])
        elif kind == 5:  # a piece of another seed
            other = self.one_of(seeds)
            begin = self.number(len(other) + 1)
            found[place:place] = _public(other[begin : begin + 1 + self.number(64)])
        elif kind == 6:
            found[place:place] = self.one_of(TRIPPERS)
        else:
            found[place:place] = self.take(1 + self.number(8))


def _public(piece: bytes | bytearray) -> bytes:
    """*piece* without the secret: copied to where names are, it would be told as a name."""
    return bytes(piece).replace(SECRET.encode(), b"")
