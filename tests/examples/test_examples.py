"""Every example runs as its docstring says; the tests check its output."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.support.proxy import free_port
from tests.support.running import Running, run

EXAMPLES = Path(__file__).resolve().parents[2] / "datasync" / "examples"
#: Modules that are not examples themselves.
PARTS = {"__init__", "dataplane", "launch", "netconf_pb2"}
TESTED = {
    "agent",
    "etcd_agent",
    "legacy_daemon",
    "local_transaction",
    "dynamic_prefixes",
    "orchestrated_resync",
    "composite",
    "rest_agent",  # test_rest.py
    "rest_client",
    "grpc_agent",
    "grpc_client",
    "settings_table",  # test_settings_table.py
    "vhosts",  # test_vhosts.py
}

ETH0 = '{"name":"eth0","enabled":true,"mtu":%d,"ip_addresses":["192.0.2.1/24"]}'


def datasync(*arguments: str) -> None:
    done = run("-m", "datasync", *arguments)
    assert done.returncode == 0, done.stderr


def printed(example: str) -> str:
    done = run("-m", f"datasync.examples.{example}")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


#: Those in folders, by folder.
TESTED_BELOW = {
    # test_guides.py, tests/testing/test_fixtures.py
    "guides": {"from_etcd3", "from_kazoo", "from_launchdarkly", "from_redis", "how_to_test"},
    # tests/consumer/test_live_examples.py
    "live": {"flags", "flags_django", "flags_flask", "read_your_writes", "settings"},
    # tests/keyval/locks
    "locks": {"exclusive_job"},
    "topics": {"topic_state"},
}


def test_no_example_is_forgotten() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} - PARTS == TESTED
    for folder, tested in TESTED_BELOW.items():
        assert {path.stem for path in (EXAMPLES / folder).glob("*.py")} - PARTS == tested


def test_topic_state_shows_the_state_its_change_and_its_end() -> None:
    assert printed("topics.topic_state").splitlines() == [
        "RESYNC: if_state/eth0 is up",
        "Put: if_state/eth0 is down",
        "Delete: if_state/eth0 is gone",
    ]


def test_local_transaction_shows_old_and_new_values_and_a_rejection() -> None:
    out = printed("local_transaction")
    assert "interface/eth0 has mtu 9000, before 1500" in out
    assert "interface/eth1 was deleted, its mtu was 1500" in out
    assert "nothing to delete: interface/eth9" in out
    assert "rejected by printer: interface/eth2 has no mtu" in out


def test_dynamic_prefixes_get_their_own_resync_and_can_be_removed() -> None:
    # C11
    out = printed("dynamic_prefixes")
    assert re.findall(r"RESYNC \(\w+\)|CHANGE \S+", out) == [
        "RESYNC (initial)",
        "RESYNC (prefix)",
        "CHANGE config/route/10.0.0.0/8",
        "CHANGE config/interface/eth1",
    ]


def test_orchestrated_resync_keeps_the_order_and_reports_what_failed() -> None:
    # C14
    out = printed("orchestrated_resync")
    assert out.count("interfaces: RESYNC, keys: 1\n  routes: RESYNC, keys: 1") == 2
    assert "interfaces failed: " in out


def test_composite_keeps_its_sources_apart() -> None:
    # C12
    first, second = printed("composite").splitlines()
    assert first.endswith("{'interface/eth0': 9000, 'interface/eth1': 1500}")
    assert second.endswith("{'interface/eth0': 1500, 'interface/eth1': 1500}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_agent_applies_rejects_and_ends_at_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    # given an agent on an empty store
    url = f"sqlite://{tmp_path}/network.db"
    key = "/vnf-agent/vpp1/config/interface/eth0"
    with Running("-m", "datasync.examples.agent", url) as agent:
        agent.wait_for("RESYNC (initial)")
        # when an interface is put, changed, and made invalid
        for mtu in (1500, 9000, 20000):
            datasync("put", url, key, ETH0 % mtu)
        # then the agent reports it
        agent.wait_for("mtu 1500 → 9000")
        agent.wait_for("! config/interface/eth0  rejected: mtu 20000 is not between 68 and 9216")
        # and after the backoff it receives the key again, and still rejects it
        agent.wait_for("CHANGE (again)")
        agent.wait_for("! config/interface/eth0  rejected: mtu 20000", times=2)
        # when a value is not valid protojson / then the agent rejects that too, and continues
        datasync("put", url, "/vnf-agent/vpp1/config/route/0.0.0.0/0", "not a route")
        agent.wait_for("! config/route/0.0.0.0/0  rejected: the value of ")
        agent.send(number)
        assert agent.wait() == 0
        assert "Traceback" not in agent.output


def test_the_status_of_the_agent_is_in_the_store_until_the_agent_ends(tmp_path: Path) -> None:
    # C17
    url = f"sqlite://{tmp_path}/network.db"
    with Running("-m", "datasync.examples.agent", url) as agent:
        agent.wait_for("RESYNC (initial)")
        with Running("-m", "datasync", "watch", url, "/vnf-agent/vpp1/status/") as watch:
            watch.wait_for("Ctrl-C")
            datasync("put", url, "/vnf-agent/vpp1/config/interface/eth0", ETH0 % 1500)
            watch.wait_for('"event":"CHANGE"')
            agent.send(signal.SIGTERM)
            watch.wait_for("-> (none)")
            assert agent.wait() == 0


@pytest.mark.parametrize("example", ["agent", "etcd_agent"])
def test_an_agent_without_a_store_prints_the_error(example: str) -> None:
    done = run("-m", f"datasync.examples.{example}", "frob://x")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "unknown store scheme" in done.stderr or "usage:" in done.stderr


def test_the_grpc_agent_gets_everything_from_the_client_and_again_after_a_restart() -> None:
    # given an agent, and a client that pushes to it and stays
    address = f"127.0.0.1:{free_port()}"
    with Running("-m", "datasync.examples.grpc_agent", address) as agent:
        agent.wait_for(f"listening on {address}")
        with Running("-m", "datasync.examples.grpc_client", address, "--stay") as client:
            # then each side prints the results
            client.wait_for("the agent has applied all 2 keys")
            client.wait_for("eth1: applied")
            client.wait_for("mtu 20000 is not between 68 and 9216")
            client.wait_for("eth3: applied")
            client.wait_for("eth3 existed and was deleted: True")
            client.wait_for("eth3 can be deleted again: False")
            agent.wait_for("+ config/route/0.0.0.0/0")
            agent.wait_for("! config/interface/eth2  rejected")
            # when the agent is killed and started again
            agent.send(signal.SIGKILL)
            agent.wait()
            with Running("-m", "datasync.examples.grpc_agent", address) as again:
                # then it receives what was applied
                again.wait_for("+ config/interface/eth1", timeout=20)
                again.wait_for("+ config/route/0.0.0.0/0")
                client.send(signal.SIGTERM)
                assert client.wait() == 0
                again.send(signal.SIGTERM)
                assert again.wait() == 0
                assert "eth2" not in again.output
    assert "Traceback" not in client.output + again.output


def test_a_grpc_client_without_an_agent_prints_the_error() -> None:
    done = run("-m", "datasync.examples.grpc_client", f"127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "was not reached within 5.0 s" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_legacy_daemon_handles_its_signals_and_leaves_no_thread(tmp_path: Path) -> None:
    # given a daemon
    file = tmp_path / "network.db"
    with Running("-m", "datasync.examples.legacy_daemon", str(file)) as daemon:
        daemon.wait_for("legacy-daemon: ready")
        # when an interface arrives, then one that its workers reject
        datasync("put", f"sqlite://{file}", "interface/a", '{"name":"a","mtu":9000}')
        daemon.wait_for("a: mtu 9000 by worker-")
        datasync("put", f"sqlite://{file}", "interface/b", '{"name":"b"}')
        daemon.wait_for("rejected 'interface/b'")
        # or a value that is none / then the daemon goes on
        datasync("put", f"sqlite://{file}", "interface/c", "not an interface")
        daemon.wait_for("rejected 'interface/c'")
        datasync("delete", f"sqlite://{file}", "interface/c")
        daemon.wait_for("interface/c was deleted")
        # and the second one is corrected / then it is delivered at once
        datasync("put", f"sqlite://{file}", "interface/b", '{"name":"b","mtu":1400}')
        daemon.wait_for("b: mtu 1400 by worker-")
        # when SIGHUP / then it starts over from the full configuration
        daemon.send(signal.SIGHUP)
        daemon.wait_for("legacy-daemon: resync: legacy-daemon: applied", times=2)
        # when SIGTERM / then it ends cleanly
        daemon.send(signal.SIGTERM)
        assert daemon.wait() == 0
        assert "stopped; threads left: 0" in daemon.output


def test_the_legacy_daemon_fails_on_a_file_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("dear all")
    done = run("-m", "datasync.examples.legacy_daemon", str(tmp_path / "x"))
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr


def test_read_your_writes_waits_for_mirror_subscriber_and_view() -> None:
    assert printed("live.read_your_writes").splitlines() == [
        "mirror 40",
        "subscriber {'limit/eth0': 80}",
        "rejected {'limit/eth1': 'ValueError'}",
        "view 60",
        "deleted True False",
    ]
