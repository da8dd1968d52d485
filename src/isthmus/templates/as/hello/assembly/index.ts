// An agent that talks with a model. Each message is what the user says next.
import { Chat, Model, Sampler, Session, lastError, message, optionInt } from "../isthmus";

class Hello {
  chat: Chat = new Chat();
  sampler: Sampler = Sampler.byOption();
  maxTokens: i32 = <i32>optionInt("max_tokens", 256);

  constructor(public session: Session) {}

  /** Reads the options and opens the session, or returns null. */
  static start(): Hello | null {
    const model = Model.openByOption();
    if (!model) return null;
    const session = Session.openByOption(model);
    return session ? new Hello(session) : null;
  }

  /** Streams the model's answer to the conversation as it is, and adds it. */
  answer(): i32 {
    const tokens = this.session.model.chatTokens(this.chat);
    if (!tokens) return -lastError;
    const status = this.session.become(tokens);
    if (status < 0) return status;
    const text = this.session.generate(this.sampler, this.maxTokens);
    if (text === null) return -lastError;
    this.chat.say("assistant", text);
    return 0;
  }
}

let agent: Hello | null = null;

export function on_message(nbytes: i32): i32 {
  const text = message(nbytes);
  if (!agent) agent = Hello.start();
  const hello = agent;
  if (!hello) return -lastError;
  hello.chat.say("user", text);
  const status = hello.answer();
  if (status < 0) hello.chat.takeBack(); // what failed was not said
  return status;
}

/** Another model: the next message reads all that was said. */
export function on_replay(): i32 {
  const hello = agent;
  return hello ? hello.session.reopen() : 0;
}
