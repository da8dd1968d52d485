"""NAME: an agent with a tool and state.

Before it answers, it looks the message up with the host's tool `lookup`, if it was given that; it
counts its answers, and tells their number when asked: count.
"""

import isthmus

model = isthmus.open_model()
session = model.open_session()
n_answers = 0


def on_message(text):
    global n_answers
    if text == "count":
        return f"{n_answers} answers"
    facts = isthmus.tool("lookup", text)
    question = text if facts is None else f"Facts: {facts}\n\n{text}"
    session.become(model.chat_tokens([{"role": "user", "content": question}]))
    session.generate()
    n_answers += 1
