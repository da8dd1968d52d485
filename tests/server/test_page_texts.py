"""What answers and names may be: Markdown, hostile, long, in any script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.server.conftest import Serving
from tests.server.page_support import bring_echo, choose, opened, say, tell, wait_for_copy

pytestmark = pytest.mark.page
MARKDOWN = r"""# One
Text with **bold**, *slanted*, ~~gone~~, `a*b*` and \*stars\*.
A second line, 2 * 3 * 4, snake_case_name.

- first
- second with `code`

  and a paragraph
  1. inner
  2. two

3. third

| left | right |
| --- | ---: |
| a \| b | **1** |

```js
const x = "<b>";
```
> quoted
> - inside

---
- [x] done
- [ ] open

See https://example.org/a_b_c. Or [here](https://example.org "title") and ![pic](https://evil.example/p.png).
"""
HOSTILE = """<script>document.title = "owned"</script>
<img src=x onerror="document.title='owned'"> <style>*{display:none}</style>
[run](javascript:document.title='owned') [data](data:text/html,x)
<iframe src=//evil.example></iframe>
![x](https://evil.example/x.png) </div></main> &lt;b&gt; <a href="javascript:1">x</a>

| <b>a</b> | b |
| --- | --- |
| <img src=x onerror=alert(1)> | [x](vbscript:1) |

```<script>alert(1)</script>
</code></pre><script>document.title = "owned"</script>
```
"""


@pytest.fixture(scope="module")
def echo(tiny_server: Serving) -> str:
    return bring_echo(tiny_server)


@pytest.fixture
def page(tiny_server: Serving, echo: str, browser: Any) -> Iterator[Any]:
    tiny_server.post("/v1/agents", {"name": "Echo", "guest": echo})
    with opened(browser, tiny_server) as page:
        choose(page, "Echo")
        page.locator("#empty").wait_for()
        yield page


def test_markdown(page: Any) -> None:
    say(page, MARKDOWN)
    answer = page.locator(".answer")
    assert answer.locator("h2").inner_text() == "One"
    assert answer.locator("strong").first.inner_text() == "bold"
    assert answer.locator("em").all_inner_texts() == ["slanted"]
    assert answer.locator("s").inner_text() == "gone"
    assert answer.locator("code").first.inner_text() == "a*b*"
    text = answer.inner_text()
    assert "*stars*" in text
    assert "2 * 3 * 4, snake_case_name." in text
    assert answer.locator("> ul").first.locator("> li").count() == 2
    assert answer.locator("ul ol li").all_inner_texts() == ["inner", "two"]
    assert answer.locator("> ol").get_attribute("start") == "3"
    assert answer.locator("td").all_inner_texts() == ["a | b", "1"]
    assert answer.locator("pre code").text_content() == 'const x = "<b>";'
    assert answer.locator("figcaption span").inner_text() == "js"
    assert answer.locator("blockquote li").inner_text() == "inside"
    assert answer.locator("hr").count() == 1
    assert "☑ done" in text
    links = [it.get_attribute("href") for it in answer.locator("a").all()]
    picture = "https://evil.example/p.png"
    assert links == ["https://example.org/a_b_c", "https://example.org", picture]
    assert answer.locator("img").count() == 0


def test_copying(page: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    say(page, "```c\nint x;\nint y;\n```")
    page.locator(".code button").click()
    wait_for_copy(page, "int x;\nint y;")
    page.locator("[aria-label='Copy the answer']").click()
    wait_for_copy(page, "```c\nint x;")
    page.locator("#status", has_text="Copied").wait_for(state="attached")


def test_thoughts_and_calls_are_folded(page: Any) -> None:
    call = json.dumps({"name": "weather", "arguments": {"city": "<b>Oslo</b>"}})
    say(page, f"<think>\nLet me see.\n\nHm.\n</think>\nYes.\n\n<tool_call>\n{call}\n</tool_call>")
    folds = page.locator(".answer details")
    assert folds.locator("summary").all_inner_texts() == ["Thought", "Tool call: weather"]
    expect(page.locator("details").get_by_text("Let me see.")).to_be_hidden()
    folds.first.locator("summary").click()
    expect(page.locator("details").get_by_text("Let me see.")).to_be_visible()
    folds.last.locator("summary").click()
    assert '"city": "<b>Oslo</b>"' in folds.last.inner_text()


def test_hostile_texts_are_texts(tiny_server: Serving, echo: str, browser: Any) -> None:
    name = '<img src=x onerror="document.title=1"> \u202eevil'
    tiny_server.post("/v1/agents", {"name": name, "guest": echo})
    with opened(browser, tiny_server) as page:
        page.locator("#agents li", has_text="onerror").first.click()
        page.locator("#title", has_text="onerror").wait_for()
        say(page, HOSTILE)
        assert "owned" not in page.title()
        for tag in ("script", "img", "style", "iframe", "object"):
            assert page.locator(f"main {tag}").count() == 0
        hrefs = [it.get_attribute("href") for it in page.locator(".answer a").all()]
        assert hrefs == ["https://evil.example/x.png"]
        assert "<script>document.title" in page.inner_text(".answer")
        page.click("#tab-branches")
        page.click("#tab-about")
        page.locator("#about", has_text="Options").wait_for()


def test_nothing_reads_html(tiny_server: Serving, browser: Any) -> None:
    """The policy has no place where a text could become elements."""
    page = browser.new_page()
    page.goto(tiny_server.url)
    refused = page.evaluate("""() => {
      try { document.body.innerHTML = "<b>x</b>"; return null; }
      catch (error) { return error.name; }
    }""")
    assert refused == "TypeError"
    page.close()


def test_text_from_right_to_left(page: Any) -> None:
    say(page, "مرحبا بالعالم\n\n- قائمة\n\n中文，混在一起。")
    first = page.locator(".answer p").first
    assert first.evaluate("it => getComputedStyle(it).direction") == "rtl"
    assert page.locator(".answer li").evaluate("it => getComputedStyle(it).direction") == "rtl"
    assert page.locator(".answer p").last.evaluate("it => getComputedStyle(it).direction") == "ltr"
    assert page.locator(".said").evaluate("it => getComputedStyle(it).direction") == "rtl"


SHAPES = {
    "words": ("", "word " * 100),
    "stars": ("", "**a *b " * 100),
    "code": ("```\n", "x = 1\n" * 100),
    "brackets": ("", "[" * 300 + "](" * 100),
    "quotes": ("", "> " * 300),
    "items": ("", "- an item of a long list\n" * 40),
    "rows": ("|a|\n|-|\n", "|1|\n" * 100),
}
"""What an answer begins with, and what it goes on with."""


@pytest.mark.parametrize("shape", ["words", "code"])
def test_an_answer_of_a_mebibyte(page: Any, shape: str) -> None:
    require_readable(page, *SHAPES[shape])


@pytest.mark.long
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_long_answers_of_every_shape(page: Any, shape: str) -> None:
    require_readable(page, *SHAPES[shape])


def require_readable(page: Any, head: str, body: str) -> None:
    """The page shows such an answer, and hears its user while it does."""
    tell(page, f"*{len(head)}{head}{body}")
    page.locator(".turn > footer").wait_for()
    assert len(page.locator(".answer").text_content()) > 1000
    expect(page.locator(".turn .ended")).to_contain_text("more were said, and are not kept")
    page.locator("#input").fill("still here")
    page.click("#tab-work")
    expect(page.locator("#work")).to_be_visible()


def test_markdown_that_comes_in_pieces_is_the_same(page: Any) -> None:
    """An answer drawn piece by piece has the elements of one that is drawn at once."""
    same = page.evaluate(
        """async text => {
          const { Growing } = await import("./page/markdown.js");
          const whole = document.createElement("div"), parts = document.createElement("div");
          new Growing(whole).draw(text);
          const growing = new Growing(parts);
          for (let n = 1; n <= text.length; n += 3) growing.draw(text.slice(0, n));
          growing.draw(text);
          return [whole.outerHTML === parts.outerHTML, whole.textContent.length];
        }""",
        MARKDOWN + HOSTILE + "\n<think>a\n\nb</think>\nc\n\n~~~\nopen ` end\n",
    )
    assert same[0] is True
    assert same[1] > 500
