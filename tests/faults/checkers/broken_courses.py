"""A course without fault, and courses that each break one invariant: what the course checkers must pass and catch."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

from datasync.events import ResyncReason
from tests.faults.checkers.honest_client import Honest
from tests.faults.history import Answering, Closing, Course, Footprint, Fork, Log, Op1, Sample, Silence, Strike, Truth

#: Changes that are written, one each second, and what they weigh with their keys.
CHANGES, WEIGHT = 200, 3 << 20
#: Pauses of clients that try to come back, in seconds: the first and the longest.
PAUSES = (0.1, 30.0)
CLIENTS = 500


class Scene(NamedTuple):
    """All that the course checkers look at: two watchers, one of whom refuses a change now and then."""

    truth: Truth
    calm: Log
    failing: Log
    course: Course

    @property
    def logs(self) -> list[Log]:
        return [self.calm, self.failing]


def good_scene() -> Scene:
    """Nothing is wrong with it, and each invariant is put to the test."""
    truth = Truth()
    for number in range(CHANGES):
        truth.record(number + 2, [Op1(f"k{number % 7}", b"v%d" % number)], moment=number + 0.5)
    calm, failing = Honest(truth, ("",), name="calm"), Honest(truth, ("",), name="failing")
    calm.log.prompt = True
    for client in (calm, failing):
        client.resync(ResyncReason.INITIAL, 1)
    for number in range(CHANGES):
        calm.clock = number + 0.6
        calm.change(number + 2)
    _fails_now_and_then(failing)
    last = calm.log.end
    course = Course(healed=last - 1.5, converged=last, strikes=[Strike("reset", 20.0, 20.5)])
    course.silences = [Silence(30.0, 31.9, 2.0), Silence(40.0, None, 2.0, ended=40.5)]
    course.samples = [_sample(number) for number in range(CHANGES)]
    course.closings = [Closing("registration, here", 0.01, 2.0)]
    course.before, course.after = Footprint(3, 20, 0), Footprint(3, 19, 0)
    course.away, course.clients = (1000.0, 1040.0), CLIENTS
    course.attempts = attempts(lambda chance, most: chance.uniform(0, most))
    course.forks = [Fork("while idle, registry", "ForkedError", 0.01, 2.0, "")]
    return Scene(truth, calm.log, failing.log, course)


def _fails_now_and_then(client: Honest) -> None:
    """Refuses each fifth change and its redelivery, accepts the second one, and so on."""
    due: list[tuple[int, str, bool]] = []
    for number in range(CHANGES):
        client.clock = max(client.clock, number + 0.6)
        refuse = number % 5 == 0 and number < CHANGES - 8
        client.change(number + 2, refuse=refuse)
        if refuse:
            due += [(number + 2, f"k{number % 7}", True), (number + 5, f"k{number % 7}", False)]
        while due and due[0][0] <= number:
            _, key, again = due.pop(0)
            client.redeliver(key, refuse=again)


def _sample(number: int) -> Sample:
    caches = 30e6 * min(1.0, number / 40)
    jitter = 1e6 * (number % 3)
    written = number * WEIGHT
    return Sample(float(number), int(50e6 + caches + jitter + 0.02 * written), 9, 30, {"failing": 3}, written, 0)


def attempts(pause: Callable[[random.Random, float], float]) -> list[float]:
    """What 500 clients try while the server is away from 1000 to 1040, and until each is back."""
    chance = random.Random(7)
    moments = []
    for _ in range(CLIENTS):
        moment, most = 1000.0, PAUSES[0]
        while moment < 1040.0:
            moment += pause(chance, most)
            most = min(PAUSES[1], 2 * most)
            moments.append(moment)
    return sorted(moments)


class Flaw(NamedTuple):
    """A way in which a scene may be bad, and the invariant that it breaks."""

    invariant: str
    break_it: Callable[[Scene], None]


def never_converges(scene: Scene) -> None:
    scene.course.converged = None


def converges_late(scene: Scene) -> None:
    assert scene.course.healed is not None
    scene.course.converged = scene.course.healed + 2.1


def is_said_to_have_converged_too_soon(scene: Scene) -> None:
    """The last change comes long after that."""
    scene.course.healed, scene.course.converged = scene.calm.end - 4, scene.calm.end - 3.9
    scene.truth.epochs[0].times[-1] = scene.calm.end - 5


def never_redelivers_a_key(scene: Scene) -> None:
    """The last change is refused, and that was it."""
    answering = scene.failing.entries[-2]
    assert isinstance(answering, Answering)
    answering.refused = True


def recovers_late(scene: Scene) -> None:
    """What was committed while the connection was away comes three seconds after it is back."""
    for entry in scene.calm.entries:
        if 20.0 < entry.time < 23.4:
            entry.time = 23.4 + entry.time / 1000


def is_lost_for_good(scene: Scene) -> None:
    """Somebody hears nothing any more; he is the only one that it was measured of."""
    scene.calm.entries = [entry for entry in scene.calm.entries if entry.time < 20.0]
    scene.course.healed = scene.course.converged = None


def delays_a_neighbour(scene: Scene) -> None:
    """What is put to the one waits for the other."""
    late = [entry for entry in scene.calm.entries if entry.time > 100.0]
    for entry in late:
        entry.time += 2.5


def lets_pending_changes_grow(scene: Scene) -> None:
    scene.course.samples[60] = scene.course.samples[60]._replace(pending={"failing": 10_002})


def keeps_each_change(scene: Scene) -> None:
    scene.course.samples = [sample._replace(rss=sample.rss + sample.written) for sample in scene.course.samples]


def keeps_a_third_of_all(scene: Scene) -> None:
    scene.course.samples = [sample._replace(rss=sample.rss + sample.written // 3) for sample in scene.course.samples]


def hammers(scene: Scene) -> None:
    """A pause that does not grow."""
    scene.course.attempts = attempts(lambda chance, most: chance.uniform(0, 1.0))


def comes_back_together(scene: Scene) -> None:
    """Pauses without jitter."""
    scene.course.attempts = attempts(lambda chance, most: most)


def never_notices_a_black_hole(scene: Scene) -> None:
    scene.course.silences[0] = scene.course.silences[0]._replace(noticed=None)


def notices_a_black_hole_late(scene: Scene) -> None:
    scene.course.silences[0] = scene.course.silences[0]._replace(noticed=32.1)


def outlives_a_black_hole_unnoticed(scene: Scene) -> None:
    scene.course.silences[1] = scene.course.silences[1]._replace(ended=43.0)


def closes_slowly(scene: Scene) -> None:
    scene.course.closings.append(Closing("transport, a consumer's thread", 2.2, 2.0))


def leaves_a_thread(scene: Scene) -> None:
    scene.course.after = Footprint(4, 19, 0, ("MainThread", "datasync-left"))


def leaves_a_descriptor(scene: Scene) -> None:
    scene.course.after = Footprint(3, 21, 0)


def leaves_a_watcher_at_the_server(scene: Scene) -> None:
    scene.course.after = Footprint(3, 19, 1)


def does_not_count_at_the_server(scene: Scene) -> None:
    scene.course.after = Footprint(3, 19, None)


def hangs_in_a_child(scene: Scene) -> None:
    scene.course.forks.append(Fork("while a put is under way, registry", "hung", 10.0, 2.0, ""))


def answers_late_in_a_child(scene: Scene) -> None:
    scene.course.forks.append(Fork("while idle, plugin", "works", 2.1, 2.0, ""))


def harms_the_parent(scene: Scene) -> None:
    scene.course.forks.append(Fork("while idle, plugin", "ForkedError", 0.1, 2.0, "the stream ended"))


FLAWS: Mapping[str, Flaw] = {
    f"{flaw.break_it.__name__}-{flaw.invariant}": flaw
    for flaw in (
        Flaw("I8", never_converges),
        Flaw("I8", converges_late),
        Flaw("I8", is_said_to_have_converged_too_soon),
        Flaw("I8", never_redelivers_a_key),
        Flaw("I8", recovers_late),
        Flaw("I8", is_lost_for_good),
        Flaw("I10", delays_a_neighbour),
        Flaw("I12", lets_pending_changes_grow),
        Flaw("I12", keeps_each_change),
        Flaw("I12", keeps_a_third_of_all),
        Flaw("I13", hammers),
        Flaw("I13", comes_back_together),
        Flaw("I14", never_notices_a_black_hole),
        Flaw("I14", notices_a_black_hole_late),
        Flaw("I14", outlives_a_black_hole_unnoticed),
        Flaw("I15", closes_slowly),
        Flaw("I16", leaves_a_thread),
        Flaw("I16", leaves_a_descriptor),
        Flaw("I16", leaves_a_watcher_at_the_server),
        Flaw("I16", does_not_count_at_the_server),
        Flaw("I17", hangs_in_a_child),
        Flaw("I17", answers_late_in_a_child),
        Flaw("I17", harms_the_parent),
    )
}
