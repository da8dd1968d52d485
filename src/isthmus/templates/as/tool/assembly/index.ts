// An agent with a tool and state. Before it answers, it looks the message up with the host's tool
// `lookup`, if it was given that; it counts its answers, and tells their number when asked: count.
import { Chat, Model, Sampler, Session } from "../isthmus";
import { abi, callTool, emit, lastError, message, optionInt } from "../isthmus";

class Notes {
  nAnswers: i32 = 0;
  sampler: Sampler = Sampler.byOption();
  maxTokens: i32 = <i32>optionInt("max_tokens", 256);

  constructor(public session: Session) {}

  /** Reads the options and opens the session, or returns null. */
  static start(): Notes | null {
    const model = Model.openByOption();
    if (!model) return null;
    const session = Session.openByOption(model);
    return session ? new Notes(session) : null;
  }

  /** Streams the model's answer to a question. */
  answer(question: string): i32 {
    const chat = new Chat();
    chat.say("user", question);
    const tokens = this.session.model.chatTokens(chat);
    if (!tokens) return -lastError;
    const status = this.session.become(tokens);
    if (status < 0) return status;
    if (this.session.generate(this.sampler, this.maxTokens) === null) return -lastError;
    this.nAnswers++;
    return 0;
  }
}

let agent: Notes | null = null;

export function on_message(nbytes: i32): i32 {
  const text = message(nbytes);
  if (!agent) agent = Notes.start();
  const notes = agent;
  if (!notes) return -lastError;
  if (text == "count") return emit(notes.nAnswers.toString() + " answers");
  const facts = callTool("lookup", text);
  if (facts === null && lastError != abi.ENOENT) return -lastError;
  return notes.answer(facts === null ? text : "Facts: " + facts + "\n\n" + text);
}

/** Another model: the next message reads all that was said. */
export function on_replay(): i32 {
  const notes = agent;
  return notes ? notes.session.reopen() : 0;
}
