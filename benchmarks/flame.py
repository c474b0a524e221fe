# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Samples of py-spy as a flame graph of what works, threads that wait left out.

    py-spy record --pid PID --duration 15 --threads --format raw -o node.txt
    python benchmarks/flame.py node.txt node.svg --title 'the node at 30 Hz'

py-spy draws waiting threads as wide as working ones where it cannot tell them apart.
"""

from __future__ import annotations

import argparse
import html
import re
from pathlib import Path

WIDTH, ROW, LEAST = 1200.0, 17, 0.7
# A stack that ends in one of these waits.
WAITS = re.compile(r'^(wait|wait_for|_wait_for_tstate_lock|acquire|select|poll|sleep|take_wait)\b')
WAITS_ANYWHERE = re.compile(r'(Condition|Event)\.wait|_wait_for_ready_callbacks')


class Node:
    """One function as called from one stack."""

    def __init__(self) -> None:
        self.samples = 0
        self.children: dict[str, Node] = {}


def read(path: Path) -> tuple[Node, int]:
    """The tree of all working stacks, and how many samples were left out."""
    root, left_out = Node(), 0
    for line in path.read_text(encoding='utf-8').splitlines():
        stack, _, count = line.rpartition(' ')
        frames = stack.split(';')
        if WAITS.search(frames[-1]) or WAITS_ANYWHERE.search(frames[-1]):
            left_out += int(count)
            continue
        node = root
        node.samples += int(count)
        for frame in frames:
            node = node.children.setdefault(frame, Node())
            node.samples += int(count)
    return root, left_out


def draw(root: Node, title: str) -> str:
    """The tree as SVG, callers above what they call."""
    boxes: list[str] = []
    deepest = 0

    def place(node: Node, left: float, depth: int) -> None:
        nonlocal deepest
        deepest = max(deepest, depth)
        for name, child in sorted(node.children.items(), key=lambda item: -item[1].samples):
            width = WIDTH * child.samples / root.samples
            if width >= LEAST:
                share = 100 * child.samples / root.samples
                hue = 20 + sum(name.encode()) % 35
                top = 30 + ROW * depth
                told = html.escape(name)
                shown = html.escape(name[: int(width / 6.2)]) if width > 30 else ''
                boxes.append(
                    f'<g><title>{told} {share:.1f} %</title>'
                    f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{ROW - 1}" '
                    f'fill="hsl({hue},80%,65%)"/>'
                    f'<text x="{left + 3:.1f}" y="{top + 12}">{shown}</text></g>'
                )
                place(child, left, depth + 1)
            left += width

    place(root, 0.0, 0)
    height = 40 + ROW * (deepest + 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height}" '
        'font-family="monospace" font-size="10">'
        f'<rect width="100%" height="100%" fill="white"/>'
        f'<text x="4" y="18" font-size="14">{html.escape(title)}</text>'
        + '\n'.join(boxes)
        + '</svg>\n'
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('samples', type=Path)
    parser.add_argument('svg', type=Path)
    parser.add_argument('--title', default='')
    arguments = parser.parse_args()
    root, left_out = read(arguments.samples)
    if not root.samples:
        raise SystemExit(f'{arguments.samples} holds no working stack; {left_out} waited')
    arguments.svg.write_text(draw(root, arguments.title), encoding='utf-8')
    print(f'{root.samples} working samples, {left_out} waiting')


if __name__ == '__main__':
    main()
