"""The keys under a prefix as one validated object.

Source: contract C20.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Generic, NamedTuple, TypeVar, cast, get_type_hints

from datasync.consumer.view.condition import ViewState, ViewStatus
from datasync.consumer.view.frozen import same, thaw
from datasync.consumer.view.notices import Listeners, ValueChange, place_of
from datasync.consumer.view.overlay import ABSENT, OverriddenValues
from datasync.consumer.view.view import View
from datasync.errors import DatasyncError, DecodeError, InvalidArgumentError, NotReadyError
from datasync.runtime.closing import Closable
from datasync.runtime.logs import get_logger

T = TypeVar("T")

log = get_logger(__name__)

#: Scalar types that a dataclass field is checked for; bool is an int to Python, but not here.
_EXACT: dict[Any, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}


class _Built(NamedTuple):
    """The result of what *source* has: the object of it, or the last good one and why there is no newer one."""

    source: object
    current: Any
    problem: DecodeError | None
    #: True when the problem is that of a key.
    of_key: bool = False


class Settings(Closable, Generic[T]):
    """One object of *model*, made of all keys of *view*: replaced as a whole, and only by a valid one.

    Threads: any; without a lock. Source: contract C20.
    """

    def __init__(self, view: View[Any], model: type[T]) -> None:
        #: The names of the fields, as keys.
        self.names = _field_names(model)
        self._model = model
        #: The view of the keys.
        self.view = view
        self._built: _Built | None = None
        self._overridden: _Built | None = None  # while a test shows other values; the last good object is not theirs
        self._announced: Any = None
        self._failed = False  # true once an object could not be made
        self._gave_defaults = False
        self._listeners = Listeners()
        view.on_changes(self._notice)
        view.on_fixed(lambda: self._notice({}))

    @property
    def current(self) -> T:
        """The last valid object.

        Raises:
          NotReadyError: There was none yet, and *model* cannot be made of its defaults.
        """
        built = self._build()
        if built.current is None:
            raise NotReadyError(f"there is no valid {self._model.__name__} yet: {built.problem}")
        return cast("T", built.current)

    @property
    def problems(self) -> Mapping[str, DecodeError]:
        """Why the newest keys are not in :attr:`current`: by key, and by ``""`` what *model* says of the whole."""
        problems = dict(self.view.problems)
        built = self._build()
        if built.problem is not None and not built.of_key:
            problems[""] = built.problem
        return problems

    @property
    def undeclared(self) -> tuple[str, ...]:
        """The keys under the prefix that are no field of *model*, in order."""
        return tuple(sorted(self.view.snapshot().keys() - self.names))

    @property
    def state(self) -> ViewState:
        """The state of the view."""
        return self.view.state

    def status(self) -> ViewStatus:
        """Return the state, the time since which it holds, and the error of the source."""
        return self.view.status()

    def wait_synced(self, timeout: float = 10.0) -> None:
        """Wait until the keys were read. Raises ``NotReadyError``, ``ClosedError``."""
        self.view.wait_synced(timeout)

    def on_change(self, function: Callable[[T, T, frozenset[str]], object]) -> Callable[[], None]:
        """Call *function* with the old object, the new one and the names of the fields that differ.

        It is called in the view's thread. The first object is not a change, unless defaults were read before it.
        Returns the function that ends it.
        """
        if not callable(function):
            raise InvalidArgumentError(f"a listener must be callable, not a {type(function).__name__}")

        def listener(differences: Mapping[str, ValueChange]) -> None:
            old, new = next(iter(differences.values()))
            function(old, new, frozenset(differences))

        return self._listeners.add(listener)

    def problem_with(self, values: Mapping[str, Any]) -> DecodeError | None:
        """Return why no object can be made of what is shown now with *values*, of which ``ABSENT`` is none."""
        wanted = {**self.view.snapshot(), **values}
        made = self._made({key: value for key, value in wanted.items() if value is not ABSENT})
        return made if isinstance(made, DecodeError) else None

    def close(self) -> None:
        """End the view; the last object can still be read. May be called twice."""
        self.view.close()

    def __enter__(self) -> Settings[T]:
        self.view.__enter__()
        return self

    def _build(self) -> _Built:
        """Return the object of what the view has now: of all of it, or the one before.

        A key that cannot be decoded keeps its last good value in the view, but what was written with it has changed.
        """
        shown = self.view.snapshot()
        overridden = isinstance(shown, OverriddenValues)
        source: object = shown
        bad: list[str] = []
        if not overridden:
            source = moment = self.view.moment()
            shown, bad = moment.values, sorted(moment.problems.keys() & self.names)
        last = self._built
        built = self._overridden if overridden else last
        if built is None or built.source is not source:
            made = self._made(shown)
            of_key = bool(bad) and not isinstance(made, DecodeError)
            if of_key:
                made = DecodeError(f"{bad[0]!r}: {moment.problems[bad[0]]}")
            self._gave_defaults = self._gave_defaults or not (overridden or bad or shown.keys() & self.names)
            if isinstance(made, DecodeError):
                log.warning("the settings keep the last good %s: %s", self._model.__name__, made)
                built = _Built(source, None if last is None else last.current, made, of_key)
                self._failed = True
            else:
                built = _Built(source, made, None)
            if overridden:
                self._overridden = built
            else:
                self._built = built  # of two threads at once, the next read mends what the slower one left
        return built

    def _made(self, snapshot: Mapping[str, Any]) -> Any:
        declared = {key: thaw(value) for key, value in snapshot.items() if key in self.names}
        validate = getattr(self._model, "model_validate", None)
        try:
            if validate is not None:
                return validate(declared)
            _check_scalars(self._model, declared)
            return self._model(**declared)
        except DatasyncError as error:
            return DecodeError(str(error))
        except Exception as error:  # its text may have a value in it
            return DecodeError(f"{self._model.__name__} raised {place_of(error)}")

    def _before(self, differences: Mapping[str, ValueChange]) -> Any:
        """Return the object before *differences*; None if there was none, or only defaults that nobody has read."""
        before = dict(self.view.snapshot())
        for key, difference in differences.items():
            before.pop(key, None)
            if difference.old is not None:
                before[key] = difference.old
        made = self._made(before) if self._gave_defaults or before.keys() & self.names else None
        return None if isinstance(made, DecodeError) else made

    def _notice(self, differences: Mapping[str, ValueChange]) -> None:
        failed = self._failed
        new = self._build().current
        old = self._announced
        if old is None and not failed:  # otherwise there was none
            old = self._before(differences)
        self._announced = new
        if old is None or new is None or old is new:
            return
        differ = [name for name in self.names if not same(getattr(old, name, None), getattr(new, name, None))]
        if differ:
            self._listeners.notify(dict.fromkeys(differ, ValueChange(old, new)))


def _field_names(model: Any) -> frozenset[str]:
    """Return the names of the fields of *model*, which for pydantic may be aliases."""
    if isinstance(model, type) and is_dataclass(model):
        return frozenset(one.name for one in fields(model) if one.init)
    declared = getattr(model, "model_fields", None)
    if not isinstance(model, type) or not isinstance(declared, Mapping):
        raise InvalidArgumentError("settings need a dataclass or a pydantic model")
    return frozenset(str(getattr(one, "alias", None) or name) for name, one in declared.items())


def _check_scalars(model: Any, values: Mapping[str, Any]) -> None:
    """Raise unless each field whose type is a scalar has a value of that type, and none is missing."""
    hints = get_type_hints(model)
    for one in fields(model):
        if one.init and one.name not in values and one.default is MISSING and one.default_factory is MISSING:
            raise DecodeError(f"the field {one.name!r} is missing")
        exact = _EXACT.get(hints.get(one.name))
        if exact is not None and one.name in values and type(values[one.name]) not in exact:
            found = type(values[one.name]).__name__
            raise DecodeError(f"the field {one.name!r} must be {hints[one.name].__name__}, not {found}")
