"""Helpers of these tests."""

from __future__ import annotations

import re
import urllib.error
import urllib.request

from tests.conftest import PATIENT

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


def samples(text: str) -> dict[str, float]:
    """Return the samples of a scrape: ``name{labels}``, labels in order, to the number."""
    return {f"{name}{{{labels}}}" if labels else name: float(number) for name, labels, number in _SAMPLE.findall(text)}


def get(port: int, path: str, token: str = "") -> tuple[int, str]:
    """Return status and body; status 0 when nobody answers."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENT) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""
