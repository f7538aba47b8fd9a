"""The conditions of access monitoring rules: the part of Teleport's predicate language that asks about a request alone.

    condition  = all { "||" all }
    all        = comparison { "&&" comparison }
    comparison = unary [ ( "==" | "!=" ) unary ]
    unary      = "!" unary | value
    value      = primary { "." name [ arguments ] | "[" condition "]" }
    primary    = literal | variable | function arguments | "(" condition ")"
    arguments  = "(" [ condition { "," condition } [ "," ] ] ")"
    literal    = "true" | "false" | number | string in double quotes or backquotes, as Go writes them
    variable   = "access_request.spec." ( "roles" | "suggested_reviewers" | "system_annotations" | "user"
                 | "request_reason" | "creation_time" | "expiry" ) | "user.traits"
    function   = "set" | "contains" | "contains_all" | "contains_any" | "is_empty"

Each function but `set` is a method of its first argument, too, `is_empty` under the name `isempty`.
`system_annotations` and `user.traits` are looked up by ["name"] or .name, and what they do not have is an empty set.
`==` and `!=` compare strings or numbers, and `contains_all` of an empty set is false. Teleport 18.0 takes no rule with
the function `contains`, nor with a line break where Go would end a statement: here both mean what they say. Types are
checked while parsing, and each term is read once at most: a reading takes no more steps than there are terms. All else
(labels of resources, regular expressions, clocks) is not evaluable.
Facts: lib/expression and lib/utils/typical of Teleport 18.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import msgspec

if TYPE_CHECKING:
    from sidecar.model import AccessRequest

MAX_LENGTH = 8192
MAX_TERMS = 1000
MAX_DEPTH = 32
MAX_REASON = 200

_SPACE = re.compile(r"[ \t\r\n]*")
_TOKEN = re.compile(
    r'(?P<string>"(?:[^"\\\n]|\\[^\n])*")|(?P<raw>`[^`]*`)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)'
    r"|(?P<number>(?:0|[1-9][0-9]{0,17})(?![0-9A-Za-z_.]))|(?P<sign>&&|\|\||==|!=|[!()\[\],.])"
)
_ESCAPE = re.compile(r'\\(?:([abfnrtv\\"])|x([0-7][0-9a-fA-F])|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))', re.DOTALL)
_CONTROLS = dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True))


class NotEvaluable(ValueError):
    """What a condition says beyond this grammar; `position` counts characters from 1."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"at character {position}: {reason}")
        self.position = position
        self.reason = reason


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What conditions ask about."""

    roles: frozenset[str] = frozenset()
    suggested_reviewers: frozenset[str] = frozenset()
    system_annotations: Mapping[str, frozenset[str]] = {}
    user: str = ""
    request_reason: str = ""
    creation_time: float = 0.0
    expiry: float = 0.0
    traits: Mapping[str, frozenset[str]] = {}


class Condition(NamedTuple):
    """A condition that was understood. `terms` bounds the steps that `holds` takes."""

    holds: Callable[[Facts], bool]
    needs_traits: bool
    terms: int


class _Term(NamedTuple):
    type: str
    read: Callable[[Facts], Any]


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


# name -> the types of its arguments, and what it makes of them; `set` takes any number of strings
_FUNCTIONS: Mapping[str, tuple[tuple[str, ...], Callable[..., bool]]] = {
    "contains": (("set", "string"), lambda held, one: one in held),
    "contains_any": (("set", "set"), lambda held, some: not held.isdisjoint(some)),
    "contains_all": (("set", "set"), lambda held, some: bool(some) and held >= some),
    "is_empty": (("set",), lambda held: not held),
}
# As methods they are called otherwise.
_METHODS = {"isempty": "is_empty", "is_empty": ""}
_SPEC = "access_request.spec."
_VARIABLES = {
    "true": _Term("bool", lambda _: True),
    "false": _Term("bool", lambda _: False),
    f"{_SPEC}roles": _Term("set", lambda facts: facts.roles),
    f"{_SPEC}suggested_reviewers": _Term("set", lambda facts: facts.suggested_reviewers),
    f"{_SPEC}system_annotations": _Term("map", lambda facts: facts.system_annotations),
    f"{_SPEC}user": _Term("string", lambda facts: facts.user),
    f"{_SPEC}request_reason": _Term("string", lambda facts: facts.request_reason),
    f"{_SPEC}creation_time": _Term("time", lambda facts: facts.creation_time),
    f"{_SPEC}expiry": _Term("time", lambda facts: facts.expiry),
    "user.traits": _Term("map", lambda facts: facts.traits),
}


def facts_of(request: AccessRequest, traits: Mapping[str, tuple[str, ...]]) -> Facts:
    """What conditions ask about a request, and about who made it."""
    return Facts(
        roles=frozenset(request.roles),
        suggested_reviewers=frozenset(request.suggested_reviewers),
        system_annotations={name: frozenset(values) for name, values in request.system_annotations},
        user=request.user,
        request_reason=request.reason,
        creation_time=request.created or 0.0,
        expiry=request.expires or 0.0,
        traits={name: frozenset(values) for name, values in traits.items()},
    )


def parse(text: str) -> Condition:
    """Understand a condition.

    Raises:
        NotEvaluable: it is longer or deeper than the bounds, or says what the grammar does not have.

    """
    if len(text) > MAX_LENGTH:
        raise NotEvaluable(MAX_LENGTH + 1, f"the condition is longer than {MAX_LENGTH} characters")
    parser = _Parser(text)
    term = parser.condition()
    parser.expect("end")
    # Teleport takes what is neither true nor false for no match.
    holds = term.read if term.type == "bool" else lambda _: False
    return Condition(holds, parser.needs_traits, parser.terms)


class _Parser:
    """One pass over a text, one token ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._depth = 0
        self._token = self._scan(0)
        self.terms = 0
        self.needs_traits = False

    def condition(self) -> _Term:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse(f"the condition is nested more than {MAX_DEPTH} deep")
        term = self._joined("||", lambda: self._joined("&&", self._comparison))
        self._depth -= 1
        return term

    def expect(self, sign: str) -> _Token:
        kinds = {"end": "the end", "name": "a name"}
        if sign != (self._token.kind if sign in kinds else self._token.text):
            self._refuse(f"expected {kinds.get(sign, sign)}, found {self._token.text or 'the end'}")
        return self._next()

    def _joined(self, sign: str, part: Callable[[], _Term]) -> _Term:
        terms = [part()]
        while self._token.text == sign:
            self._typed(terms[-1], "bool", self._next())
            at = self._token
            terms.append(part())
            self._typed(terms[-1], "bool", at)
        if len(terms) == 1:
            return terms[0]
        reads, decide = [term.read for term in terms], any if sign == "||" else all
        return self._term("bool", lambda facts: decide(read(facts) for read in reads))

    def _comparison(self) -> _Term:
        left = self._unary()
        if self._token.text not in {"==", "!="}:
            return left
        sign = self._next()
        if left.type not in {"string", "number"}:
            self._refuse(f"{sign.text} compares strings or numbers, not a {left.type}", sign)
        right = self._typed(self._unary(), left.type, sign)
        equal = sign.text == "=="
        return self._term("bool", lambda facts: (left.read(facts) == right.read(facts)) is equal)

    def _unary(self) -> _Term:
        first, negations = self._token, 0
        while self._token.text == "!":
            self._next()
            negations += 1
        term = self._value()
        if not negations:
            return term
        self._typed(term, "bool", first)
        odd = negations % 2 == 1
        return self._term("bool", lambda facts: term.read(facts) is not odd)

    def _value(self) -> _Term:
        term = self._primary()
        while self._token.text in {".", "["}:
            at = self._next()
            if at.text == "[":
                key = self._typed(self.condition(), "string", at)
                self.expect("]")
                term = self._looked_up(term, key, at)
                continue
            name = self.expect("name")
            if self._token.text == "(":
                term = self._call(name.text, name, [term])
            else:
                key = self._term("string", lambda _, text=name.text: text)  # type: ignore[misc]
                term = self._looked_up(term, key, name)
        return term

    def _primary(self) -> _Term:
        token = self._next()
        match token.kind:
            case "string":
                text = self._unquoted(token)
                return self._term("string", lambda _: text)
            case "raw":
                raw = token.text[1:-1].replace("\r", "")
                return self._term("string", lambda _: raw)
            case "number":
                number = int(token.text)
                return self._term("number", lambda _: number)
            case "name":
                return self._named(token)
        if token.text != "(":
            self._refuse(f"expected a value, found {token.text or 'the end'}", token)
        term = self.condition()
        self.expect(")")
        return term

    def _named(self, first: _Token) -> _Term:
        """The longest name that means something; no variable's name begins with another one's."""
        name = first.text
        while name not in _VARIABLES and self._token.text == ".":
            self._next()
            name += f".{self.expect('name').text}"
        if name in _VARIABLES:
            self.needs_traits = self.needs_traits or name == "user.traits"
            return self._term(*_VARIABLES[name])
        if self._token.text != "(":
            self._refuse(f"{name} is not known", first)
        return self._call(name, first, [])

    def _call(self, name: str, at: _Token, given: list[_Term]) -> _Term:
        known = _FUNCTIONS.get(_METHODS.get(name, name) if given else name)
        if known is None and (name != "set" or given):
            self._refuse(f"the function {name} is not known", at)
        terms = [*given, *self._arguments()]
        if known is None:
            reads = [self._typed(term, "string", at).read for term in terms]
            return self._term("set", lambda facts: frozenset(read(facts) for read in reads))
        types, decide = known
        if len(terms) != len(types):
            self._refuse(f"{name} takes {len(types)} values, not {len(terms)}", at)
        reads = [self._typed(term, type_, at).read for term, type_ in zip(terms, types, strict=True)]
        return self._term("bool", lambda facts: decide(*[read(facts) for read in reads]))

    def _arguments(self) -> list[_Term]:
        self.expect("(")
        terms = []
        while self._token.text != ")":
            terms.append(self.condition())
            if self._token.text != ")":
                self.expect(",")
        self._next()
        return terms

    def _looked_up(self, term: _Term, key: _Term, at: _Token) -> _Term:
        self._typed(term, "map", at)
        nothing: frozenset[str] = frozenset()
        return self._term("set", lambda facts: term.read(facts).get(key.read(facts), nothing))

    def _term(self, type_: str, read: Callable[[Facts], Any]) -> _Term:
        self.terms += 1
        if self.terms > MAX_TERMS:
            self._refuse(f"the condition has more than {MAX_TERMS} terms")
        return _Term(type_, read)

    def _typed(self, term: _Term, type_: str, at: _Token) -> _Term:
        if term.type != type_:
            self._refuse(f"expected a {type_}, found a {term.type}", at)
        return term

    def _unquoted(self, token: _Token) -> str:
        def written(found: re.Match[str]) -> str:
            control, *codes, unknown = found.groups()
            if control is not None:
                return _CONTROLS.get(control, control)
            code = next((code for code in codes if code is not None), None)
            number = int(code, 16) if code is not None else 0
            if unknown is not None or number > 0x10FFFF or 0xD800 <= number < 0xE000:
                self._refuse(f"the escape {found[0]} is not known", token)
            return chr(number)

        return _ESCAPE.sub(written, token.text[1:-1])

    def _next(self) -> _Token:
        token = self._token
        self._token = self._scan(token.at + len(token.text))
        return token

    def _scan(self, start: int) -> _Token:
        space = _SPACE.match(self._text, start)
        at = space.end() if space else start
        if at == len(self._text):
            return _Token("end", "", at)
        found = _TOKEN.match(self._text, at)
        if found is None:
            raise NotEvaluable(at + 1, f"{self._text[at]!r} is not known")
        return _Token(str(found.lastgroup), found[0], at)

    def _refuse(self, reason: str, at: _Token | None = None) -> NoReturn:
        raise NotEvaluable(
            (at or self._token).at + 1, reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}…"
        )
