# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Conditions such as `bad3<5 and p95_ms<33` that a report must fulfil.

Names of figures, numbers, the comparisons < <= > >= ==, and `and`, `or`, `not` with parentheses;
nothing else is evaluated. A condition over a figure that was not measured is not fulfilled.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping

_COMPARISONS = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
}


class GateError(ValueError):
    """A condition that cannot be understood."""


class Gate:
    """One condition over named figures.

    Raises:
        GateError: It is not of the form that the module describes.
    """

    def __init__(self, condition: str) -> None:
        self.condition = condition
        try:
            self._tree = ast.parse(condition.strip(), mode='eval').body
        except SyntaxError as error:
            raise GateError(
                f'{condition!r} is no condition: expected something like "bad3<5 and p95_ms<33".'
            ) from error
        self.names = frozenset(
            node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)
        )
        self._check(self._tree)

    def require_known(self, names: Mapping[str, object]) -> None:
        """Check that every figure of the condition exists.

        Raises:
            GateError: One does not; the message lists those that do.
        """
        unknown = sorted(self.names - set(names))
        if unknown:
            raise GateError(
                f'{self.condition!r} asks for {", ".join(unknown)}; '
                f'the figures are {", ".join(sorted(names))}.'
            )

    def holds(self, figures: Mapping[str, float | None]) -> bool:
        """Whether these figures fulfil it; never when one of them is absent."""
        return not self.absent(figures) and self._truth(self._tree, figures)

    def absent(self, figures: Mapping[str, float | None]) -> list[str]:
        """Figures of the condition that were not measured."""
        return sorted(name for name in self.names if figures.get(name) is None)

    def _check(self, node: ast.expr) -> None:
        if isinstance(node, ast.BoolOp):
            for value in node.values:
                self._check(value)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._check(node.operand)
        elif isinstance(node, ast.Compare):
            if any(type(comparison) not in _COMPARISONS for comparison in node.ops):
                raise GateError(f'{self.condition!r}: only < <= > >= and == compare figures.')
            for operand in (node.left, *node.comparators):
                self._check_operand(operand)
        else:
            raise GateError(
                f'{self.condition!r}: {ast.unparse(node)!r} compares nothing; '
                'expected something like "bad3<5 and p95_ms<33".'
            )

    def _check_operand(self, node: ast.expr) -> None:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            node = node.operand
        number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
        if not (number or isinstance(node, ast.Name)):
            raise GateError(
                f'{self.condition!r}: {ast.unparse(node)!r} is neither a figure nor a number.'
            )

    def _truth(self, node: ast.expr, figures: Mapping[str, float | None]) -> bool:
        if isinstance(node, ast.BoolOp):
            join = all if isinstance(node.op, ast.And) else any
            return join(self._truth(value, figures) for value in node.values)
        if isinstance(node, ast.UnaryOp):
            return not self._truth(node.operand, figures)
        assert isinstance(node, ast.Compare)
        values = [self._value(side, figures) for side in (node.left, *node.comparators)]
        return all(
            _COMPARISONS[type(comparison)](first, second)
            for comparison, first, second in zip(node.ops, values, values[1:])
        )

    def _value(self, node: ast.expr, figures: Mapping[str, float | None]) -> float:
        if isinstance(node, ast.UnaryOp):
            return -self._value(node.operand, figures)
        if isinstance(node, ast.Name):
            value = figures[node.id]
            assert value is not None
            return value
        assert isinstance(node, ast.Constant)
        return float(node.value)
