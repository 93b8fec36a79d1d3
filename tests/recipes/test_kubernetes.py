"""The Deployment: its command lines run with a real etcd, and probes that count what Kubernetes would restart."""

from __future__ import annotations

import json
import logging
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from datasync.keyval.urls import connect
from datasync.metrics.endpoints import PATHS
from tests.conftest import wait_until
from tests.metrics.support import get
from tests.recipes.support import UP, Kubelet, Web, document, ended, image, serving, started
from tests.support.command import complaint
from tests.support.servers import EtcdServer

log = logging.getLogger(__name__)

POD = document("deployment.yml")["spec"]["template"]["spec"]
FIRST_COPY, MIRROR, WEB = (*POD["initContainers"], *POD["containers"])
WORKERS = 4
#: Seconds of an outage, and how often the probes come in it, as a multiple of the manifest.
BRIEF, LONG = (3.0, 100.0), (300.0, 10.0)
OUTAGES = [
    pytest.param(*BRIEF, marks=pytest.mark.timeout(600)),
    pytest.param(*LONG, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
]


def is_down(server: EtcdServer, seconds: float, kubelet: Kubelet) -> None:
    """Kill the store, and probe for *seconds* before it comes back."""
    server.kill()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        kubelet.probe()
        time.sleep(kubelet.every)  # the pace of the probes is what is tested
    server.start()


def check_outage(web: Web, server: EtcdServer, seconds: float, pace: float) -> dict[str, Any]:
    """End the store for *seconds*; return what the kubelet counted. Every worker follows before and after."""
    pids, kubelet = web.pids, Kubelet(WEB, web.port, pace)
    assert len(pids) == 1 + WORKERS
    server.ctl("put", "flags/limit", "2")
    wait_until(lambda: web.has({"limit": 2}), "each worker follows", UP)
    is_down(server, seconds, kubelet)
    server.ctl("put", "flags/limit", "3")
    wait_until(lambda: web.has({"limit": 3}), "each worker follows again", UP)
    counted = {
        "probes": kubelet.sent,
        "failures": kubelet.failures,
        "containers restarted": kubelet.restarts,
        "times out of service": kubelet.removals,
        "workers restarted": len(web.pids - pids),
    }
    log.info("an outage of %g s: %s", seconds, counted)
    assert kubelet.sent >= 2
    return counted


def nothing_restarted(counted: dict[str, Any]) -> bool:
    return not any(number for what, number in counted.items() if what != "probes")


def test_the_manifest_fits_together() -> None:
    # given the containers / then each command is ours, and the web application runs that of the image
    assert "command" not in WEB
    for container in (FIRST_COPY, MIRROR):
        assert container["command"][0] == "datasync"
        assert complaint(container["command"][1:]) == ""
    assert "--once" in FIRST_COPY["command"]
    # and the probes ask for paths that there are, at the port of the image
    (port,) = WEB["ports"]
    assert [port["containerPort"]] == [int(text) for text in image()["EXPOSE"]]
    for kind, path in (("liveness", "/livez"), ("readiness", "/readyz")):
        asked = WEB[f"{kind}Probe"]["httpGet"]
        assert (asked["path"], asked["port"]) == (path, port["name"])
        assert path in PATHS
    # and all share one folder, as the user of the image
    volumes = {volume["name"] for volume in POD["volumes"]}
    for container in (FIRST_COPY, MIRROR, WEB):
        (mount,) = container["volumeMounts"]
        assert (mount["name"] in volumes, mount["mountPath"]) == (True, "/flags")
    assert [str(POD["securityContext"]["runAsUser"])] == image()["USER"]
    labels = document("deployment.yml")["spec"]["selector"]["matchLabels"].items()
    assert labels <= document("deployment.yml")["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.etcd
@pytest.mark.parametrize(("seconds", "pace"), OUTAGES)
def test_a_pod_with_a_mirror_restarts_nothing_while_its_store_is_down(
    seconds: float, pace: float, etcd: EtcdServer, tmp_path: Path
) -> None:
    pytest.importorskip("flask")
    folder = tmp_path / "flags"
    folder.mkdir()
    there = {"etcd:2379": etcd.endpoint, "/flags?": f"{folder}?"}
    with ExitStack() as pod:
        # given a pod that starts while etcd is down: the first copy waits for it
        first = pod.enter_context(started(FIRST_COPY["command"], there))
        first.wait_for("waiting", UP)
        etcd.start()
        etcd.ctl("put", "flags/limit", "1")
        assert first.wait(UP) == 0, first.output
        # when the others run / then the application has the flags of the first copy, and follows the mirror
        mirror = pod.enter_context(ended(started(MIRROR["command"], there)))
        mirror.wait_for("synced", UP)
        (variable,) = WEB["env"]
        flags = {variable["name"]: variable["value"].replace("/flags", str(folder)), "TMPDIR": str(tmp_path)}
        web = pod.enter_context(serving(json.loads(image()["CMD"][0]), flags))
        web.wait_ready(WORKERS)
        with connect(flags["FLAGS"]) as store:
            pair = store.new_broker("flags/").get_value("limit")
        assert (pair.found, pair.data) == (True, b"1")
        # when etcd is down / then nothing has restarted, and all of it follows again
        assert nothing_restarted(check_outage(web, etcd, seconds, pace))
        assert "failing" in mirror.output


@pytest.mark.etcd
@pytest.mark.parametrize(("seconds", "pace"), OUTAGES)
def test_an_application_that_connects_itself_restarts_nothing_while_its_store_is_down(
    seconds: float, pace: float, etcd: EtcdServer, tmp_path: Path
) -> None:
    pytest.importorskip("flask")
    # given a pod that starts while etcd is down: it lives, and is not ready
    with serving(json.loads(image()["CMD"][0]), {"FLAGS": etcd.url, "TMPDIR": str(tmp_path)}) as web:
        wait_until(lambda: get(web.port, "/livez")[0] == 200, "it lives", UP)
        assert get(web.port, "/readyz")[0] == 503
        # when etcd is there / then it is ready
        etcd.start()
        web.wait_ready(WORKERS)
        wait_until(lambda: get(web.port, "/readyz")[0] == 200, "it is ready", UP)
        # when etcd is down / then nothing has restarted, and all of it follows again
        assert nothing_restarted(check_outage(web, etcd, seconds, pace))
