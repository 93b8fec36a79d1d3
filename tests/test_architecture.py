"""The floors of the house: what a module may import, start and print (docs/architecture)."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "datasync"

#: Floor of each module: the longest entry that the module's name starts with counts. A module imports from the floors
#: below, or from its own package. The drivers, each a floor 2 package of its own, know nothing of one another.
FLOORS = {
    "datasync.api": 0,
    "datasync.checks": 0,
    "datasync.codecs": 0,
    "datasync.commits": 0,
    "datasync.context": 0,
    "datasync.errors": 0,
    "datasync.events": 0,
    "datasync.jsonscalars": 0,
    "datasync.jsontext": 0,
    "datasync.messagetypes": 0,
    "datasync.options": 0,
    "datasync.protojson": 0,
    "datasync.protoplans": 0,
    "datasync.runtime": 0,
    "datasync.serializer": 0,
    "datasync.tracing": 0,
    "datasync.aggregator": 1,
    "datasync.consumer.view.opened": 4,  # opens stores and transports for its caller
    "datasync.syncbase": 1,
    "datasync.resync": 1,
    "datasync.consumer": 1,
    "datasync.keyval": 1,
    "datasync.messaging": 1,
    "datasync.keyval.memory": 2,
    "datasync.keyval.mirror": 2,
    "datasync.keyval.sqlite": 2,
    "datasync.keyval.etcd": 2,
    "datasync.keyval.postgres": 2,
    "datasync.keyval.redis": 2,
    "datasync.keyval.consul": 2,
    "datasync.keyval.filedb": 2,
    "datasync.messaging.memory": 2,
    "datasync.messaging.kafka": 2,
    "datasync.kvdbsync.local": 2,
    "datasync.kvdbsync": 3,
    "datasync.metrics": 2,  # what it shows is on floors 0 and 1, and a transport serves it
    "datasync.metrics.server": 4,  # on the HTTP server of a transport
    "datasync.grpcsync": 3,
    "datasync.restsync": 3,
    "datasync.msgsync": 3,
    "datasync.openfeature": 4,
    "datasync.testing": 4,
    "datasync.tools": 4,
    "datasync.examples": 4,
    "datasync.examples.guides": 5,  # also tests, with what is for tests
    "datasync.cli": 5,  # the demo runs the agent of the examples
    "datasync.__main__": 6,
}

#: Packages whose module may be imported at the top of a file: the rest belongs to an extra, and to its driver only.
CORE_DEPENDENCIES = {"google"}
EXTRAS = {
    "datasync.keyval.etcd": {"grpc"},
    "datasync.keyval.postgres": {"psycopg"},
    "datasync.keyval.redis": {"redis"},
    "datasync.keyval.consul": {"urllib3"},
    "datasync.keyval.filedb": {"yaml"},
    "datasync.messaging.kafka": {"confluent_kafka"},
    "datasync.grpcsync": {"grpc"},
    "datasync.restsync": {"urllib3"},
    "datasync.cli": {"click", "rich"},
    "datasync.examples": {"celery", "click", "django", "flask", "rich"},
    "datasync.examples.guides": {"django", "flask", "openfeature", "pytest"},
    "datasync.openfeature": {"openfeature"},
    "datasync.metrics": {"opentelemetry", "prometheus_client"},
    "datasync.testing": {"pytest"},
}
#: Modules on floor 0 that belong to an extra each.
EXTRAS_OF_MODULES = {
    "datasync.cli.output": {"yaml"},
    "datasync.codecs.members": {"msgspec"},
    "datasync.codecs.with_msgspec": {"msgspec"},
    "datasync.codecs.with_pydantic": {"pydantic"},
    "datasync.codecs.yaml_text": {"yaml"},
    "datasync.runtime.settings.file": {"yaml"},
    "datasync.protoplans": {"orjson"},
    "datasync.runtime.http_client.connections": {"urllib3"},
    "datasync.runtime.http_client.timed_connection": {"urllib3"},
}


#: Public names that several packages define, each for its own transport or level. Any other class name is used once.
CONTRACT_NAMES = {"Adapter", "BytesTxn", "Client", "KeyVal", "Plugin", "ProtoTxn", "Server", "Watcher"}

#: Limits of size.
MAX_MODULE_LINES, MAX_CLASS_LINES, MAX_FOLDER_MODULES = 460, 400, 18


class Module:
    """A source file: its name, whether it is a package, and what it imports."""

    def __init__(self, path: Path, root: Path = ROOT) -> None:
        parts = path.relative_to(root).with_suffix("").parts
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)
        text = path.read_text()
        self.tree = ast.parse(text, str(path))

        self.generated = self.name.endswith("_pb2")
        self.lines = text.count("\n")
        self.classes = [node for node in self.tree.body if isinstance(node, ast.ClassDef)]

    @property
    def package(self) -> str:
        return self.name if self.is_package else self.name.rpartition(".")[0]

    @property
    def home(self) -> str:
        """The entry of ``FLOORS`` that this module belongs to; floor 0 is one home."""
        fitting = [entry for entry in FLOORS if self.name == entry or self.name.startswith(entry + ".")]
        entry = max(fitting, key=len, default="")
        return "datasync.api" if FLOORS.get(entry) == 0 else entry


def imports(module: Module, *, at_run_time_only: bool = False) -> Iterator[tuple[str, str]]:
    """(module, name) for each import, those inside functions too; *at_run_time_only* leaves out TYPE_CHECKING."""
    hidden = {id(inner) for node in ast.walk(module.tree) if _is_type_checking(node) for inner in ast.walk(node)}
    for node in ast.walk(module.tree):
        if at_run_time_only and id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.package.split(".")[: len(module.package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                yield base, alias.name


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


MODULES = {module.name: module for module in map(Module, sorted(PACKAGE.rglob("*.py")))}


def target(base: str, name: str, modules: dict[str, Module]) -> str:
    """The module that an import means: ``from package import module`` means the module."""
    return f"{base}.{name}" if name and f"{base}.{name}" in modules else base


def edges(modules: dict[str, Module]) -> Iterator[tuple[Module, Module]]:
    """Imports inside the package, each once. An ``__init__`` only lists its modules: it stands on no floor itself."""
    for module in modules.values():
        targets = {target(base, name, modules) for base, name in imports(module)}
        for name in sorted(targets & modules.keys() - {module.name}):
            if not module.is_package:
                yield module, modules[name]


def upward(modules: dict[str, Module]) -> list[str]:
    found = []
    for module, imported in edges(modules):
        if module.home == imported.home or imported.name == "datasync":
            continue
        if FLOORS[imported.home] >= FLOORS[module.home]:
            found.append(f"{module.name} (floor {FLOORS[module.home]}) imports {imported.name}")
    return found


def cycles(modules: dict[str, Module]) -> list[str]:
    """Every chain of imports that comes back to where it began."""
    graph: dict[str, list[str]] = {name: [] for name in modules}
    for module, imported in edges(modules):
        if not imported.is_package:
            graph[module.name].append(imported.name)
    found: list[str] = []
    finished: set[str] = set()

    def walk(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in finished:
            for following in graph[name]:
                walk(following, [*trail, name])
            finished.add(name)

    for name in graph:
        walk(name, [])
    return found


def through_a_package(modules: dict[str, Module]) -> list[str]:
    """Names that a module takes from a package instead of the module that defines them."""
    found = []
    for module in modules.values():
        # The floors that look at the library from outside may use it as users do.
        if module.is_package or FLOORS.get(module.home, 0) >= 4:
            continue
        for base, name in imports(module):
            package = modules.get(target(base, name, modules))
            if package is not None and package.is_package:
                found.append(f"{module.name}: from {base} import {name}")
    return found


def calls(modules: dict[str, Module], *names: str) -> list[str]:
    """The modules that call one of *names*, as written in the source."""
    return [
        f"{module.name}:{node.lineno} {ast.unparse(node.func)}"
        for module in modules.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names
    ]


def foreign(modules: dict[str, Module], standard: frozenset[str]) -> list[str]:
    """Client libraries that are imported outside their driver."""
    found = []
    for module in modules.values():
        allowed = standard | CORE_DEPENDENCIES | {"datasync", "__future__"} | EXTRAS.get(module.home, set())
        allowed |= EXTRAS_OF_MODULES.get(module.name, set())
        found += [
            f"{module.name} imports {base}"
            for base, _ in imports(module, at_run_time_only=True)  # "_typeshed" exists for type checkers only
            if base.partition(".")[0] not in allowed
        ]
    return found


def across(modules: dict[str, Module], half: str, *others: str) -> list[str]:
    """Imports of the package *half* from *others*: a client loads nothing of its server."""
    return [
        f"{module.name} imports {imported.name}"
        for module, imported in edges(modules)
        if module.name.startswith(half + ".") and imported.name.startswith(tuple(other + "." for other in others))
    ]


def oversized(modules: dict[str, Module]) -> list[str]:
    """Modules, classes and folders that are too large to be read in one sitting; generated modules do not count."""
    own = [module for module in modules.values() if not module.generated]
    found = [f"{module.name} has {module.lines} lines" for module in own if module.lines > MAX_MODULE_LINES]
    for module in own:
        for node in module.classes:
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_CLASS_LINES:
                found.append(f"{module.name}.{node.name} has {lines} lines")
    folders = Counter(module.package for module in own)
    return found + [f"{name} has {count} modules" for name, count in folders.items() if count > MAX_FOLDER_MODULES]


def ambiguous(modules: dict[str, Module]) -> list[str]:
    """Class names that more than one module defines, with these modules."""
    places: dict[str, list[str]] = {}
    for module in modules.values():
        for node in module.classes:
            places.setdefault(node.name, []).append(module.name)
    return [
        f"{name}: {', '.join(found)}" for name, found in places.items() if len(found) > 1 and name not in CONTRACT_NAMES
    ]


def test_every_module_has_a_floor() -> None:
    homeless = [name for name, module in MODULES.items() if name != "datasync" and module.home not in FLOORS]
    assert homeless == []
    assert len(MODULES) > 20  # or this file looks in the wrong place


def test_no_module_imports_from_its_own_floor_or_above() -> None:
    assert upward(MODULES) == []


def test_no_imports_go_in_a_circle() -> None:
    assert cycles(MODULES) == []


def test_no_name_is_imported_through_a_package() -> None:
    assert through_a_package(MODULES) == []


def test_client_libraries_are_imported_in_their_driver_only() -> None:
    import sys

    assert foreign(MODULES, sys.stdlib_module_names) == []


@pytest.mark.parametrize(
    ("half", "others"),
    [
        ("datasync.restsync.client", ("datasync.restsync.app", "datasync.restsync.httpd")),
        ("datasync.grpcsync.client", ("datasync.grpcsync.server",)),
    ],
)
def test_a_client_imports_nothing_of_its_server(half: str, others: tuple[str, ...]) -> None:
    assert any(name.startswith(half + ".") for name in MODULES)
    assert across(MODULES, half, *others) == []


def test_modules_classes_and_folders_are_small() -> None:
    assert oversized(MODULES) == []


def test_a_class_name_means_one_thing() -> None:
    assert ambiguous(MODULES) == []


def test_threads_are_started_in_one_module_only() -> None:
    # C15: an executor starts threads too. Examples are users' programs, with threads of their own.
    inside = {name: module for name, module in MODULES.items() if module.home != "datasync.examples"}
    names = ("threading.Thread", "threading.Timer", "ThreadPoolExecutor", "_thread.start_new_thread")
    assert [place.partition(":")[0] for place in calls(inside, *names)] == ["datasync.runtime.threads"]
    hidden = {("threading", "Thread"), ("threading", "Timer"), ("_thread", "start_new_thread")}
    assert [name for name, module in inside.items() if hidden & set(imports(module))] == []


def test_conditions_let_signals_through() -> None:
    # C15: the main thread may wait for any of them, and a signal just before that does not end the wait.
    inside = {name: module for name, module in MODULES.items() if module.home != "datasync.examples"}
    assert calls(inside, "threading.Condition") == []


def test_nothing_sleeps() -> None:
    # A sleeping thread cannot be closed: stopping.wait(delay) can.
    inside = {name: module for name, module in MODULES.items() if FLOORS.get(module.home, 0) < 4}
    assert calls(inside, "time.sleep", "sleep") == []


def test_only_the_command_and_the_examples_print() -> None:
    inside = {name: module for name, module in MODULES.items() if FLOORS.get(module.home, 0) < 4}
    assert calls(inside, "print") == []


def test_there_is_no_asyncio() -> None:
    found = [
        f"{module.name} imports {base}"
        for module in MODULES.values()
        for base, name in imports(module)
        if base.startswith(("asyncio", "grpc.aio")) or (base, name) == ("grpc", "aio")
    ]
    coroutines = [
        f"{module.name}:{node.lineno}"
        for module in MODULES.values()
        for node in ast.walk(module.tree)
        if isinstance(node, (ast.AsyncFunctionDef, ast.Await))
    ]
    assert found + coroutines == []


def test_packages_hold_imports_and_a_list_of_names_only() -> None:
    found = []
    for module in MODULES.values():
        if not module.is_package:
            continue
        for node in module.tree.body:
            text = ast.unparse(node)
            harmless = isinstance(node, (ast.Import, ast.ImportFrom)) or text.startswith(("__all__", "'", '"'))
            # A driver's package says which extra brings its library.
            harmless = harmless or (isinstance(node, ast.Try) and "raise MissingExtraError(" in text)
            # What pytest loads with the package, by name.
            harmless = harmless or (module.name == "datasync.testing" and text.startswith("pytest_plugins = "))
            # Four packages load names on first use, and the root silences its logger, as every library should.
            if module.name in ("datasync", "datasync.codecs", "datasync.consumer", "datasync.metrics"):
                harmless = harmless or (_is_type_checking(node) and "load_lazily(" in text)
            harmless = harmless or (module.name == "datasync" and "NullHandler" in text)
            if not harmless:
                found.append(f"{module.name}: {text[:60]}")
    assert found == []


# -- each rule can fail -----------------------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small package of the same name, one rule broken in each module."""
    files = {
        "__init__.py": "",
        "errors.py": "from datasync.keyval import reader\n",
        "events.py": "import datasync.options\nprint('x')\n",
        "options.py": "from . import events\nimport grpc\n",
        "keyval/__init__.py": "from datasync.keyval.reader import x\n",
        "keyval/reader.py": "import threading\nfrom datasync.keyval.etcd.client import y\nthreading.Thread()\n",
        "keyval/memory.py": "from datasync.keyval.etcd import client\nfrom datasync import errors\n",
        "keyval/etcd/__init__.py": "",
        "keyval/etcd/client.py": "from datasync import x\nimport grpc\n",
        "kvdbsync/__init__.py": "",
        "kvdbsync/plugin.py": "import typing\nif typing.TYPE_CHECKING:\n    from datasync.cli import main; import _x\n",
        "kvdbsync/one.py": "import typing\nif typing.TYPE_CHECKING:\n    from datasync.kvdbsync import two\n",
        "kvdbsync/two.py": "from datasync.kvdbsync import one\n",
        "msgsync/__init__.py": "",
        "msgsync/first.py": "def act():\n    from datasync.msgsync.second import x\n",
        "msgsync/second.py": "import datasync.msgsync.first\n" + "#\n" * 460,
        "restsync/__init__.py": "",
        "restsync/client/__init__.py": "",
        "restsync/client/client.py": "from datasync.restsync.app import application\nclass Long:\n"
        + "    x = 1\n" * 400,
        "restsync/app/__init__.py": "",
        "restsync/app/application.py": "class Answer: pass\nclass Client: pass\n",
        "restsync/client/answers.py": "class Answer: pass\nclass Client: pass\n",
        **{f"grpcsync/module{number}.py": "" for number in range(19)},
        "grpcsync/generated_pb2.py": "#\n" * 1000,
        "cli/__init__.py": "",
        "cli/main.py": "from datasync.kvdbsync import plugin\nprint('x')\n",
    }
    for name, text in files.items():
        path = tmp_path / "datasync" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_each_rule_finds_the_module_that_breaks_it(house: Path) -> None:
    # given a house in which every rule is broken
    modules = {module.name: module for module in (Module(path, house) for path in (house / "datasync").rglob("*.py"))}
    # then each rule says where, and only there
    assert sorted(upward(modules)) == [
        "datasync.errors (floor 0) imports datasync.keyval.reader",
        "datasync.keyval.memory (floor 2) imports datasync.keyval.etcd.client",
        "datasync.keyval.reader (floor 1) imports datasync.keyval.etcd.client",
        "datasync.kvdbsync.plugin (floor 3) imports datasync.cli.main",
    ]
    # and a circle is one under TYPE_CHECKING or inside a function as well
    assert {frozenset(circle.split(" -> ")) for circle in cycles(modules)} == {
        frozenset({"datasync.events", "datasync.options"}),
        frozenset({"datasync.kvdbsync.plugin", "datasync.cli.main"}),
        frozenset({"datasync.kvdbsync.one", "datasync.kvdbsync.two"}),
        frozenset({"datasync.msgsync.first", "datasync.msgsync.second"}),
    }
    assert across(modules, "datasync.restsync.client", "datasync.restsync.app", "datasync.restsync.httpd") == [
        "datasync.restsync.client.client imports datasync.restsync.app.application"
    ]
    assert [sorted(line.partition(": ")[2].split(", ")) for line in ambiguous(modules)] == [
        ["datasync.restsync.app.application", "datasync.restsync.client.answers"]
    ]
    assert sorted(oversized(modules)) == [
        "datasync.grpcsync has 19 modules",
        "datasync.msgsync.second has 461 lines",
        "datasync.restsync.client.client.Long has 401 lines",
    ]
    assert through_a_package(modules) == ["datasync.keyval.etcd.client: from datasync import x"]
    assert calls(modules, "threading.Thread") == ["datasync.keyval.reader:3 threading.Thread"]
    assert sorted(calls(modules, "print")) == ["datasync.cli.main:2 print", "datasync.events:2 print"]
    assert foreign(modules, frozenset({"threading", "typing"})) == ["datasync.options imports grpc"]
