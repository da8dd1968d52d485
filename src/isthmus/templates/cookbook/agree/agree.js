// agree: asks again until a few answers are the same, and says that one.
//
// The question is prefilled once; each answer begins with a copy of that session. An easy question is
// settled after `agree` answers, a hard one gets up to `most`. Options: agree=3, most=9,
// max_tokens=64, report=1 tells how many answers it took; temperature, top_k, …, seed draw them.

const number = (name, standard) => {
  const value = Number(isthmus.option(name, String(standard)));
  if (!Number.isInteger(value) || value < 1) throw new RangeError(`${name}: give a whole number`);
  return value;
};
const needed = number("agree", 3);
const most = number("most", 9);
const maxTokens = number("max_tokens", 64);

const model = isthmus.openModel();
const asked = model.openSession();
const branch = model.openSession();

// One answer, without telling it: generate() would stream it.
function answer() {
  branch.copyFrom(asked);
  const tokens = [];
  while (tokens.length < maxTokens) {
    const token = branch.sample();
    if (model.isEnd(token)) break;
    tokens.push(token);
    branch.decode(token);
  }
  return model.detokenize(tokens).trim();
}

function onMessage(text) {
  asked.become(model.chatTokens([{ role: "user", content: text }]));
  const votes = new Map();
  let n = 0;
  let best = "";
  while (n < most && (votes.get(best) ?? 0) < needed) {
    const said = answer();
    n += 1;
    votes.set(said, (votes.get(said) ?? 0) + 1);
    if (votes.get(said) > (votes.get(best) ?? 0)) best = said;
  }
  return isthmus.option("report") === "1" ? `${votes.get(best)} of ${n}: ${best}` : best;
}
