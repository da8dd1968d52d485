// NAME: an agent that talks with a model. Each message is what the user says next.

const model = isthmus.openModel();
const session = model.openSession();
const turns = [];

function onMessage(text) {
  turns.push({ role: "user", content: text });
  try {
    session.become(model.chatTokens(turns));
    turns.push({ role: "assistant", content: session.generate() });
  } catch (error) {
    turns.pop(); // what failed was not said
    throw error;
  }
}
