"""Evaluates the expressions that nanochat's models write: arithmetic, and `'text'.count('t')`.

The rules are those of `use_calculator` in https://github.com/karpathy/nanochat/blob/master/nanochat/engine.py, which
passes the text to Python's `eval`. Here a parser accepts the same grammar, and nothing else. nanochat also refuses
words that contain the name of a function of Python, such as `director`; they are harmless here, and counted.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

#: Longest expression in characters. It bounds the digits of all numbers and results, and so the time; no result is too
#: large for a float.
MAX_EXPRESSION = 256
#: How deep parentheses and signs may be nested.
MAX_DEPTH = 32

Number = int | float

_TOKEN = re.compile(r" *(?:(?P<number>\d+\.?\d*|\.\d+)|(?P<symbol>//|[-+*/()]))", re.ASCII)
_ARITHMETIC = re.compile(r"[0-9*+\-/.() ]*")
_TEXT = r"""(?:'[A-Za-z0-9"()._ ]*'|"[A-Za-z0-9'()._ ]*")"""
_COUNT = re.compile(rf" *({_TEXT}) *\. *count *\( *({_TEXT}) *\) *")
#: The operators of each level of precedence, the weakest first.
_LEVELS: tuple[dict[str, Callable[[Number, Number], Number]], ...] = (
    {"+": operator.add, "-": operator.sub},
    {"*": operator.mul, "/": operator.truediv, "//": operator.floordiv},
)


def evaluate(expression: str) -> str | None:
    """The result as Python writes it, such as `10.0` for `20/2`. None if the expression is refused or has no result."""
    expression = expression.replace(",", "")
    if len(expression) > MAX_EXPRESSION:
        return None
    if (count := _COUNT.fullmatch(expression)) is not None:
        return str(count[1][1:-1].count(count[2][1:-1]))
    if _ARITHMETIC.fullmatch(expression) is None or "**" in expression:
        return None
    try:
        result = _Parser(_tokens(expression)).result()
    # ValueError: the expression is wrong. ArithmeticError: a division by zero.
    except (ArithmeticError, ValueError):
        return None
    return str(result)


def _tokens(expression: str) -> list[Number | str]:
    """The numbers and symbols of an expression. Raises ValueError."""
    tokens: list[Number | str] = []
    text = expression.rstrip(" ")
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"neither a number nor an operator: {text[at:]}")
        tokens.append(match["symbol"] or _number(match["number"]))
        at = match.end()
    return tokens


def _number(text: str) -> Number:
    if "." in text:
        return float(text)
    # Python refuses such numbers: in other languages they are octal.
    if text.startswith("0") and text.strip("0"):
        raise ValueError(f"a whole number that begins with 0: {text}")
    return int(text)


class _Parser:
    """Evaluates tokens by recursive descent."""

    def __init__(self, tokens: list[Number | str]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    def result(self) -> Number:
        """Raises ValueError and ArithmeticError."""
        result = self._level(0)
        if self._next() is not None:
            raise ValueError("a value, or an operator, is missing")
        return result

    def _level(self, level: int) -> Number:
        if level == len(_LEVELS):
            return self._signed()
        value = self._level(level + 1)
        while isinstance(symbol := self._next(), str) and symbol in _LEVELS[level]:
            self._at += 1
            value = _LEVELS[level][symbol](value, self._level(level + 1))
        return value

    def _signed(self) -> Number:
        """A number, or an expression in parentheses, with any number of signs before it."""
        token = self._next()
        self._at += 1
        if isinstance(token, int | float):
            return token
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        if token == "(":
            value = self._level(0)
            if self._next() != ")":
                raise ValueError("a parenthesis is not closed")
            self._at += 1
        elif token in ("+", "-"):
            value = self._signed()
            value = -value if token == "-" else +value
        else:
            raise ValueError("a value is missing")
        self._depth -= 1
        return value

    def _next(self) -> Number | str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None
