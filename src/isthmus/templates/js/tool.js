// NAME: an agent with a tool and state. Before it answers, it looks the message up with the host's
// tool `lookup`, if it was given that; it counts its answers, and tells their number when asked: count.

const model = isthmus.openModel();
const session = model.openSession();
let nAnswers = 0;

function onMessage(text) {
  if (text === "count") return `${nAnswers} answers`;
  const facts = isthmus.tool("lookup", text);
  const question = facts === undefined ? text : `Facts: ${facts}\n\n${text}`;
  session.become(model.chatTokens([{ role: "user", content: question }]));
  session.generate();
  nAnswers += 1;
}
