"""The messages that docs/troubleshooting.md quotes are those of the source."""

import ast
import re
from pathlib import Path

import pytest

import hopd

PAGE = Path(__file__).parents[1] / "docs" / "troubleshooting.md"
QUOTES = [" ".join(quote.split()) for quote in re.findall(r"\*\*`([^`]+)`\*\*", PAGE.read_text(encoding="utf-8"))]


def _strings(tree: ast.AST) -> list[str]:
    """Returns the strings of a module but its docstrings, with … in place of what an f-string fills in."""
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            found.append(node.value)
    return found


@pytest.fixture(scope="module")
def messages():
    paths = sorted(Path(hopd.__file__).parent.rglob("*.py"))
    return [string for path in paths for string in _strings(ast.parse(path.read_text(encoding="utf-8")))]


def test_the_page_quotes_messages():
    assert len(QUOTES) > 15


@pytest.mark.parametrize("quote", QUOTES)
def test_the_fixed_pieces_of_a_quoted_message_are_in_the_source(quote, messages):
    for piece in filter(None, (piece.strip() for piece in quote.split("…"))):
        assert any(piece in message for message in messages), f"no message of src/hopd has {piece!r}"
