"""The page for people, in a real browser: empty, busy and failing, on a laptop and a phone, light and dark.

Screenshots are kept in the folder that the variable ``DATASYNC_SCREENSHOTS`` names, else in the test's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from datasync import View, codecs
from datasync.commits import Batch, Commit
from datasync.events import ResyncReason
from datasync.grpcsync import serve as serve_grpc
from datasync.keyval import connect
from datasync.kvdbsync.plugin import Plugin
from datasync.metrics.health import version
from datasync.restsync import Adapter, Server, serve
from datasync.restsync.app.dashboard import PAGE, PAGE_POLICY
from tests.conftest import CANARY, PATIENT, absent, wait_until
from tests.restsync.support import Http, Subscriber
from tests.support.executables import system
from tests.support.running import Running

browser = pytest.mark.browser

LAPTOP, PHONE = (1280, 860), (390, 844)
Show = Callable[[str], None]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium with its driver, one for all tests of this file."""
    program, driver = system("chromium"), system("chromedriver")
    if program is None or driver is None:
        absent("chromium with chromedriver")
    selenium = pytest.importorskip("selenium.webdriver")
    service = __import__("selenium.webdriver.chrome.service", fromlist=["Service"]).Service(str(driver))
    options = selenium.ChromeOptions()
    options.binary_location = str(program)
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = selenium.Chrome(options=options, service=service)
    yield chromium
    chromium.quit()


class Page:
    """What a person sees and does."""

    def __init__(self, chromium: Any, folder: Path) -> None:
        self._chromium = chromium
        self._folder = folder
        self._width = 0

    def open(self, url: str, size: tuple[int, int] = LAPTOP, *, dark: bool = False) -> None:
        width, height = size
        self._width = width
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self._chromium.get(url)
        self._chromium.execute_script("sessionStorage.clear()")
        self._chromium.get_log("browser")

    def text(self, place: str = "body") -> str:
        script = "const node = document.querySelector(arguments[0]); return node ? node.innerText : ''"
        found: str = self._chromium.execute_script(script, place)
        return found

    def wait(self, *texts: str, place: str = "body") -> None:
        wait_until(lambda: all(text in self.text(place) for text in texts), f"the page shows {texts}")

    def find(self, place: str) -> Any:
        return self._chromium.find_element("css selector", place)

    def click(self, place: str) -> None:
        """Click it, also if the page is just drawn anew."""
        from selenium.common.exceptions import StaleElementReferenceException

        def clicked() -> bool:
            with contextlib.suppress(StaleElementReferenceException):
                self.find(place).click()
                return True
            return False

        wait_until(clicked, f"{place} can be clicked")

    def type(self, place: str, text: str) -> None:
        self.find(place).clear()
        self.find(place).send_keys(text)

    def shoot(self, name: str) -> None:
        """Keep a screenshot; nothing may stick out of the screen, and nothing may have gone wrong."""
        width: int = self._chromium.execute_script("return document.documentElement.scrollWidth")
        assert width <= self._width, "the page is wider than the screen"
        self._chromium.save_screenshot(str(self._folder / f"{name}.png"))

    def complaints(self) -> list[str]:
        """What the browser has to say: scripts that failed, resources that were refused."""
        return [entry["message"] for entry in self._chromium.get_log("browser")]


@pytest.fixture
def page(chromium: Any, tmp_path: Path) -> Page:
    kept = os.environ.get("DATASYNC_SCREENSHOTS")
    folder = Path(kept) if kept else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    return Page(chromium, folder)


@pytest.fixture
def shown(adapter: Adapter) -> Iterator[Server]:
    """A server whose page may show values, beside a store that the process follows as well."""
    with connect(f"memory://{uuid4().hex}") as store, Plugin(kv=store) as plugin:
        with serve("127.0.0.1:0", adapter, show_values=True, sources=[plugin], done_timeout=PATIENT) as server:
            yield server


def fill(server: Server) -> None:
    http = Http(server.url)
    for number in range(4):
        http.put(f"net/interface/eth{number}", {"name": f"eth{number}", "mtu": 1500, "addresses": ["192.0.2.1/24"]})
    http.put("net/a-bridge-with-a-rather-long-name/member/" + "one-of-very-many-members-" * 4, {"x": 1})
    http.put("net/<script>alert(1)<%2Fscript>", "<b>not bold</b>")
    http("DELETE", "/keys/net/interface/eth3")
    http(
        "PUT",
        "/keys",
        '{"items":[{"key":"net/interface/eth0","value":{"mtu":9000}}]}',
        {"Content-Type": "application/json"},
    )
    http.put("net/interface/eth1", {"mtu": 1500})
    http.close()


@browser
@pytest.mark.parametrize(("size", "dark"), [(LAPTOP, False), (LAPTOP, True), (PHONE, False), (PHONE, True)])
def test_the_page_shows_what_the_process_knows_as_it_changes(
    page: Page, shown: Server, subscriber: Subscriber, size: tuple[int, int], dark: bool
) -> None:
    kind = f"{'phone' if size == PHONE else 'laptop'}-{'dark' if dark else 'light'}"
    # given an open page with nothing on it
    page.open(f"{shown.url}/", size, dark=dark)
    page.wait("live", "No keys yet", "No writes yet", "agent", "net/")
    page.shoot(f"empty-{kind}")
    # when keys are put, deleted and replaced / then it shows them without being asked
    fill(shown)
    page.wait("net/interface/eth1", '{"mtu":9000}', "Resync", "Delete", "synced", "1 requested")
    assert page.find("#events").text.count("took ") == 9
    page.shoot(f"busy-{kind}")
    # when a subscriber refuses / then that stands at the top, with its words
    http = Http(shown.url)
    http.put("net/refuse/this", 1)
    page.wait("agent rejected the last event", "ValueError: not with me", "failing", "422")
    page.shoot(f"failing-{kind}")
    # and nobody watches / then that is among the last requests as well
    http.put("other", 1)
    http.close()
    page.wait("no subscription watches 'other'", place="#events")
    assert page.complaints() == []


@browser
def test_clicking_and_typing_through_the_page(page: Page, shown: Server, subscriber: Subscriber) -> None:
    fill(shown)
    page.open(f"{shown.url}/")
    page.wait("net/interface/eth0", place="#keys")
    # when a filter is typed / then only what contains it is left
    page.type("#filter", "eth1")
    wait_until(lambda: "eth0" not in page.text("#keys"), "eth0 is gone")
    assert "net/interface/eth1" in page.text("#keys")
    page.type("#filter", "nothing like that")
    page.wait("No matching keys")
    page.shoot("filter-laptop-light")
    # when the other source is chosen / then its state is shown
    page.type("#filter", " ")
    page.find("#filter").clear()
    page.click("#sources button:nth-child(2)")
    page.wait("reconnects", place="#tiles")
    page.wait("No subscriptions yet", place="#subscriptions")
    page.shoot("other-source-laptop-light")
    page.click("#sources button:nth-child(1)")
    page.wait("event streams", place="#tiles")
    # when the link at the bottom is followed / then that is the document
    page.click("footer a")
    page.wait('"openapi": "3.0.3"')


@browser
@pytest.mark.parametrize(("size", "dark"), [(LAPTOP, False), (PHONE, True)])
def test_a_rejected_key_says_why_and_when_it_comes_again(
    page: Page, shown: Server, adapter: Adapter, subscriber: Subscriber, size: tuple[int, int], dark: bool
) -> None:
    # given a key that is rejected when nobody waits, among others that are not
    fill(shown)
    page.open(f"{shown.url}/", size, dark=dark)
    revision = adapter.registry.revision + 1
    adapter.registry.feed_changes(Batch(revision, [Commit(revision, [("net/zz/refuse", b'{"mtu":20000}')])]))
    # then it stands first, with the reason and the time
    page.wait("rejected", "agent: ValueError: not with me", "next attempt in", place="#keys .row.rejected")
    assert page.text("#keys .row .grow") == "net/zz/refuse"
    page.shoot(f"rejected-{'phone-dark' if dark else 'laptop-light'}")
    # when a request fails / then a click on it leads to its key
    http = Http(shown.url)
    http.put("net/refuse/this", 1)
    http.close()
    page.wait("422", place="#events")
    page.click("#events .link")
    wait_until(lambda: "eth0" not in page.text("#keys"), "only that key is shown")
    assert page.text("#keys .row .grow") == "net/refuse/this"
    page.wait("not again until it changes", place="#keys .row.rejected")
    # and the page says which process it is, and since when
    for text in (socket.gethostname(), f"pid {os.getpid()}", f"datasync {version()}", "up "):
        assert text in page.text("#process")
    assert "last accepted" in page.text("#subscriptions")
    assert "last success" in page.text("#event-count")
    assert page.complaints() == []


@browser
@pytest.mark.parametrize(("size", "dark"), [(LAPTOP, False), (PHONE, True)])
def test_everything_of_the_process_is_on_one_page_and_held_deletes_are_released_there(
    page: Page, size: tuple[int, int], dark: bool
) -> None:
    # given a server that was told of nothing but its plugin, and a gRPC server and a view beside it
    with (
        connect(f"memory://{uuid4().hex}") as store,
        Plugin(kv=store, prefix="app/", name="routers") as plugin,
        serve_grpc("127.0.0.1:0", name="peers") as grpc,
        View(plugin, "limits", "", codec=codecs.json, max_delete=1) as view,
        serve("127.0.0.1:0", plugin, done_timeout=PATIENT) as server,
    ):
        with Subscriber(grpc.adapter, "net/"):
            put = store.new_broker("app/").put
            for number in range(4):
                put(f"limit/{number}", b"1")
            wait_until(lambda: len(view) == 4, "the view has all keys")
            # when a full state lacks most of them
            plugin.registry.feed_snapshot(plugin.registry.revision, {"limit/0": (1, b"1")}, ResyncReason.RECONNECTED)
            # then they are held, and the page of that process shows them, and every transport
            page.open(f"{server.url}/", size, dark=dark)
            page.wait("view limits", "3 deletes held", "limit/3", place="#held")
            page.wait("routers", "peers", place="#sources")
            page.shoot(f"held-{'phone-dark' if dark else 'laptop-light'}")
            # when the button is pressed once / then it asks, and nothing has happened
            page.click("#held button")
            page.wait("Really delete 3 keys", place="#held")
            assert len(view) == 4
            # when it is pressed again / then they are gone
            page.click("#held button.armed")
            wait_until(lambda: len(view) == 1, "the deletes were released")
            wait_until(lambda: not page.text("#held"), "nothing is held")
            assert page.complaints() == []


@browser
def test_the_page_of_the_command_has_no_buttons_when_it_only_reads(page: Page, tmp_path: Path) -> None:
    # given ``datasync serve --read-only``, as an operator starts it
    url = f"sqlite://{tmp_path}/app.db"
    with connect(url) as store:
        store.new_broker().put("limit", b"1")
    with Running("-m", "datasync", "serve", url, "--listen", "127.0.0.1:0", "--read-only") as command:
        command.wait_for("press Ctrl-C")
        found = re.search(r"at (http://\S+),", command.output)
        assert found is not None
        page.open(f"{found[1]}/")
        page.wait("limit", place="#keys")
        page.wait("pid ", "datasync ", place="#process")
        assert page.find("#held-section").is_displayed() is False
        assert json.loads(Http(found[1])("GET", "/status").data)["releases"] is False
        assert page.complaints() == []


@browser
def test_a_value_is_text_and_never_markup(page: Page, shown: Server, subscriber: Subscriber) -> None:
    http = Http(shown.url)
    http.put("net/<img src=x onerror=alert(1)>", "<script>document.title='owned'</script>")
    http.close()
    page.open(f"{shown.url}/")
    page.wait("<img src=x onerror=alert(1)>", "document.title='owned'", place="#keys")
    assert page.complaints() == []


@browser
def test_values_are_not_shown_unless_allowed(page: Page, server: Server, http: Http, subscriber: Subscriber) -> None:
    http.put("net/a", f"a-{CANARY}-value")
    page.open(f"{server.url}/")
    page.wait("net/a", place="#keys")
    assert f"a-{CANARY}-value" not in page.text()


@browser
def test_a_server_that_goes_away_is_noticed_and_what_was_known_stays(
    page: Page, adapter: Adapter, subscriber: Subscriber
) -> None:
    server = serve("127.0.0.1:0", adapter)
    http = Http(server.url)
    http.put("net/a", 1)
    http.close()
    page.open(f"{server.url}/")
    page.wait("net/a")
    # when the server ends
    server.close()
    page.wait("disconnected", place="#live")
    assert "net/a" in page.text()
    page.shoot("out-of-reach-laptop-light")
    # and comes back / then the page goes on by itself
    with serve(server.address, adapter):
        page.wait("live", place="#live")


@browser
def test_a_token_is_asked_for_and_kept_until_the_tab_is_closed(
    page: Page, adapter: Adapter, subscriber: Subscriber
) -> None:
    with serve("127.0.0.1:0", adapter, token=f"{CANARY}-sesame") as server:
        page.open(f"{server.url}/", PHONE)
        page.wait("Token required")
        assert "agent" not in page.text()
        page.shoot("token-phone-light")
        page.type("#token", "wrong")
        page.click("#login button")
        page.wait("The token is not valid")
        page.type("#token", f"{CANARY}-sesame")
        page.click("#login button")
        page.wait("agent", "live")
        page._chromium.refresh()
        page.wait("agent", "live")


def test_the_page_loads_nothing_from_elsewhere_and_no_other_script_may_run_in_it() -> None:
    assert re.findall(r"(?:src|href)=[\"']?(?!data:|openapi\.json)([^\"' >]+)", PAGE) == []
    assert "default-src 'none'" in PAGE_POLICY
    assert "unsafe" not in PAGE_POLICY
    assert " style=" not in PAGE  # the policy would refuse it
    assert "innerHTML" not in PAGE
