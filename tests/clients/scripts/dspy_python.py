"""`dspy`: chat completions. Tools and structured output are texts in forms of its own."""

from __future__ import annotations

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # the table of prices is not fetched

import dspy
from features import ANSWER, MODEL, QUESTION, REACT_TASK, SCRIPTED, URL, WEATHER, run


def model(name: str = MODEL, max_tokens: int = 60) -> dspy.LM:
    return dspy.LM(
        f"openai/{name}",
        api_base=f"{URL}/v1",
        api_key="x",
        max_tokens=max_tokens,
        temperature=0,
        cache=False,
        num_retries=0,
    )


def weather(city: str) -> str:
    "The weather of a city."
    return WEATHER[city]


def hello() -> None:
    assert model()(QUESTION)[0]


def structured() -> None:
    dspy.configure(lm=model(SCRIPTED), adapter=dspy.JSONAdapter())
    done = dspy.Predict("sentence -> name: str, age: int")(sentence="Bob is 30.")
    assert (done.name, done.age) == ("Bob", 30)


def tools() -> None:
    dspy.configure(lm=model(SCRIPTED, 200))
    done = dspy.ReAct("question -> answer", tools=[weather], max_iters=5)(question=REACT_TASK)
    called = [done.trajectory[f"observation_{at}"] for at in range(3)]
    assert (called, done.answer) == (["sunny", "rainy", "Completed."], ANSWER)


run(hello, structured, tools)
