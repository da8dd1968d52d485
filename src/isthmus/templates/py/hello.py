"""NAME: an agent that talks with a model. Each message is what the user says next."""

import isthmus

model = isthmus.open_model()
session = model.open_session()
turns = []


def on_message(text):
    turns.append({"role": "user", "content": text})
    try:
        session.become(model.chat_tokens(turns))
        turns.append({"role": "assistant", "content": session.generate()})
    except OSError:
        turns.pop()  # what failed was not said
        raise
