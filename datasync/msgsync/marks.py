"""The positions of a topic that a reader may resume from, and what must still be true there.

A Kafka consumer is not told that a topic was deleted and created again, nor that a tombstone was removed before it was
read. A mark remembers what shows it.

Source: contract C13, C23 and section 4, "position".
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from datasync.commits import Commit

#: Positions remembered; a reader needs its last one.
MAX_MARKS = 256


@dataclass(frozen=True, slots=True)
class Mark:
    """The knowledge at a position: everything before it was read.

    Attributes:
      topic_id: The identity of the topic.
      complete_at: The time, by the boot clock, from which on messages may be unread. Each tombstone written later stays
        for the topic's ``delete.retention.ms`` after it.
      anchor: The commit that follows the position, as it was delivered; None where nothing was.
    """

    topic_id: str
    complete_at: float
    anchor: Commit | None = None


class Marks:
    """The last positions, by offset. Threads: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _marks
        self._marks: OrderedDict[int, Mark] = OrderedDict()

    def note(self, position: int, mark: Mark) -> None:
        """Remember *mark*. Of two topics at one position none is trusted: whose reader asks later is unknown."""
        with self._lock:
            there = self._marks.pop(position, None)
            if there is not None and there.topic_id != mark.topic_id:
                mark = Mark("", mark.complete_at)
            self._marks[position] = mark
            if len(self._marks) > MAX_MARKS:
                self._marks.popitem(last=False)

    def at(self, position: int) -> Mark | None:
        """Return the mark of *position*."""
        with self._lock:
            return self._marks.get(position)

    def only(self, topic_id: str) -> None:
        """Forget the positions of other topics of the name: their readers have to list again."""
        with self._lock:
            for position, mark in list(self._marks.items()):
                if mark.topic_id != topic_id:
                    self._marks[position] = Mark("", mark.complete_at)
