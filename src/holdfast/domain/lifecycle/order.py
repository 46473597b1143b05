"""What starts before what: components in waves, by what each of them needs.

Rule 1. A component starts when everything that it needs is up, and stops before any of that does.
Rule 2. What needs nothing of one another is in one wave, in the order in which it was added.
Rule 3. A need that nobody fills, and needs that go round in a circle, are refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from holdfast.domain.errors import ConfigError

__all__ = ["above", "waves"]


def waves(needs: Mapping[str, Iterable[str]]) -> tuple[tuple[str, ...], ...]:
    """The components in the order in which they start, wave by wave; they stop in the reverse.

    Args:
        needs: names of components, in the order in which they were added, and what each needs.

    Raises:
        ConfigError: a need that is no component, or a circle of needs; both are named.
    """
    missing: dict[str, set[str]] = {}
    dependants: dict[str, list[str]] = {name: [] for name in needs}
    for name, wanted in needs.items():
        missing[name] = set(wanted)
        for need in missing[name]:
            if need not in dependants:
                raise ConfigError(f"components.{name}", _unknown(need, needs))
            dependants[need].append(name)
    place = {name: at for at, name in enumerate(needs)}
    found: list[tuple[str, ...]] = []
    ready = [name for name in needs if not missing[name]]
    left = len(missing)
    while ready:
        found.append(tuple(ready))
        left -= len(ready)
        following: list[str] = []
        for name in ready:
            for dependant in dependants[name]:
                missing[dependant].discard(name)
                if not missing[dependant]:
                    following.append(dependant)
        ready = sorted(following, key=place.__getitem__)
    if left:
        circle = _circle(missing)
        raise ConfigError(
            f"components.{circle[0]}", f"needs go round in a circle: {' -> '.join(circle)}"
        )
    return tuple(found)


def above(sources: Iterable[str], needs: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """The `sources`, and everything that needs one of them, directly or not."""
    dependants: dict[str, list[str]] = {}
    for name, wanted in needs.items():
        for need in wanted:
            dependants.setdefault(need, []).append(name)
    found: set[str] = set()
    stack = list(sources)
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack += dependants.get(name, ())
    return frozenset(found)


def _unknown(need: str, needs: Iterable[str]) -> str:
    known = ", ".join(f"'{name}'" for name in list(needs)[:10])
    return f"needs '{need}', but no component has that name; there are {known}"


def _circle(missing: Mapping[str, set[str]]) -> list[str]:
    # Whoever is left waits for somebody who is left, so that the walk ends where it has been.
    here = next(name for name, wanted in missing.items() if wanted)
    walk: list[str] = []
    seen: dict[str, int] = {}
    while here not in seen:
        seen[here] = len(walk)
        walk.append(here)
        here = min(missing[here])
    return [*walk[seen[here] :], here]
