"""Prompts for gaps in texts: their control tokens, their order, and what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isthmus import Runtime
from isthmus.errors import ContextFull, ModelUnsupported, TokenError
from isthmus.model.tokens.infill import Gap, InfillTokens, OtherFile, other_files
from tests.tiny_gguf import FIRST_SPECIAL, TinyModel
from tests.tiny_vocabulary import INFILL

PREFIX, SUFFIX, MIDDLE, REPOSITORY, FILE = range(FIRST_SPECIAL, FIRST_SPECIAL + 5)
ALL = InfillTokens(PREFIX, SUFFIX, MIDDLE, REPOSITORY, FILE)
THREE = InfillTokens(PREFIX, SUFFIX, MIDDLE, None, None)


def encode(text: str) -> list[int]:
    return [*text.encode()]


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({"more_special": INFILL}, ALL),
        ({"more_special": INFILL[:3]}, THREE),
        *(
            (
                {
                    "more_special": ("<a>", "<b>", "<c>"),
                    "token_ids": dict(zip(names, (PREFIX, SUFFIX, MIDDLE), strict=True)),
                },
                THREE,
            )
            for names in (("fim_pre", "fim_suf", "fim_mid"), ("prefix", "suffix", "middle"))
        ),
        ({}, InfillTokens(None, None, None, None, None)),
        (
            {"token_ids": {"fim_pre": 2**32 - 1, "fim_suf": 320, "fim_mid": 5}},
            InfillTokens(None, None, 5, None, None),
        ),
    ],
)
def test_tokens_of_a_file(
    more: dict[str, Any], found: InfillTokens, null_runtime: Runtime, tmp_path: Path
) -> None:
    path = TinyModel(with_tokenizer=True, **more).write(tmp_path / "tiny.gguf")
    assert null_runtime.load_model(path).tokenizer.infill == found


def test_the_order() -> None:
    gap = Gap([1, 2], [3], [7], [0])
    assert gap.prompt(THREE) == [7, 0, PREFIX, 1, 2, SUFFIX, 3, MIDDLE]
    assert gap.prompt(THREE, suffix_first=True) == [7, 0, SUFFIX, 3, PREFIX, 1, 2, MIDDLE]
    assert Gap([], []).prompt(THREE) == [PREFIX, SUFFIX, MIDDLE]


def test_what_a_vocabulary_lacks() -> None:
    with pytest.raises(ModelUnsupported, match=r"no token for prefix, middle$"):
        Gap([1], [2]).prompt(InfillTokens(None, SUFFIX, None, REPOSITORY, None))


@pytest.mark.parametrize("token", [PREFIX, SUFFIX, MIDDLE, REPOSITORY, FILE])
def test_no_text_has_a_token_of_its_own(token: int) -> None:
    for gap in (Gap([1, token], [2]), Gap([1], [token])):
        with pytest.raises(TokenError, match="marks a gap"):
            gap.prompt(ALL)
    with pytest.raises(TokenError, match="marks a gap"):
        other_files(ALL, [OtherFile("a", "x")], lambda _: [token])


def test_other_files() -> None:
    files = [OtherFile("a.py", "x"), OtherFile("", "y")]
    head = [REPOSITORY, *encode("myproject\n")]
    tail = [FILE, *encode("filename\n")]
    named = [FILE, *encode("a.py\nx"), FILE, *encode("tmp\ny")]
    assert other_files(ALL, files, encode) == [*head, *named, *tail]
    assert other_files(ALL, [], encode) == [*head, *tail]
    snippet = "\n\n--- snippet ---\n\n"
    assert other_files(THREE, files, encode) == encode(f"{snippet}x{snippet}y")
    assert other_files(THREE, [], encode) == []


@pytest.mark.parametrize("n_before", [0, 1, 5, 40, 200])
@pytest.mark.parametrize("n_after", [0, 1, 5, 40, 200])
@pytest.mark.parametrize("most", [4, 5, 12, 60, 300, 1000])
def test_what_is_farthest_from_the_gap_is_left_out(n_before: int, n_after: int, most: int) -> None:
    gap = Gap([*range(n_before)], [*range(n_after)], [*range(30)])
    cut = gap.cut(most)
    n_kept = len(cut.before) + len(cut.after)
    assert len(cut.prompt(THREE)) == min(most, n_before + n_after + 33)
    assert [*gap.before][n_before - len(cut.before) :] == cut.before
    assert [*gap.after][: len(cut.after)] == cut.after
    assert [*gap.others][30 - len(cut.others) :] == cut.others
    if n_kept < n_before + n_after:
        assert not cut.others
        assert len(cut.before) >= min(n_before, (most - 3) * 3 // 4)
        assert len(cut.after) >= min(n_after, (most - 3) // 4)


def test_a_gap_without_room() -> None:
    assert Gap([1, 2], [3], begin=[0]).cut(5).prompt(THREE) == [0, PREFIX, 2, SUFFIX, MIDDLE]
    with pytest.raises(ContextFull, match="there is room for 4"):
        Gap([1], [2], begin=[0]).cut(4)
