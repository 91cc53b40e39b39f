"""Which crash states are looked at, and what they may be.

At every fsync and every mark, which is when the most is at stake (a crash between two of them is a
crash at the next that lost what came later): nothing, everything, all but one and one alone, by
file or folder and by operation (all new names, a few of the writes and removals); beginnings;
growth without data; and torn and random subsets.
"""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from shutil import rmtree
from typing import Any

from tests.search.crash.disk import (
    CrashState,
    Tree,
    num_sectors,
    pending,
    survivors,
    write_tree,
)
from tests.search.crash.log import Enter, Event, Fsync, Mark, Rename, Write

ACKNOWLEDGED = "acknowledged "

MOST_ALONE = 3
"""At one place, writes and removals that are lost alone, of perhaps dozens; all new names are."""


def places_of_interest(events: Sequence[Event]) -> list[int]:
    """Return the places just before each fsync and just after each mark, and the end."""
    places = {place for place, event in enumerate(events) if isinstance(event, Fsync)}
    places |= {place + 1 for place, event in enumerate(events) if isinstance(event, Mark)}
    return sorted(places | {len(events)})


def crash_states(
    events: Sequence[Event],
    places: Sequence[int],
    *,
    without: Collection[int] = (),
    num_random: int = 1,
) -> Iterator[CrashState]:
    """Yield crash states at these places, the same ones at every call.

    `without` names places of fsyncs to be taken as never called.
    """
    for place in places:
        at_stake = frozenset(pending(events, place, without=without))
        writes = {n: num_sectors(e) for n in at_stake if isinstance(e := events[n], Write)}
        yield CrashState(place)
        generator = random.Random(place)
        for lost in _losses(events, at_stake, generator):
            yield CrashState(place, lost)
        if writes:
            yield CrashState(place, frozenset(), dict.fromkeys(writes, frozenset()))
        for _ in range(num_random if at_stake else 0):
            lost = frozenset(n for n in sorted(at_stake) if generator.random() < 0.5)
            torn = {
                number: frozenset(s for s in range(count) if generator.random() < 0.5)
                for number, count in sorted(writes.items())
                if number not in lost and generator.random() < 0.5
            }
            yield CrashState(place, lost, torn)


def _losses(
    events: Sequence[Event], at_stake: frozenset[int], generator: random.Random
) -> Iterator[frozenset[int]]:
    yield at_stake
    by_node: dict[int, set[int]] = {}
    for number in at_stake:
        by_node.setdefault(events[number].node, set()).add(number)  # type: ignore[union-attr]
    for numbers in by_node.values():
        yield frozenset(numbers)
        yield at_stake - numbers
    many = sorted(n for n in at_stake if not isinstance(events[n], Enter | Rename))
    chosen = generator.sample(many, min(MOST_ALONE, len(many)))
    for number in sorted({*chosen, *at_stake.difference(many)}):
        yield frozenset({number})
        yield at_stake - {number}
        yield frozenset(n for n in at_stake if n >= number)


@dataclass(kw_only=True)
class Judge:
    """Says whether a crash state is one that the program may leave.

    Attributes:
        events: All that happened.
        look: Given the folder after a crash, returns what it holds; may raise.
        states: What the folder holds after 0, 1, 2, ... writes.
        scratch: Where folders are made.
        num_judged: Different contents that were looked at.
    """

    events: Sequence[Event]
    look: Callable[[Path], Any]
    states: Sequence[Any]
    scratch: Path
    num_judged: int = 0
    _known: dict[bytes, Any] = field(default_factory=dict)

    def fault(self, state: CrashState) -> str | None:
        """Return what is wrong with a crash state, or None."""
        least, most = self._bounds(state.place)
        found = self._look(survivors(self.events, state))
        if any(found == allowed for allowed in self.states[least : most + 1]):
            return None
        held = [number for number, other in enumerate(self.states) if other == found]
        what = f"the state after write {held[-1]}" if held else str(found)[:500]
        return f"write {least} was acknowledged, found {what}; {self.explain(state)}"

    def _bounds(self, place: int) -> tuple[int, int]:
        """Return the last write acknowledged before `place`, and the next that will be."""
        numbers = [
            (where, int(event.text.removeprefix(ACKNOWLEDGED)))
            for where, event in enumerate(self.events)
            if isinstance(event, Mark) and event.text.startswith(ACKNOWLEDGED)
        ]
        least = max((number for where, number in numbers if where < place), default=0)
        most = min((number for where, number in numbers if where >= place), default=least)
        return least, most

    def explain(self, state: CrashState) -> str:
        """Say which operations were lost."""
        lost = [self.name(number) for number in sorted(state.lost)]
        torn = [self.name(number) for number in sorted(state.torn)]
        last = self.name(state.place - 1) if state.place else "the start"
        return f"crash after {last}, lost: {', '.join(lost) or '-'}, torn: {', '.join(torn) or '-'}"

    def name(self, number: int) -> str:
        """Say which event is at a place of the log."""
        event = self.events[number]
        what = event.text if isinstance(event, Mark) else event.path  # type: ignore[union-attr]
        return f"{number} {type(event).__name__.lower()} {what}"

    def _look(self, tree: Tree) -> Any:
        digest = _digest(tree)
        if digest not in self._known:
            self.num_judged += 1
            folder = self.scratch / str(self.num_judged)
            write_tree(tree, folder)
            try:
                self._known[digest] = self.look(folder)
            except Exception as error:
                self._known[digest] = f"{type(error).__name__}: {error}"
            rmtree(folder)
        return self._known[digest]


def _digest(tree: Tree) -> bytes:
    total = blake2b(digest_size=16)
    for name, content in sorted(tree.items()):
        size = -1 if content is None else len(content)
        total.update(f"{name}\0{size}\0".encode())
        total.update(content or b"")
    return total.digest()


def faults(judge: Judge) -> list[str]:
    """Return what is wrong with the crash states of a log."""
    states = crash_states(judge.events, places_of_interest(judge.events))
    return [fault for state in states if (fault := judge.fault(state))]


def fault_without(judge: Judge, fsyncs: Collection[int]) -> str | None:
    """Return what would be wrong if these fsyncs had not been called, or None if nothing was."""
    events = judge.events
    places = [place for place in places_of_interest(events) if place > min(fsyncs)]
    # Just after a mark most is promised: look there first.
    places.sort(key=lambda place: not isinstance(events[place - 1], Mark))
    for place in places:
        exposed = {*pending(events, place, without=fsyncs)} - {*pending(events, place)}
        if not exposed:
            continue
        for state in crash_states(events, [place], without=fsyncs):
            if exposed.isdisjoint({*state.lost, *state.torn}):
                continue
            if fault := judge.fault(state):
                return fault
    return None
