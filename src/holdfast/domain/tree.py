"""The scope tree: open, close, cancel, spend.

Rule 1. A node opens under an open parent, or not at all; its limit is never looser than that of
        its parent.
Rule 2. A node is cancelled at most once. The first cause wins; below, it is read by walking up.
Rule 3. Cancellation stops at a shield, whose own limit then starts to run.
Rule 4. A node closes once, with one outcome; closing gives back what it held.
Rule 5. A child that is still open when its parent closes is handed to the root, with its origin and
        its limit. It is no child any more, so nothing outlives its scope; the driver reports it.

A node decides and remembers. It never waits, spawns or reads a clock: `now` is an argument, and the
runtime, which subclasses it, performs what it decided.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum

from holdfast.domain.budget import Hold, Purse
from holdfast.domain.cause import Cause
from holdfast.domain.instant import NEVER, Duration, Instant

__all__ = ["Node", "Outcome", "Refusal"]


class Outcome(StrEnum):
    """How a scope ended. Exactly one of these."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REFUSED = "refused"


class Refusal(StrEnum):
    """Why a scope was not opened."""

    PARENT_CLOSED = "parent_closed"
    PARENT_CANCELLED = "parent_cancelled"
    EXPIRED = "expired"
    TOO_LITTLE = "too_little"
    HOLD_EXHAUSTED = "hold_exhausted"


class Node:
    """One scope of the tree.

    Attributes:
        name: one path segment, for people.
        parent: the scope it was opened under; None for a root and before opening.
        limit: instant at which the work of this scope is cancelled.
        kept: seconds carved out of the limit for shields; the parent was promised `end`.
        opened_at: instant of opening.
        tightens: whether `limit` is its own rather than the parent's.
        cause: why it was cancelled, when the cancellation began here.
        outcome: how it ended; None while it is open.
        origin: path of the scope that detached work came from.
    """

    # What every scope has is in slots and written at birth. CPython does not specialise access to
    # an attribute that the class has too: for these a default of the class would cost ten times as
    # much. For what few scopes have, a default of the class costs nothing.
    __slots__ = (
        "__dict__",
        "cause",
        "children",
        "limit",
        "name",
        "opened_at",
        "outcome",
        "parent",
        "tightens",
    )

    name: str
    parent: Node | None
    children: dict[Node, None] | None
    limit: Instant
    opened_at: Instant
    tightens: bool
    cause: Cause | None
    outcome: Outcome | None

    kept: Duration = 0.0
    origin: str = ""
    shielded: bool = False
    holds: dict[str, Hold] | None = None
    purses: dict[str, Purse] | None = None
    cancelled_open: int = 0
    """Kept by roots: open nodes below in which a cancellation began."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.parent = self.children = self.cause = self.outcome = None
        self.limit = NEVER
        self.opened_at = 0.0
        self.tightens = False

    def __repr__(self) -> str:
        state = self.outcome or ("cancelled" if self.cause else "open")
        return f"<{type(self).__name__} {self.path!r} {state}>"

    # -- reading ---------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """Names from the outermost scope to this one, joined by `/`. The root is left out."""
        names: list[str] = []
        node: Node = self
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        return "/".join(reversed(names)) or self.name

    @property
    def root(self) -> Node:
        """The outermost scope of its tree."""
        node: Node = self
        while node.parent is not None:
            node = node.parent
        return node

    @property
    def end(self) -> Instant:
        """Instant that the parent was promised: the limit of the work and the grace for shields."""
        return self.limit + self.kept

    @property
    def depth(self) -> int:
        """Number of scopes above this one."""
        depth, node = 0, self.parent
        while node is not None:
            depth, node = depth + 1, node.parent
        return depth

    @property
    def budget(self) -> Duration:
        """Seconds that the work was given when it began; infinite without a limit."""
        return max(0.0, self.limit - self.opened_at)

    def reached(self) -> Cause | None:
        """The cause that is in force here: its own, or that of the nearest cancelled ancestor.

        The nearest is the first: once an ancestor is cancelled, `cancel` below it does nothing.
        """
        node: Node | None = self
        while node is not None:
            if node.cause is not None:
                return node.cause
            if node.shielded:
                return None
            node = node.parent
        return None

    def nearest_open(self) -> Node:
        """This node, or the nearest ancestor that is still open (the root never closes first)."""
        node = self
        while node.outcome is not None and node.parent is not None:
            node = node.parent
        return node

    # -- opening ---------------------------------------------------------------------------------

    def open_root(self, now: Instant) -> None:
        """Open as the root of a new tree, without a limit."""
        self.opened_at = now

    def open(
        self, parent: Node, now: Instant, wish: Instant = NEVER, grace: Duration = 0.0
    ) -> Refusal | None:
        """Open under `parent`, wishing to end at `wish`, `grace` seconds of it for shields.

        Returns the reason when it is refused; the node is then closed as refused.
        """
        refusal = self.admit(parent, now, wish, grace)
        if refusal is None:
            self.link()
        return refusal

    def admit(
        self, parent: Node, now: Instant, wish: Instant = NEVER, grace: Duration = 0.0
    ) -> Refusal | None:
        """Everything that `open` does, except to be listed under the parent."""
        limit = parent.limit
        if wish < limit:
            limit = wish
            self.tightens = True
        if grace:
            self.kept = grace
            limit -= grace
            self.tightens = limit < parent.limit
        self.opened_at = now
        self.parent = parent
        self.limit = limit
        if limit <= now:
            return self._refuse(Refusal.EXPIRED)
        if parent.outcome is not None:
            return self._refuse(Refusal.PARENT_CLOSED)
        if parent.reached() is not None:
            return self._refuse(Refusal.PARENT_CANCELLED)
        return None

    def link(self) -> None:
        """Be listed under the parent, so that walks from above find it."""
        parent = self.parent
        if parent is None:
            return
        if parent.children is None:
            parent.children = {self: None}
        else:
            parent.children[self] = None

    def open_shield(self, parent: Node, now: Instant, grace: Duration) -> None:
        """Open under `parent` out of reach of its cancellation, for `grace` seconds from then on.

        Where a scope above carved grace out of its limit beforehand, the shield ends by the end of
        that scope; otherwise its time is granted by the root.
        """
        self.shielded = True
        self.parent = parent
        self.opened_at = now
        self.limit = self.shield_limit(now, grace)
        self.tightens = self.limit != NEVER
        self.link()

    def shield_limit(self, now: Instant, grace: Duration) -> Instant:
        """The limit of a shield, by what is known now of the scopes around it."""
        parent = self.parent
        if parent is None:
            return NEVER
        cap = parent.root.end
        node: Node | None = parent
        while node is not None:
            if node.kept:
                cap = min(cap, node.end)
            node = node.parent
        begun = parent.reached() is not None or parent.limit <= now
        return min(cap, (now if begun else parent.limit) + grace)

    def _refuse(self, why: Refusal) -> Refusal:
        self.outcome = Outcome.REFUSED
        return why

    # -- cancelling ------------------------------------------------------------------------------

    def cancel(self, cause: Cause) -> bool:
        """Begin a cancellation here; false when it is closed or one has reached it already."""
        if self.outcome is not None or self.reached() is not None:
            return False
        self.cause = cause
        self.root.cancelled_open += 1
        return True

    def below(self) -> Iterator[Node]:
        """This node and every open one below that its cancellation reaches, outermost first.

        Shields are yielded, for their time starts to run, but not what is inside them; nor what is
        below a node that was cancelled on its own. Lazy: a driver may take its time.
        """
        stack: list[Node] = [self]
        while stack:
            node = stack.pop()
            if node.outcome is not None:
                continue
            yield node
            if node.children and (node is self or not node.shielded):
                stack.extend(child for child in node.children if child.cause is None)

    # -- closing ---------------------------------------------------------------------------------

    def close(self, outcome: Outcome) -> tuple[Node, ...]:
        """Close with `outcome`, give back what was held, and hand open children to the root.

        Returns the children that were still open. Closing twice changes nothing.
        """
        if self.outcome is not None:
            return ()
        self.outcome = outcome
        escaped = self._hand_over() if self.children else ()
        if self.cause is not None:
            self.root.cancelled_open -= 1
        parent = self.parent
        if parent is not None and parent.children is not None:
            parent.children.pop(self, None)
        if self.holds:
            for hold in self.holds.values():
                hold.release()
        return escaped

    def _hand_over(self) -> tuple[Node, ...]:
        escaped = tuple(self.children or ())
        self.children = None
        root = self.root
        cause = self.reached()
        for child in escaped:
            if cause is not None and child.cause is None and not child.shielded:
                child.cause = cause  # what reached it stays readable under the root
                root.cancelled_open += 1
            child.origin = child.origin or child.path
            child.parent = root
            child.tightens = child.tightens or child.limit != NEVER
            child.link()
        return escaped

    # -- holds and purses ------------------------------------------------------------------------

    def endow(
        self, holds: Mapping[str, float] | None = None, purses: Mapping[str, float] | None = None
    ) -> Refusal | None:
        """Carve holds and purses out of the nearest ancestors that have them; all or nothing.

        A hold or purse that no ancestor has begins here.

        Raises:
            ValueError: this scope has a hold or purse of that name already.
        """
        for name in (*(holds or {}), *(purses or {})):
            if name in (self.holds or {}) or name in (self.purses or {}):
                raise ValueError(f"scope '{self.name}' has '{name}' already")
        carved: dict[str, Hold] = {}
        for name, amount in (holds or {}).items():
            above = self.hold(name)
            hold = Hold(amount) if above is None else above.carve(amount)
            if hold is None:
                for done in carved.values():
                    done.release()
                return Refusal.HOLD_EXHAUSTED
            carved[name] = hold
        if carved:
            self.holds = {**(self.holds or {}), **carved}
        if purses:
            own = {name: Purse(amount, self.purse(name)) for name, amount in purses.items()}
            self.purses = {**(self.purses or {}), **own}
        return None

    def hold(self, name: str) -> Hold | None:
        """The nearest hold of that name, here or above."""
        node: Node | None = self
        while node is not None:
            if node.holds and name in node.holds:
                return node.holds[name]
            node = node.parent
        return None

    def purse(self, name: str) -> Purse | None:
        """The nearest purse of that name, here or above."""
        node: Node | None = self
        while node is not None:
            if node.purses and name in node.purses:
                return node.purses[name]
            node = node.parent
        return None

    def spend(self, name: str, amount: float = 1.0) -> bool:
        """Debit the purse of that name here and in every ancestor; true where there is none."""
        purse = self.purse(name)
        return purse is None or purse.spend(amount)
