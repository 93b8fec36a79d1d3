"""The process that writes the own file of a store: ``python -m tests.faults.sources.file_writer FOLDER``."""

from __future__ import annotations

import base64
import os
import resource
import sys
from collections.abc import Mapping, Sequence

from datasync.errors import DatasyncError
from datasync.keyval.filedb import own_file
from datasync.keyval.filedb.writable import WritableFileStore
from tests.faults.sources.scripted_store import write
from tests.support.child_process import Answer, answer_questions, interrupt


class InterruptedFile(own_file.OwnFile):
    """Stands still with the lock, before it writes or after it has written, when it is told to."""

    stands_still = ""

    def write(self, pairs: Mapping[str, bytes]) -> bytes:
        if self.stands_still == "before":
            interrupt()
        done = super().write(pairs)
        if self.stands_still == "after":
            interrupt()
        return done

    def _keep_rights(self, folder: int, descriptor: int) -> None:
        if self.stands_still == "inside":  # the new file is there, and has nothing in it
            interrupt()
        super()._keep_rights(folder, descriptor)


class Writer:
    """What may be asked; every method is a question."""

    def __init__(self, folder: str) -> None:
        self._store = WritableFileStore(folder, lock_timeout=0.3)
        self._file = InterruptedFile(os.path.join(folder, "datasync.json"), 0.3, self._store.config.max_bytes)
        self._store._own = self._file

    def commit(self, ops: Sequence[tuple[str, str | None]], stand_still: str = "") -> Answer:
        """A transaction: the class of the error that it met, if any."""
        self._file.stands_still = stand_still
        try:
            write(self._store, [(key, None if text is None else base64.b64decode(text)) for key, text in ops])
        except DatasyncError as error:
            return {"error": type(error).__name__, "text": str(error)}
        finally:
            self._file.stands_still = ""
        return {}

    def limit(self, size: int | None) -> Answer:
        """Files may not have more than *size* bytes, as on a disk that is full."""
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (most if size is None else size, most))
        return {}

    def _close(self) -> None:
        self._store.close()


def main() -> None:
    own_file.os.fsync = lambda descriptor: None  # type: ignore[assignment, attr-defined]  # nobody cuts the power here
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = Writer(sys.argv[1])
    answer_questions({"commit": writer.commit, "limit": writer.limit})
    writer._close()


if __name__ == "__main__":
    main()
