"""``python -m tests.security.fuzz --target urls --seconds 60``: executions and findings; exit code 1 with any."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.security.fuzz")
    parser.add_argument("--target", help="one of --list")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--engine", choices=("atheris", "hypothesis"), help="atheris where it is installed")
    parser.add_argument("--out", type=Path, help="folder for the inputs of findings")
    parser.add_argument("--replay", type=Path, help="run the target once with the input in this file")
    parser.add_argument("--list", action="store_true", help="name the targets")
    wanted = parser.parse_args()
    engine = wanted.engine or ("atheris" if _has_atheris() else "hypothesis")
    # libFuzzer's helper tells each module that it instruments.
    with _instrumented(engine if not wanted.replay else ""), contextlib.redirect_stderr(io.StringIO()):
        from tests.security.fuzz.targets import TARGETS
    if wanted.list or wanted.target is None:
        for name, target in TARGETS.items():
            print(f"{name:14} {target.about}")
        return 0
    if wanted.target not in TARGETS:
        parser.error(f"there is no target {wanted.target}: see --list")
    logging.getLogger("datasync").setLevel(logging.CRITICAL if not wanted.target.startswith("rest") else logging.DEBUG)
    logging.getLogger("datasync").propagate = False
    logging.getLogger("grpc").setLevel(logging.CRITICAL + 1)
    target = TARGETS[wanted.target]()
    if wanted.replay:
        with target:
            target.run(wanted.replay.read_bytes())
        return 0
    return _fuzz(target, engine, wanted.seconds, wanted.out or Path(tempfile.mkdtemp(prefix="fuzz-")))


def _fuzz(target: object, engine: str, seconds: float, folder: Path) -> int:
    from tests.security.fuzz.campaign import Campaign, run_atheris, run_hypothesis
    from tests.security.fuzz.target import Target

    assert isinstance(target, Target)
    folder.mkdir(parents=True, exist_ok=True)
    target.open()
    campaign = Campaign(target, seconds, folder, watched=True)

    def finish() -> None:
        # libFuzzer never comes back, so this is the end of the process as well.
        target.close()
        print(campaign.report(engine), flush=True)
        os._exit(1 if campaign.findings else 0)

    if engine == "atheris":
        run_atheris(campaign, finish)
    run_hypothesis(campaign)
    target.close()
    print(campaign.report(engine))
    return 1 if campaign.findings else 0


def _has_atheris() -> bool:
    from importlib.util import find_spec

    return find_spec("atheris") is not None


def _instrumented(engine: str) -> contextlib.AbstractContextManager[object]:
    if engine != "atheris":
        return contextlib.nullcontext()
    import atheris

    found: contextlib.AbstractContextManager[object] = atheris.instrument_imports(include=["datasync"])
    return found


if __name__ == "__main__":
    sys.exit(main())
