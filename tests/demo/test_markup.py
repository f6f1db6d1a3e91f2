"""Texts of visitors and models as the chat's Markdown."""

import pytest

from demo.markup import as_answer, as_typed

NBSP = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("typed", "markdown"),
    [
        ("What is number 3 about, please?", "What is number 3 about, please?"),
        ("2*3*4 and __init__", r"2\*3\*4 and \_\_init\_\_"),
        ("<button>x</button> &amp;", r"\<button\>x\</button\> \&amp;"),
        ("![x](http://a/b.png)", r"!\[x\](http://a/b.png)"),
        ("1. first\n2) second\n3.5", "1\\. first\n2\\) second\n3\\.5"),
        ("- a\n+ b\n# c\n> d\n===", "\\- a\n\\+ b\n\\# c\n\\> d\n\\==="),
        ("    code\n\tcode  two", f"{NBSP * 4}code\n{NBSP}code{NBSP} two"),
        (r"$$x$$ ~~y~~ `z` a|b \n", r"\$\$x\$\$ \~\~y\~\~ \`z\` a\|b \\n"),
    ],
)
def test_questions_are_shown_as_typed(typed: str, markdown: str) -> None:
    assert as_typed(typed) == markdown


@pytest.mark.parametrize(
    ("answer", "markdown"),
    [
        ("It is **red**.\n\n- a\n- b", "It is **red**.\n\n- a\n- b"),
        ("![x](http://a/b.png)", r"!\[x](http://a/b.png)"),
        ("<img src='http://a'> & <b>", "&lt;img src='http://a'&gt; &amp; &lt;b&gt;"),
        ("`<b>` and\n```\n<i> ![\n```\n<u>", "`<b>` and\n```\n<i> ![\n```\n&lt;u&gt;"),
        ("see [a]\n\n[a]: http://b", "see [a]\n\n\\[a]: http://b"),
        ("```\n<b> not closed yet", "```\n<b> not closed yet"),
    ],
)
def test_answers_are_markdown_that_hides_and_fetches_nothing(answer: str, markdown: str) -> None:
    assert as_answer(answer) == markdown
