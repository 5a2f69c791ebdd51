"""Every small change of a module that might be a mistake: what `tests.support.mutants` draws from.

Another comparison, operator or bound, a number one greater, `True` for `False`, a condition negated, a statement left out, no
result where a function may have none. Words for people, annotations, decorators and assertions stay as they are.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_PAIRS: list[tuple[type[ast.AST], type[ast.AST]]] = [
    (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn), (ast.And, ast.Or),
    (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.LShift, ast.RShift),
]  # fmt: skip
SWAPS = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}
SWAPS |= {ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitXor: ast.BitAnd}
OPPOSITE = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
"""Comparisons whose other operator is their negation."""
TWINS = {"min": "max", "max": "min", "any": "all", "all": "any"}
TELLING = {"say", "tell", "told", "echo", "print", "log", "debug", "info", "warning", "error", "exception", "simplefilter"}
"""Functions whose arguments are words for people."""
WORDS = {"do", "where", "found", "help", "quote", "match", "repr"}
"""Arguments that are words for people, or say whether a value is among them."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change of one file.

    Args:
        begin, end: Bytes of the file that are replaced.
        before, after: The code that is there, and its replacement, each on one line.
    """

    area: str
    file: str
    line: int
    begin: int
    end: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}  {self.before}  ->  {self.after}"

    def applied(self, source: bytes) -> bytes:
        """The file with the change."""
        return source[: self.begin] + self.after.encode() + source[self.end :]


def mutants_in(source: str, *, file: str = "", area: str = "") -> list[Mutant]:
    """Every mutant of a module.

    >>> found = mutants_in("if a < 1 and not b:\\n    f(x[:n])")
    >>> [(mutant.before, mutant.after) for mutant in found]  # doctest: +NORMALIZE_WHITESPACE
    [('a < 1 and (not b)', '(not (a < 1 and (not b)))'), ('a < 1 and (not b)', '(a < 1 or not b)'), ('a < 1', '(a <= 1)'),
     ('1', '(2)'), ('not b', '(b)'), ('f(x[:n])', 'pass'), ('n', '(n + 1)')]
    >>> mutants_in("def f(a: Literal[1]) -> None:\\n    'Not 1.'\\n    assert a > 1\\n    log.info(a + 1)\\n    g = f'{a + 1}'")
    []
    >>> [mutant.after for mutant in mutants_in("def f() -> bool:\\n    return False")]  # no result is as false as False
    ['(True)']
    >>> [mutant.after for mutant in mutants_in("def f() -> bool | None:\\n    return False")]
    ['return None', '(True)']
    """
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for old, new in _changes(ast.parse(source), optional=""):
        begin = starts[old.lineno - 1] + old.col_offset
        end = starts[(old.end_lineno or 0) - 1] + (old.end_col_offset or 0)
        after = f"({ast.unparse(new)})" if isinstance(new, ast.expr) else ast.unparse(new)
        before = ast.unparse(old).split("\n")[0]
        found.append(Mutant(area=area, file=file, line=old.lineno, begin=begin, end=end, before=before, after=after))
    return found


Node = ast.expr | ast.stmt


def _changes(node: ast.AST, *, optional: str) -> Iterator[tuple[Node, Node]]:
    """What may replace what, in a node and all that is in it; `optional`: what of nothing the function around it may return."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        returns = "" if node.returns is None else ast.unparse(node.returns)
        optional = next((word for word in ("None", "bool") if word in returns), "")
    if not _for_people(node):
        yield from _own_changes(node, optional=optional)
        for child in _program_in(node):
            yield from _changes(child, optional=optional)


def _for_people(node: ast.AST) -> bool:
    """Whether what it holds is read by people, type checkers and importers alone."""
    match node:
        case (
            ast.JoinedStr()
            | ast.Assert()
            | ast.If(test=ast.Name(id="TYPE_CHECKING"))
            | ast.Assign(targets=[ast.Name(id="__all__")])
        ):
            return True
        case ast.Expr(value=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name))):
            return name in TELLING
    return False


def _program_in(node: ast.AST) -> Iterable[ast.AST]:
    """The parts of a node, without annotations, decorators, and words."""
    match node:
        case ast.Raise():
            return ()
        case ast.FunctionDef(args=args, body=body) | ast.AsyncFunctionDef(args=args, body=body):
            return [*args.defaults, *(each for each in args.kw_defaults if each is not None), *body]
        case ast.ClassDef(body=body):
            return body
        case ast.AnnAssign(value=value):
            return () if value is None else (value,)
        case ast.Call(func=func, args=given, keywords=keywords):
            skipped = WORDS | {"strict"} if isinstance(func, ast.Name) and func.id == "zip" else WORDS
            return [func, *given, *(each.value for each in keywords if each.arg not in skipped)]
    return ast.iter_child_nodes(node)


def _own_changes(node: ast.AST, *, optional: str) -> Iterator[tuple[Node, Node]]:
    match node:
        case ast.If(test=test) | ast.IfExp(test=test):
            yield from _negated(test)
        case ast.comprehension(ifs=ifs):
            for test in ifs:
                yield from _negated(test)
        case ast.Slice(lower=lower, upper=upper):
            for bound in (lower, upper):
                if bound is not None and not isinstance(bound, ast.Constant):
                    yield bound, ast.BinOp(bound, ast.Add(), ast.Constant(1))
        case ast.Compare(ops=ops):
            for at, op in enumerate(ops):
                if type(op) in SWAPS:
                    yield node, _with(node, ops=[*ops[:at], SWAPS[type(op)](), *ops[at + 1 :]])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPS:
            yield node, _with(node, op=SWAPS[type(op)]())
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield node, operand
        case ast.Constant(value=bool() as value):
            yield node, ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield node, ast.Constant(value + 1)
        case ast.Call(func=ast.Name(id=name)) if name in TWINS:
            yield node, _with(node, func=ast.Name(TWINS[name]))
        case ast.AugAssign(op=op):
            yield node, ast.Pass()
            if type(op) in SWAPS:
                yield node, _with(node, op=SWAPS[type(op)]())
        case ast.Expr(value=ast.Call()) | ast.Raise():
            yield node, ast.Pass()
        case ast.Return(value=ast.Constant(value=None)):
            pass
        case ast.Return(value=ast.Constant(value=False)) if optional == "bool":
            pass
        case ast.Return(value=ast.expr()) if optional:
            yield node, ast.Return(ast.Constant(None))


def _negated(test: ast.expr) -> Iterator[tuple[Node, Node]]:
    """A condition's opposite, unless another change is the same."""
    if not isinstance(test, ast.UnaryOp) and not (isinstance(test, ast.Compare) and isinstance(test.ops[0], OPPOSITE)):
        yield test, ast.UnaryOp(ast.Not(), test)


def _with(node: Node, **parts: object) -> Node:
    changed = copy.copy(node)
    for name, part in parts.items():
        setattr(changed, name, part)
    return changed
