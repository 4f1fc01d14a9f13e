"""Ten mutants of every solution are refused.

They are made from the syntax tree of a solution: operators, comparisons, constants, names and
reductions are exchanged, terms dropped, the result negated, doubled, shifted. A mutant that gives
what the solution gives wherever the check asks is no other answer and is left out. What an open
check accepts may be right in another way; OPEN says why."""

import ast
import copy
import pytest
import random
import signal
import torch
from test_exercises import ALL, asked_once, names  # noqa: F401, a fixture of every test here

LONG = "check_recipe", "check_best_second_time", "check_end_of_path"  # of many model calls each
MOST = [
    pytest.param(*p.values, id=p.id, marks=[pytest.mark.slow] * p.id.endswith(LONG)) for p in ALL
]
FEW = [p for p in ALL if p.id.endswith(LONG[1:])]  # a mutant of the recipe is five trainings

OPEN = {
    "check_recipe": "a recipe is judged by the error it reaches, whatever its settings",
    "check_schedule": "another schedule that keeps the conditions is as right",
    "check_fitting_weight": "a weight is right up to a constant, and some mutants are just that",
    "check_sharper": "another measure of sharpness may be as good, and another width of interval",
    "check_told_apart": "the method is free: a somewhat wider interval keeps its word too",
    "check_gain": "an interval up to twice as wide is taken",
    "check_rounding": "the method is free: other dice and quantiles give other right intervals",
}
SWAPS = {
    ast.Add: [ast.Sub, ast.Mult],
    ast.Sub: [ast.Add, ast.Mult],
    ast.Mult: [ast.Div, ast.Add],
    ast.Div: [ast.Mult, ast.Sub],
    ast.Pow: [ast.Mult],
    ast.FloorDiv: [ast.Mult],
    ast.Lt: [ast.Gt],
    ast.Gt: [ast.Lt],
    ast.LtE: [ast.Gt, ast.Lt],
    ast.GtE: [ast.Lt, ast.Gt],
    ast.Eq: [ast.NotEq],
}
METHODS = {
    **dict(mean="sum", sum="mean", square="abs", abs="square", sqrt="square", log="exp"),
    **dict(exp="log", argmin="argmax", argmax="argmin", min="max", max="min", cumsum="cumprod"),
    **dict(var="std", std="var", sort="argsort", softmax="log_softmax", norm="sum"),
}
RESULTS = "-({})", "2 * ({})", "({}) + 1", "({}) ** 2", "({}) / 3", "0 * ({})"


def in_place_of(node, names):
    "Nodes that a mutant has in the place of this one."
    if isinstance(node, ast.BinOp):
        for swap in SWAPS.get(type(node.op), []):
            yield ast.BinOp(node.left, swap(), node.right)
        yield from (node.left, node.right)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        for swap in SWAPS.get(type(node.ops[0]), []):
            yield ast.Compare(node.left, [swap()], node.comparators)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield from map(ast.Constant, (node.value + 1, 2 * node.value + 3, -node.value - 0.5))
    elif isinstance(node, ast.Attribute) and node.attr in METHODS:
        yield ast.Attribute(node.value, METHODS[node.attr], node.ctx)
    elif isinstance(node, ast.Name) and node.id in names and isinstance(node.ctx, ast.Load):
        yield from (ast.Name(n, node.ctx) for n in sorted(names - {node.id})[:3])
    elif isinstance(node, ast.Return) and node.value:
        for form in RESULTS:
            yield ast.Return(ast.parse(form.format(ast.unparse(node.value))).body[0].value)


def mutants(solution):
    "Sources, each with one node of the solution exchanged, in an order of the dice."
    tree, found = ast.parse(solution), set()
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    names = {a.arg for f in functions for a in f.args.args}
    size = len(list(ast.walk(tree)))
    for k in range(size):
        nodes = list(ast.walk(tree))
        for new in in_place_of(nodes[k], names):
            other = copy.deepcopy(tree)
            old = list(ast.walk(other))[k]
            for parent in ast.walk(other):
                for field, value in ast.iter_fields(parent):
                    if value is old:
                        setattr(parent, field, copy.deepcopy(new))
                    elif isinstance(value, list) and any(v is old for v in value):
                        value[:] = [copy.deepcopy(new) if v is old else v for v in value]
            found.add(ast.unparse(ast.fix_missing_locations(other)))
    found = sorted(found - {ast.unparse(tree)})
    random.Random(0).shuffle(found)
    return found


def same(a, b):
    "Whether two results are one, up to what a check lets pass."
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    try:
        a, b = (torch.as_tensor(v).detach().double() for v in (a, b))
        return a.shape == b.shape and torch.allclose(a, b, 1e-3, 1e-5, equal_nan=True)
    except (TypeError, ValueError, RuntimeError):
        return type(a) is type(b) and a == b


def kept(v):
    return v.detach().clone() if torch.is_tensor(v) else v


def heard(answer, calls):
    "The answer, which notes what it is asked and gives."
    if not callable(answer):
        calls.append(((), answer))
        return answer

    def listening(*args, **kw):
        before = [kept(a) for a in args]
        gave = answer(*args, **kw)
        calls.append((before, gave))
        return gave

    return listening


def gives_the_same(answer, calls):
    try:
        return all(
            same(answer(*map(kept, args)) if callable(answer) else answer, gave)
            for args, gave in calls[:12]
        )
    except BaseException:
        return False


class Late(Exception):
    pass


def late(*_):
    raise Late


timed = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer")


@timed
@pytest.mark.parametrize("path, nb, e", MOST)
def test_ten_mutants_are_refused(path, nb, e):
    are_refused(nb, e, 10)


@timed
@pytest.mark.parametrize("path, nb, e", FEW)
def test_two_mutants_of_a_long_exercise_are_refused(path, nb, e):
    are_refused(nb, e, 2)


def are_refused(nb, e, enough):
    "No mutant passes until `enough` of them were refused, and so many there are."
    space, calls, refused, passed = names(nb), [], 0, []
    exec(e.solution, space)
    check = space[e.check]
    assert check(heard(space[e.answer], calls)).score == 1
    old = signal.signal(signal.SIGVTALRM, late)
    try:
        for text in mutants(e.solution):
            own = dict(space)
            signal.setitimer(signal.ITIMER_VIRTUAL, 60)
            try:
                exec(text, own)
                said = check(own[e.answer])
            except Exception:  # a mutant that is no Python program at all
                continue
            if said.score < 1:
                refused += 1
            elif e.check not in OPEN and not gives_the_same(own[e.answer], calls):
                passed.append(text)
            if refused == enough:
                break
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)
    assert not passed, "\n\n".join(passed)
    assert refused >= enough, refused


def test_mutants_are_many_and_differ():
    found = mutants("def g(x, y):\n    return 2 * x - y")
    assert len(found) == len(set(found)) >= 10 and all("def g" in text for text in found)
