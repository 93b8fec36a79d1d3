"""The memory of what was applied: the accepted value of each key, here and, if wanted, in a file.

Source: contract C20.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from datasync.consumer.reconciler.state_file import DELETED, UNKNOWN, StateFile, digest


def digests_of(known: Iterable[str] | Mapping[str, bytes]) -> dict[str, str]:
    """Return the digests of *known*: keys that exist in what is being configured, maybe with their values as bytes."""
    if isinstance(known, Mapping):
        return {key: digest(data) for key, data in known.items()}
    return dict.fromkeys(known, UNKNOWN)


class Applied:
    """The value of each key that was accepted last.

    Args:
      file: Keeps digests for the next start.
      digests: The digest of each key that was applied before; ``?`` where the value is not known.

    Call with the owner's lock held, but for the methods that write the file.
    """

    __slots__ = ("_digests", "_file", "_values")

    def __init__(self, file: StateFile | None, digests: Mapping[str, str]) -> None:
        self._file = file
        self._values: dict[str, bytes] = {}
        #: Of keys that this process has not applied: what earlier ones did.
        self._digests = dict(digests)

    def __contains__(self, key: str) -> bool:
        return key in self._values or key in self._digests

    def __len__(self) -> int:
        return len(self._values) + len(self._digests)

    def keys(self) -> list[str]:
        """Return every key that exists in what is being configured, or may exist there."""
        return [*self._values, *self._digests]

    def get(self, key: str) -> bytes | None:
        """Return the accepted value of *key*; None when there is none, or this process does not know it."""
        return self._values.get(key)

    def matches(self, key: str, data: bytes | None) -> bool:
        """Return True if *data* is what was accepted; None stands for a deleted key."""
        if data is None:
            return key not in self
        if key in self._values:
            return self._values[key] == data
        earlier = self._digests.get(key)
        if earlier is None or earlier != digest(data):
            return False
        del self._digests[key]
        self._values[key] = data
        return True

    def accept(self, key: str, data: bytes | None) -> None:
        """Note that *data* was accepted; None for a delete."""
        self._digests.pop(key, None)
        if data is None:
            self._values.pop(key, None)
        else:
            self._values[key] = data

    # The file; without the owner's lock, since a disk may be slow. One thread has a key at a time.

    def write_begin(self, key: str) -> None:
        """Write that a call of *key* begins: if the process ends in the middle, nobody knows what was done."""
        if self._file is not None:
            self._file.begin(key)

    def write_doubt(self, key: str) -> None:
        """Write that *key* must be called again, whatever a call of it that runs now ends with."""
        if self._file is not None:
            self._file.doubt(key)

    def write_accepted(self, key: str, data: bytes | None) -> None:
        """Write that *data* was accepted; None for a delete."""
        if self._file is not None:
            self._file.note(key, DELETED if data is None else digest(data))
