"""A cursor over tokens for the statements of our own: words, names, strings, source slices."""

from __future__ import annotations

from typing import Any, NoReturn

from sqlglot.tokenizer_core import Token, TokenType

from tarsdb.errors import SQLSyntaxError
from tarsdb.sql.positions import syntax_error

_STRINGS = frozenset(
    {TokenType.STRING, TokenType.HEREDOC_STRING, TokenType.RAW_STRING, TokenType.BYTE_STRING}
)
_OPENING = frozenset({TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE})
_CLOSING = frozenset({TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE})
_RESERVED = frozenset(
    "SELECT FROM WHERE CREATE TABLE PRIMARY UNIQUE CHECK CONSTRAINT FOREIGN NOT NULL WITH".split()
)


def word_of(token: Token) -> str:
    """Return a token's text in upper case with single spaces, '' for quoted things."""
    if token.token_type in _STRINGS or token.token_type is TokenType.IDENTIFIER:
        return ""
    return " ".join(token.text.upper().split())


class TokenStream:
    """Reads tokens left to right; every expectation that fails is a SQLSyntaxError."""

    def __init__(self, tokens: list[Token], text: str) -> None:
        self.tokens = tokens
        self.text = text
        self.index = 0

    @property
    def at_end(self) -> bool:
        """True when no token is left."""
        return self.index >= len(self.tokens)

    @property
    def current(self) -> Token | None:
        """The next token, or None."""
        return self.tokens[self.index] if self.index < len(self.tokens) else None

    @property
    def offset(self) -> int:
        """Offset of the next token in the text."""
        token = self.current
        return len(self.text) if token is None else token.start

    def peek(self, ahead: int = 0) -> str:
        """Return the word ahead ('' at the end or for quoted text)."""
        position = self.index + ahead
        return word_of(self.tokens[position]) if position < len(self.tokens) else ""

    def accept(self, *words: str) -> bool:
        """Take these words when they come next, all of them or none."""
        for ahead, word in enumerate(words):
            if self.peek(ahead) != word:
                return False
        self.index += len(words)
        return True

    def expect(self, *words: str) -> None:
        """Take these words."""
        for word in words:
            if not self.accept(word):
                self.fail(f"expected {word}")

    def accept_any(self, *words: str) -> str:
        """Take one of the words when it comes next and return it, else ''."""
        word = self.peek()
        if word and word in words:
            self.index += 1
            return word
        return ""

    def fail(self, message: str, hint: str | None = None) -> NoReturn:
        """Raise SQLSyntaxError at the next token."""
        raise self.error(message, hint)

    def error(self, message: str, hint: str | None = None) -> SQLSyntaxError:
        """Return a SQLSyntaxError at the next token that tells what was found there."""
        token = self.current
        found = "the end of the statement" if token is None else repr(token.text[:40])
        return syntax_error(self.text, self.offset, f"{message}, found {found}", hint)

    def finish(self) -> None:
        """Insist that nothing is left."""
        if not self.at_end:
            self.fail("expected the end of the statement")

    def name(self, what: str = "a name") -> str:
        """Take an identifier, quoted or not."""
        token = self.current
        if token is None or token.token_type in _STRINGS or token.token_type in _OPENING:
            self.fail(f"expected {what}")
        if token.token_type is not TokenType.IDENTIFIER:
            text = token.text
            if not (text[:1].isalpha() or text[:1] == "_") or word_of(token) in _RESERVED:
                self.fail(f"expected {what}")
            if " " in text or not text.replace("_", "a").replace("$", "a").isalnum():
                self.fail(f"expected {what}")
        elif not token.text:
            self.fail(f"expected {what}")
        self.index += 1
        return str(token.text)

    def table_name(self, what: str = "a table name") -> str:
        """Take ``name`` or ``main.name``."""
        name = self.name(what)
        if self.peek() == ".":
            if name.lower() != "main":
                self.fail(f"schema {name!r} does not exist, there is only main")
            self.index += 1
            name = self.name(what)
        return name

    def is_string(self) -> bool:
        """Return True when a string literal comes next."""
        token = self.current
        return token is not None and token.token_type in _STRINGS

    def string(self, what: str = "a string") -> str:
        """Take a string literal ('...' or $$...$$)."""
        token = self.current
        if token is None or token.token_type not in _STRINGS:
            self.fail(f"expected {what} in quotes")
        self.index += 1
        return str(token.text)

    def names(self, what: str = "a column name") -> tuple[str, ...]:
        """Take ``(name, name, ...)``."""
        self.expect("(")
        found = [self.name(what)]
        while self.accept(","):
            found.append(self.name(what))
        self.expect(")")
        return tuple(found)

    def value(self) -> Any:
        """Take a constant: string, number, true, false, null, or a bare word."""
        token = self.current
        if token is None:
            self.fail("expected a value")
        if self.is_string():
            return self.string()
        sign = -1 if self.accept("-") else 1
        token = self.current
        if token is not None and token.token_type is TokenType.NUMBER:
            self.index += 1
            try:
                return sign * _number(token.text)
            except ValueError as error:
                self.index -= 1
                raise self.error("expected a number") from error
        if sign < 0:
            self.fail("expected a number")
        word = self.peek()
        if word in ("TRUE", "FALSE", "NULL"):
            self.index += 1
            return {"TRUE": True, "FALSE": False, "NULL": None}[word]
        if token is not None and word in ("ON", "FULL", "OFF", "GROUP", "DEFAULT"):
            self.index += 1
            return token.text.lower()
        return self.name("a value")

    def options(self) -> dict[str, Any]:
        """Take ``(name = value, ...)``; names in lower case."""
        self.expect("(")
        found: dict[str, Any] = {}
        while not self.accept(")"):
            if found:
                self.expect(",")
            key = self.name("an option name").lower()
            if key in found:
                self.fail(f"option {key} is given twice")
            if not self.accept("="):
                self.accept("=>")
            found[key] = True if self.peek() in (",", ")") else self.value()
        return found

    def bracketed(self) -> str:
        """Take a balanced ``( ... )`` and return the text inside."""
        start = self.offset
        self.expect("(")
        depth = 1
        while depth:
            token = self.current
            if token is None:
                raise syntax_error(self.text, start, "this bracket is never closed")
            depth += (token.token_type in _OPENING) - (token.token_type in _CLOSING)
            self.index += 1
        inner = self.text[start + 1 : self.tokens[self.index - 1].start].strip()
        if not inner:
            raise syntax_error(self.text, start, "expected an expression in the brackets")
        return inner

    def until(self, *words: str) -> str:
        """Take an expression up to a comma, closing bracket or one of the words, as text."""
        start, depth = self.index, 0
        while not self.at_end:
            token = self.tokens[self.index]
            if depth == 0 and (
                token.token_type in _CLOSING
                or token.token_type is TokenType.COMMA
                or (word_of(token) in words and self.index > start)
            ):
                break
            depth += (token.token_type in _OPENING) - (token.token_type in _CLOSING)
            self.index += 1
        if self.index == start:
            self.fail("expected an expression")
        return self.text[self.tokens[start].start : self.tokens[self.index - 1].end + 1]


def _number(text: str) -> int | float:
    plain = text.replace("_", "")
    try:
        return int(plain)
    except ValueError:
        return float(plain)
