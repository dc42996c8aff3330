# SPDX-License-Identifier: MIT
"""Medians, spread, and targets: expressions over measured figures.

Figures of a row are {side: {name: [a value a round]}}. A target compares an expression over them
with a number:

    ours.rate / redis.rate >= 1.15
    max(ours.rate / redis.rate, 1) <= 2

It holds when it holds for the medians; its spread is the least and the largest of the rounds. A
figure that was not measured makes it "not run", never "missed".
"""

import ast
import operator
from dataclasses import dataclass

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
             ast.Div: operator.truediv}
FUNCTIONS = {"max": max, "min": min}

REACHED = "reached"
MISSED = "missed"
NOT_RUN = "not run"


class Missing(Exception):
    """A figure that an expression names was not measured."""


@dataclass
class Outcome:
    state: str
    value: float = None  # of the expression, over the medians
    low: float = None  # the least and the largest of the rounds
    high: float = None
    why: str = ""  # when not run


def median(values):
    ordered = sorted(values)
    if not ordered:
        raise Missing("no values")
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def percentile(values, part):
    """The smallest value that at least this part (0 to 1) of all are not above."""
    ordered = sorted(values)
    if not ordered:
        raise Missing("no values")
    rank = -(-len(ordered) * part // 1)  # rounded up
    return ordered[min(len(ordered), max(1, int(rank))) - 1]


def _look_up(node, figures, pick):
    side, name = node.value.id, node.attr
    values = figures.get(side, {}).get(name)
    if not values:
        raise Missing(f"{side}.{name}")
    return pick(values)


def _value(node, figures, pick):
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return _look_up(node, figures, pick)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _value(node.left, figures, pick), _value(node.right, figures, pick)
        if isinstance(node.op, ast.Div) and right == 0:
            raise Missing(f"{ast.unparse(node.right)} is 0")
        return OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id in FUNCTIONS:
            return FUNCTIONS[node.func.id](*[_value(a, figures, pick) for a in node.args])
    raise ValueError(f"not an expression over figures: {ast.unparse(node)}")


def calculate(expression, figures):
    """(over the medians, least of the rounds, largest of the rounds)."""
    node = ast.parse(expression, mode="eval").body
    middle = _value(node, figures, median)
    named = {(n.value.id, n.attr) for n in ast.walk(node)
             if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    rounds = min((len(figures[side][name]) for side, name in named), default=0)
    each = []
    for at in range(rounds):
        try:
            each.append(_value(node, figures, lambda values, at=at: values[at]))
        except Missing:
            continue
    each = each or [middle]
    return middle, min(each), max(each)


def split_target(target):
    """'EXPRESSION >= NUMBER' as (expression, '>=', number)."""
    node = ast.parse(target, mode="eval").body
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        raise ValueError(f"a target is one comparison: {target}")
    signs = {ast.GtE: ">=", ast.LtE: "<="}
    if type(node.ops[0]) not in signs or not isinstance(node.comparators[0], ast.Constant):
        raise ValueError(f"a target ends with >= or <= and a number: {target}")
    return ast.unparse(node.left), signs[type(node.ops[0])], float(node.comparators[0].value)


def judge(target, figures):
    expression, sign, limit = split_target(target)
    try:
        value, low, high = calculate(expression, figures)
    except Missing as missing:
        return Outcome(NOT_RUN, why=f"not measured: {missing}")
    holds = value >= limit if sign == ">=" else value <= limit
    return Outcome(REACHED if holds else MISSED, value, low, high)


def number(value):
    """Three significant digits, thousands apart; for people."""
    if value is None:
        return ""
    size = abs(value)
    if size >= 1000:
        digits = max(0, len(str(int(size))) - 3)
        return f"{int(round(value, -digits)):,}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1 or size == 0:
        return f"{value:.2f}"
    return f"{value:.3g}"
