"""The ways to write thoughts, and what is around a text, as data."""

from __future__ import annotations

from isthmus.model.forms.recognition import Signs, ThoughtForm, WrapForm, signs
from isthmus.model.forms.thought import Thought

THOUGHTS: tuple[ThoughtForm, ...] = (
    ThoughtForm(
        "harmony",
        "gpt-oss",
        Thought(
            "<|channel|>analysis<|message|>",
            "<|end|>",
            opening="<|channel|>analysis<|message|>",
            before_end="",
            between="<|start|>assistant",
        ),
        signs("<|channel|>", "<|message|>"),
    ),
    ThoughtForm(
        "gemma4",
        "Gemma 4",
        Thought("<|channel>thought", "<channel|>", between="", anywhere=True),
        signs("<|channel>"),
    ),
    ThoughtForm(
        "mistral",
        "Magistral, Ministral 3 Reasoning",
        Thought("[THINK]", "[/THINK]", opening="[THINK]", before_end="", between="", anywhere=True),
        signs("[THINK]"),
    ),
    ThoughtForm(
        "command",
        "Command R7B, Command A Reasoning",
        Thought(
            "<|START_THINKING|>",
            "<|END_THINKING|>",
            opening="<|START_THINKING|>",
            before_end="",
            between="",
            anywhere=True,
        ),
        signs("<|START_THINKING|>"),
    ),
    ThoughtForm(
        "seed", "Seed-OSS", Thought("<seed:think>", "</seed:think>"), signs("<seed:think>")
    ),
    ThoughtForm(
        "longcat",
        "LongCat",
        Thought("<longcat_think>", "</longcat_think>"),
        signs("<longcat_think>"),
    ),
    ThoughtForm("kimi-vl", "Kimi VL", Thought("◁think▷", "◁/think▷"), signs("◁think▷")),
    ThoughtForm(
        "apertus",
        "Apertus",
        Thought(
            "<|inner_prefix|>",
            "<|inner_suffix|>",
            opening="<|inner_prefix|>",
            before_end="",
            between="",
            anywhere=True,
        ),
        signs("<|inner_prefix|>"),
    ),
    ThoughtForm(
        "openthinker",
        "OpenThinker, Sky-T1",
        Thought("<|begin_of_thought|>", "<|end_of_thought|>"),
        signs("<|begin_of_thought|>"),
    ),
    ThoughtForm(
        "granite",
        "Granite 3.2",
        Thought("Here is my thought process:", "Here is my response:"),
        signs("Here is my thought process:"),
    ),
    ThoughtForm(
        "apriel",
        "Apriel 1.5",
        Thought("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", between="\n"),
        signs("[BEGIN FINAL RESPONSE]"),
    ),
    ThoughtForm(
        "exaone-deep", "EXAONE Deep", Thought("<thought>", "</thought>"), signs("<thought>")
    ),
    ThoughtForm(
        "think",
        "DeepSeek R1, Qwen 3, GLM, Kimi K2, MiniMax M2, Nemotron, SmolLM 3, Hunyuan, Phi 4",
        Thought("<think>", "</think>"),
        (Signs(("<think>",)), Signs(("</think>",))),
    ),
)

WRAPS: tuple[WrapForm, ...] = (
    WrapForm("<answer>", "</answer>", signs("<answer>", "</answer>")),
    WrapForm("<response>", "</response>", signs("<response>", "</response>", lacks=("minimax",))),
    WrapForm("<|START_RESPONSE|>", "<|END_RESPONSE|>", signs("<|START_RESPONSE|>")),
    WrapForm("<|START_TEXT|>", "<|END_TEXT|>", signs("<|START_TEXT|>")),
    WrapForm("<|begin_of_solution|>", "<|end_of_solution|>", signs("<|begin_of_solution|>")),
)
