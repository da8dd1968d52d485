"""The protocol by which servers share agents in an object store, as a machine of states.

Each server is a node with a number, whose claim in the store is held or ended. An agent's record
says which node holds it, and is only ever written over the version that the writer has read. Packs
are objects that records name; a pack's number is that of the node which uploaded it.

Every step is one request to the store, or one look at it, and any node may take the next one. So a
node that is stopped and wakes up later needs no step of its own: it is one that takes no step for a
while. Requests stay under way for as long as they like, also after their sender has given up or
crashed. A claim may be ended at any moment, however much alive its node is: only `require`, which
is a look at a clock in the code, is taken to be right at the moment of the look.

The names are those of `isthmus.server.storage.mirror` and `.node`.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.protocol.states import (
    FORK,
    QUARANTINE_DEATHS,
    SOURCE,
    Collecting,
    Doing,
    Node,
    Pack,
    Record,
    Rules,
    State,
    Turn,
    Write,
)


class Protocol:
    """The steps that are possible in a state."""

    def __init__(self, rules: Rules | None = None) -> None:
        self._rules = rules or Rules()

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for write in state.under_way:
            yield from self._land(state, write)
        for place, node in enumerate(state.nodes):
            for name, after in self._steps_of(state, place, node):
                yield f"{name} (node {node.number})", _sorted(after)

    def _steps_of(self, state: State, place: int, node: Node) -> Iterator[tuple[str, State]]:
        if node.number == 0:
            yield "start", _renewed(state, place)
            return
        if state.left.crashes:
            yield "crash", _with(_spent(state, "crashes"), place, Node(0))
        if _is_ended(state, node.number):
            yield "renew", _renewed(state, place)
        if state.left.ends:
            for number, ended in enumerate(state.ended, 1):
                if not ended and number != node.number:
                    yield f"end {number}", _end(_spent(state, "ends"), number)
        if node.doing is None:
            yield from self._begin(state, place, node)
        else:
            yield from self._go_on(state, place, node, node.doing)
        yield from self._collect(state, place, node)

    # ------------------------------------------------------------------ agents

    def _begin(self, state: State, place: int, node: Node) -> Iterator[tuple[str, State]]:
        for agent, record in enumerate(state.records):
            mine = node.owned[agent]
            if mine is not None:
                yield from self._use(state, place, node, agent, mine)
            elif record is not None and (
                record.holder in (0, node.number) or _is_ended(state, record.holder)
            ):
                new = record._replace(holder=node.number, epoch=record.epoch + 1)
                if self._rules.mourns:
                    new = _mourned(new, record, node)
                if self._rules.acquires:
                    yield f"acquire {agent}", _send(state, place, "acquire", (agent, record, new))
                else:
                    yield f"acquire {agent}", _own(state, place, agent, record)

    def _use(
        self, state: State, place: int, node: Node, agent: int, mine: Record
    ) -> Iterator[tuple[str, State]]:
        is_quarantined = self._rules.quarantines and mine.deaths >= QUARANTINE_DEATHS
        if not is_quarantined:
            yield from self._run(state, place, node, agent, mine)
        if state.left.releases:
            new = mine._replace(holder=0)
            after = _own(_spent(state, "releases"), place, agent, None)
            under_way = after.under_way | {Write(agent, mine, new)}
            yield f"release {agent}", after._replace(under_way=under_way)
        if state.left.removals and agent == SOURCE:
            write = (agent, mine, None)
            yield "remove", _send(_spent(state, "removals"), place, "remove", write)

    def _run(
        self, state: State, place: int, node: Node, agent: int, mine: Record
    ) -> Iterator[tuple[str, State]]:
        """What has the agent in memory: it may end the node."""
        position = len(mine.turns)
        if agent == SOURCE and state.left.poisonings:
            after = _spent(state, "poisonings")
            record = state.records[agent]
            if record is not None and record.holder == node.number:  # else it was counted already
                after = after._replace(victims=state.victims + 1)
            yield f"poison {agent}", _with(after, place, Node(0))
        if position < state.left.messages and not mine.packs - state.packs:
            pack = Pack(node.number, agent, position)
            turn = Turn(node.number, mine.epoch, position)
            new = mine._replace(turns=(*mine.turns, turn), packs=mine.packs | {pack}, deaths=0)
            doing = Doing("save", Write(agent, mine, new))
            node = _promise(node, new)._replace(doing=doing, there=node.there | {pack})
            packs = state.packs if pack in state.nodes[place].there else state.packs | {pack}
            yield f"upload {pack}", _with(state._replace(packs=packs), place, node)
        if state.left.forks and agent == SOURCE:
            new = mine._replace(holder=node.number, epoch=1, deaths=0)
            yield "fork", _send(_spent(state, "forks"), place, "create", (FORK, None, new))

    def _go_on(
        self, state: State, place: int, node: Node, doing: Doing
    ) -> Iterator[tuple[str, State]]:
        agent = doing.write.agent
        if doing.what == "save":
            yield "commit", _send(state, place, "commit", doing.write)
        elif doing.what in ("admit", "keep"):
            if not self._rules.requires or not _is_ended(state, node.number):
                after = _own(state, place, agent, doing.write.new)
                if doing.what == "keep":
                    acknowledged = after.acknowledged | {(agent, None)}
                    after = after._replace(acknowledged=acknowledged)
                yield f"require, {doing.what}", after
        elif state.left.losses:
            state = _spent(state, "losses")
            yield f"give up {doing.what}", _own(state, place, agent, None)

    def _land(self, state: State, write: Write) -> Iterator[tuple[str, State]]:
        """The store carries out a request, and answers who still waits."""
        agent, seen, new = write
        state = state._replace(under_way=state.under_way - {write})
        found = state.records[agent]
        is_commit = new is not None and seen is not None and len(new.turns) > len(seen.turns)
        forced = is_commit and not self._rules.conditional and found is not None
        done = forced or (found == seen and agent not in state.removed)
        if done:
            records = tuple(new if it == agent else old for it, old in enumerate(state.records))
            state = state._replace(records=records)
            if is_commit and agent == SOURCE:
                state = state._replace(victims=0)
            if new is None:
                state = state._replace(removed=state.removed | {agent})
        for place, node in enumerate(state.nodes):
            if node.doing is not None and node.doing.write == write and node.doing.what != "save":
                state = _answer(state, place, node.doing, done)
        yield f"{'carry out' if done else 'refuse'} {_told(write)}", _sorted(state)

    # ------------------------------------------------------------------ garbage

    def _collect(self, state: State, place: int, node: Node) -> Iterator[tuple[str, State]]:
        found = node.collecting
        existing = frozenset(it for it, record in enumerate(state.records) if record is not None)
        if found is None:
            if state.left.collections:
                ended = frozenset(it for it, is_ended in enumerate(state.ended, 1) if is_ended)
                mine = ended | {0, node.number}
                owned = frozenset().union(*(it.packs for it in node.owned if it is not None))
                promised = node.doing.write.new if node.doing is not None else None
                garbage = state.packs - owned - (promised.packs if promised else frozenset())
                if self._rules.owns:
                    garbage = frozenset(it for it in garbage if it.number in mine)
                node = node._replace(collecting=Collecting(garbage, ended, existing, frozenset()))
                yield "list", _with(_spent(state, "collections"), place, node)
            return
        for agent in found.unread - _being_acquired(node):
            yield f"read {agent}", self._read(state, place, node, agent)
        if not found.unread:
            new = existing - found.read
            if new and self._rules.lists_again:
                node = node._replace(collecting=found._replace(unread=new))
                yield "list again", _with(state, place, node)
            else:
                node = node._replace(collecting=None, there=node.there - found.garbage)
                packs = state.packs - found.garbage
                yield "collect", _with(state._replace(packs=packs), place, node)

    def _read(self, state: State, place: int, node: Node, agent: int) -> State:
        found, record = node.collecting, state.records[agent]
        assert found is not None
        read, unread = found.read | {agent}, found.unread - {agent}
        if record is not None:
            found = found._replace(garbage=found.garbage - record.packs)
            is_ended = self._rules.fences_ended and record.holder in found.ended
            is_lost = record.holder == node.number and node.owned[agent] is None
            if is_ended or (self._rules.fences_lost and is_lost):
                fenced = record._replace(holder=0, epoch=record.epoch + 1)
                if self._rules.mourns_fenced:
                    fenced = _mourned(fenced, record, node)
                records = (fenced if it == agent else old for it, old in enumerate(state.records))
                state = state._replace(records=tuple(records))
        return _with(
            state, place, node._replace(collecting=found._replace(read=read, unread=unread))
        )


def _answer(state: State, place: int, doing: Doing, done: bool) -> State:
    """What a node does when its write was carried out or refused."""
    agent, _, new = doing.write
    if not done:
        return _own(state, place, agent, None)
    if doing.what in ("acquire", "create"):
        what = "admit" if doing.what == "acquire" else "keep"
        node = state.nodes[place]._replace(doing=Doing(what, doing.write))
        return _with(state, place, node)
    state = _own(state, place, agent, new)
    if doing.what == "commit" and new is not None:
        acknowledged = state.acknowledged | {(agent, new.turns[-1])}
        state = state._replace(acknowledged=acknowledged)
    return state


def _send(
    state: State, place: int, what: str, said: tuple[int, Record | None, Record | None]
) -> State:
    write = Write(*said)
    node = state.nodes[place]._replace(doing=Doing(what, write))
    if write.new is not None:
        node = _promise(node, write.new)
    state = state._replace(under_way=state.under_way | {write})
    return _with(state, place, node)


def _promise(node: Node, record: Record) -> Node:
    """What a record is to name is no garbage of this node any more."""
    found = node.collecting
    if found is None:
        return node
    return node._replace(collecting=found._replace(garbage=found.garbage - record.packs))


def _being_acquired(node: Node) -> set[int]:
    """An agent that a node acquires is locked against its own fences."""
    doing = node.doing
    return (
        {doing.write.agent} if doing is not None and doing.what in ("acquire", "admit") else set()
    )


def _mourned(new: Record, old: Record, node: Node) -> Record:
    """A record with one more death, if another node owned the agent."""
    return new if old.holder in (0, node.number) else new._replace(deaths=old.deaths + 1)


def _own(state: State, place: int, agent: int, record: Record | None) -> State:
    """A node has done what it did, and owns an agent now or not."""
    node = state.nodes[place]
    owned = tuple(record if it == agent else old for it, old in enumerate(node.owned))
    return _with(state, place, node._replace(owned=owned, doing=None))


def _with(state: State, place: int, node: Node) -> State:
    nodes = tuple(node if it == place else old for it, old in enumerate(state.nodes))
    return state._replace(nodes=nodes)


def _renewed(state: State, place: int) -> State:
    """A node begins anew, with another number."""
    ended = (*state.ended, False)
    return _with(state._replace(ended=ended), place, Node(len(ended)))


def _end(state: State, number: int) -> State:
    ended = tuple(it or at == number for at, it in enumerate(state.ended, 1))
    return state._replace(ended=ended)


def _is_ended(state: State, number: int) -> bool:
    return number > 0 and state.ended[number - 1]


def _spent(state: State, name: str) -> State:
    left = state.left._replace(**{name: getattr(state.left, name) - 1})
    return state._replace(left=left)


def _sorted(state: State) -> State:
    """Which node is told first makes no difference."""
    return state._replace(nodes=tuple(sorted(state.nodes, key=lambda it: it.number)))


def _told(write: Write) -> str:
    new = "nothing" if write.new is None else f"{write.new.holder}.{write.new.epoch}"
    return f"agent {write.agent} = {new}, {len(write.new.turns) if write.new else 0} turns"
