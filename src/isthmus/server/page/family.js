// Who was forked from whom: all of it follows from the list of agents, where each has an origin.
//
//   turn     1   2   3
//   Ada      ●───●───●       Ada's own turns are 1 to 3
//   a fork        ╰──●───●   forked at position 1: its own turns are 2 and 3

// The agent that said a turn of this one: itself, or one that it was forked from.
export function ownerOf(agents, agent, position) {
  let id = agent.id,
    it = agent;
  while (it?.origin && position <= it.origin.position) {
    id = it.origin.id;
    it = agents.get(id);
  }
  return id;
}

// The first agent of a family that is known; a parent that was deleted still has a name.
export function rootOf(agents, agent) {
  let it = agent;
  while (it.origin && agents.has(it.origin.id)) it = agents.get(it.origin.id);
  return it;
}

// Agents by the id of their parent; those without a known one by null. Newest first.
export function children(agents) {
  const found = new Map();
  for (const it of agents.values()) {
    const parent = it.origin && agents.has(it.origin.id) ? it.origin.id : null;
    if (!found.has(parent)) found.set(parent, []);
    found.get(parent).push(it);
  }
  return found;
}

// An agent and all that descend from it, in order, with their depth.
export function* descent(below, agent, level = 0) {
  yield { agent, level };
  for (const it of [...(below.get(agent.id) ?? [])].sort(
    (a, b) => a.origin.position - b.origin.position || a.created - b.created,
  ))
    yield* descent(below, it, level + 1);
}

// The agents that answered otherwise after the same turns: one for each answer, oldest first.
export function alternatives(agents, agent, position, below = children(agents)) {
  const place = it => (position === 1 ? rootId(agents, it) : ownerOf(agents, it, position - 1));
  const here = place(agent),
    found = new Map();
  const own = ownerOf(agents, agent, position);
  for (const { agent: it } of descent(below, rootOf(agents, agent))) {
    if (it.position < position || place(it) !== here) continue;
    const owner = ownerOf(agents, it, position);
    if (owner === own) found.set(own, agent);
    else if (!found.has(owner) || owner === it.id) found.set(owner, it);
  }
  if (!found.has(own)) found.set(own, agent);
  return [...found.values()].sort((a, b) => born(agents, a, position) - born(agents, b, position));
}
const rootId = (agents, agent) => {
  const it = rootOf(agents, agent);
  return it.origin?.id ?? it.id;
};
const born = (agents, agent, position) => agents.get(ownerOf(agents, agent, position))?.created ?? 0;

// The last turn that two agents have in common.
export function common(agents, a, b) {
  let n = Math.min(a.position, b.position);
  while (n > 0 && ownerOf(agents, a, n) !== ownerOf(agents, b, n)) n--;
  return n;
}
