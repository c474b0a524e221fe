# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The same arithmetic as in training, written as ONNX runtimes execute it best.

Training wants few large operations with cheap gradients; a runtime on a CPU pays for every pass
over a map, for operators it has only a reference kernel of, and for each change of layout. These
forms are traced into the exported file in place of the ones that training runs; `export_network`
and the tests hold both to the same numbers. What each one wins, and others that won nothing, is
measured by `benchmarks/graph_table.py`, which leaves them out one by one (`without`).

Nothing behind the logits may be a convolution or a matrix product: OpenVINO in BF16 computes in
FP32 only what lies behind the last of those, and a disparity of 100 px needs it. What lies before
is better off as one: a map between two of them stays in BF16, and in the layout of both.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

COLUMN_GROUPS = 4
# A power of two: what whole numbers up to 256 are divided by, so that BF16 holds them.
LEVELS = 128.0
FORMS = (
    'input',
    'levels',
    'views',
    'stem',
    'norms',
    'volume',
    'scale',
    'regression',
    'costs',
    'upsampling',
    'confidence',
)

_left_out: frozenset[str] = frozenset()


def deployed(form: str) -> bool:
    """Whether a graph is being traced, and this one of `FORMS` belongs into it."""
    return torch.jit.is_tracing() and form not in _left_out


def left_out(form: str) -> bool:
    """Whether graphs are traced without this one of `FORMS`, see `without`."""
    return form in _left_out


@contextmanager
def without(*forms: str) -> Iterator[None]:
    """Trace what training runs instead of these `FORMS`.

    Raises:
        ValueError: one of them does not exist.
    """
    global _left_out
    unknown = set(forms) - set(FORMS)
    if unknown:
        raise ValueError(f'there is no form {min(unknown)!r}; expected of {", ".join(FORMS)}')
    before, _left_out = _left_out, frozenset(forms)
    try:
        yield
    finally:
        _left_out = before


def normalised(
    image: Tensor,
    pad: list[int],
    scale: Tensor,
    offset: Tensor,
    resizes: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1)),
) -> Tensor:
    """`scale` * `image` + `offset`, padded by replication: bytes (B, H, W, 3) to (B, 3, H', W').

    Channels change places after all arithmetic and next to the first convolution, into whose own
    layout a runtime folds that. A row of three channels is one row of 3 W numbers, so that vectors
    are filled.

    Args:
        image: (B, H, W, 3).
        pad: to the left, right, top and bottom [px], as of `torch.nn.functional.pad`.
        scale: of each channel, (3,).
        offset: of each channel, (3,).
        resizes: (pixels, in their place) along the height and the width, bilinear: (3, 2) makes
            two of three. The padded height is a multiple of `pixels`, the width of
            `COLUMN_GROUPS` times as many.
    """
    batch, height, width, channels = image.shape
    rows = image.reshape(batch, height, width * channels).float()
    rows = rows * scale.repeat(width) + offset.repeat(width)
    # Replication pads the last three axes of five.
    volume = rows.reshape(1, batch, height, width, channels)
    padded = F.pad(volume, [0, 0, *pad], mode='replicate')[0]
    return resized(padded, resizes).permute(0, 3, 1, 2)


def whole_levels(scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and summand in place of `scale` and `offset` of which BF16 holds every answer.

    It has eight bits: of a bright byte that was normalised as in training nearly half a grey level
    is lost, and more than one is not to be seen on much of a plain wall. A byte less a whole
    number by a power of two is exact. The first convolution makes up for it, see `of_levels`.
    """
    return torch.full_like(scale, 1.0 / LEVELS), -torch.round(-offset / scale) / LEVELS


def of_levels(weight: Tensor, scale: Tensor) -> Tensor:
    """Weights (C, 3, ky, kx) for images normalised by `scale`, for `whole_levels` of them.

    Zero is the same grey in both if the network's mean is a whole level.
    """
    return weight * (LEVELS * scale).view(1, -1, 1, 1)


def resized(image: Tensor, resizes: tuple[tuple[int, int], tuple[int, int]]) -> Tensor:
    """Bilinear (B, H, W, C) to other sides between pixel centres, see `normalised`.

    A runtime's Resize takes each output pixel for itself and the channels apart. Here rows are
    weighted sums of rows, and so many pixels of a row are one product with a matrix.
    """
    (rows, rows_out), (columns, columns_out) = resizes
    batch, height, width, channels = image.shape
    if rows != rows_out:
        lines = image.reshape(batch, height // rows, rows, width * channels)
        above = torch.cat((lines[:, :1, :1], lines[:, :-1, -1:]), 1)
        below = torch.cat((lines[:, 1:, :1], lines[:, -1:, -1:]), 1)
        parts = [above, *lines.split(1, 2), below]
        made = []
        for first, weight in _places(rows, rows_out):
            made.append((1.0 - weight) * parts[first + 1] + weight * parts[first + 2])
        height = height // rows * rows_out
        image = torch.cat(made, 2).reshape(batch, height, width, channels)
    if columns != columns_out:
        # Few pixels a product are many short copies, and many are mostly zeros in the matrix.
        columns, columns_out = COLUMN_GROUPS * columns, COLUMN_GROUPS * columns_out
        groups = image.reshape(batch, height, width // columns, columns * channels)
        before = torch.cat((groups[:, :, :1, :channels], groups[:, :, :-1, -channels:]), 2)
        after = torch.cat((groups[:, :, 1:, :channels], groups[:, :, -1:, -channels:]), 2)
        # In NumPy: of tensors, every assignment would be traced.
        weights = np.zeros((columns + 2, columns_out), np.float32)
        for k, (first, weight) in enumerate(_places(columns, columns_out)):
            weights[first + 1, k] += 1.0 - weight
            weights[first + 2, k] += weight
        matrix = torch.from_numpy(np.kron(weights, np.eye(channels, dtype=np.float32)))
        made = torch.matmul(torch.cat((before, groups, after), 3), matrix.to(groups.device))
        image = made.reshape(batch, height, width // columns * columns_out, channels)
    return image


def _places(size: int, made: int) -> list[tuple[int, float]]:
    """For each of `made` pixels in the place of `size`: the one before its centre, and how far."""
    places = [(k + 0.5) * size / made - 0.5 for k in range(made)]
    return [(math.floor(at), at - math.floor(at)) for at in places]


def resizing_weights(weight: Tensor, axis: int, pixels: int) -> Tensor:
    """Of a 3x3 convolution with a stride of 2 behind a resize of `pixels` rows to two, for both.

    Two rows of what was resized are three rows of the image, or four, so that one of five rows, or
    six, and a stride of as many does the work of both: what it reads lies between the same rows
    everywhere, as far as the first and the last, and neither of the two has anything beyond.

    Args:
        weight: (C, c, ky, kx), along `axis` 3: 2 y - 1 .. 2 y + 1 of what was resized.
        axis: 0 for rows, 1 for columns.
        pixels: 3 or 4, or 2 where nothing was resized.

    Returns:
        along `axis` 5: 3 y - 2 .. 3 y + 2, or 6: 4 y - 2 .. 4 y + 3; or `weight`.
    """
    if pixels == 2:
        return weight
    places = torch.zeros(pixels + 2, 3)
    for made in (-1, 0, 1):
        at = (made + 0.5) * pixels / 2 - 0.5
        first = math.floor(at)
        places[first + 2, made + 1] = 1 - (at - first)
        places[first + 3, made + 1] = at - first
    equation = 'ry,ocyx->ocrx' if axis == 0 else 'rx,ocyx->ocyr'
    return torch.einsum(equation, places, weight)


def scaled(volume: Tensor, scale: Tensor, channels: int) -> Tensor:
    """`scale` * `volume`, a scalar and (B, D, h, w), as a convolution of each channel for itself.

    `channels` is D as a number, which a traced shape is not.
    """
    # A product with a constant is folded into the weight that a file holds.
    return F.conv2d(volume, scale * torch.ones(channels, 1, 1, 1), groups=channels)


def in_parts(features: Tensor, weight: Tensor, bias: Tensor, parts: int) -> list[Tensor]:
    """A convolution of (B, c, h, w) whose answers are wanted in `parts` of equally many channels.

    Cut out of one answer each part is a copy; a convolution of its own writes it where it is read.
    """
    return [
        F.conv2d(features, part, shift)
        for part, shift in zip(weight.chunk(parts), bias.chunk(parts))
    ]


def unit_vectors(features: Tensor) -> Tensor:
    """(B, c, h, w) of length one along c, both views at once."""
    sums = torch.from_numpy(np.ones((1, features.shape[1], 1, 1), np.float32))
    squared = F.conv2d(features * features, sums)
    return features / squared.clamp(min=1e-24).sqrt()


def correlation_volume(left: Tensor, right: Tensor, hypotheses: int) -> Tensor:
    """`kestrel.correlation_volume` by blocks of D columns, each against 2 D of the right view.

    (B, C, h, w) twice to (B, D, h, w). A whole row against a whole row computes w + D - 1
    products per pixel and copies all of them to cut out D; a block computes 2 D.
    """
    batch, channels, height, width = left.shape
    count = (width + hypotheses - 1) // hypotheses
    missing = count * hypotheses - width
    rows_left = F.pad(left, (0, missing)).permute(0, 2, 3, 1)
    rows_left = rows_left.reshape(batch, height, count, hypotheses, channels)
    # One block more to the left: what lies outside of the image. Channels last in both views, the
    # transposition left to the product: runtimes keep maps so, or fold it in.
    rows_right = F.pad(right, (hypotheses, missing)).permute(0, 2, 3, 1)
    rows_right = rows_right.reshape(batch, height, count + 1, hypotheses, channels)
    pairs = torch.cat((rows_right[:, :, :-1], rows_right[:, :, 1:]), 3)
    products = torch.matmul(rows_left, pairs.transpose(-1, -2))
    # Row i of a block has its band at columns i + 1 .. i + D; rows read one element longer than
    # they are shift each by one more, and the band becomes a block.
    flat = F.pad(products.flatten(3), (0, hypotheses))
    skewed = flat.reshape(batch, height, count, hypotheses, 2 * hypotheses + 1)
    band = skewed[..., 1 : hypotheses + 1].reshape(batch, height, count * hypotheses, hypotheses)
    return band[:, :, :width].permute(0, 3, 1, 2)


def window_regression(logits: Tensor, hypotheses: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """`kestrel.window_regression` without ArgMax and Where, which runtimes do slowly.

    (B, D, h, w), (D,) to (B, 1, h, w) twice. The first of the channels at the maximum is the one
    whose rank from behind is the largest.
    """
    count = logits.shape[1]
    top = logits.amax(1, keepdim=True)
    rank = torch.arange(count, 0, -1, dtype=logits.dtype, device=logits.device).view(1, -1, 1, 1)
    best = ((logits >= top).to(logits.dtype) * rank).amax(1, keepdim=True)
    # 1 within the radius and 0 outside, for whole numbers.
    inside = (radius + 1 - (rank - best).abs()).clamp(0.0, 1.0)
    likelihood = torch.exp(logits - top)
    window = likelihood * inside
    within = window.sum(1, keepdim=True)
    expected = (window * hypotheses.view(1, -1, 1, 1)).sum(1, keepdim=True) / within
    return expected, within / likelihood.sum(1, keepdim=True)


def stacked_weights(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Of a convolution whose answers are wanted by two rows: at a place, and below it.

    (C, c, k, k) and (C,) to (2 C, c, k + 1, k) and (2 C,), as constants of what is traced. With a
    stride of two rows its answers lie as `local_costs` reads them. Reckoning a row of weights in
    vain takes less than copying answers beside each other.
    """
    weight, bias = weight.detach(), bias.detach()
    places = [F.pad(weight, (0, 0, y, 1 - y)) for y in (0, 1)]
    return constant(torch.cat(places)), constant(bias.repeat(2))


def constant(values: Tensor) -> Tensor:
    """`values` as a trace finds them, without how they were made."""
    return torch.from_numpy(np.array(values.detach().cpu().numpy()))


def in_rows(view: Tensor) -> Tensor:
    """(B, c, h, w) to (B, h, w, 1, c); OpenVINO turns nothing where maps lie so, if asked thus."""
    return view.permute(0, 2, 3, 1).unsqueeze(3)


def beside_next(rows: Tensor) -> Tensor:
    """Each pixel of a row and the next one, (B, h, w, 1, C) to (B, h, w + 1, 2 C).

    The first of them is the outermost pixel twice and so is the last, for beyond the sides it
    counts.
    """
    rows = rows.squeeze(3)
    here = torch.cat((rows[:, :, :1], rows), 2)
    following = torch.cat((rows, rows[:, :, -1:]), 2)
    return torch.cat((here, following), 3)


def local_costs(own: Tensor, seen: Tensor, whole: Tensor, reach: int) -> Tensor:
    """`kestrel.local_costs` before the sum over two rows, which the weights behind it can take.

    Rows of a table are read one by one whatever their length, so one has all pixels of a
    cell. It is longer than a vector, or OpenVINO takes it number by number, which is six times as
    slow; sums over inner axes are left to a reference kernel, that of two maps is not.

    Args:
        own: (B, h, 2 w, 1, C), the left pixels of each column: above, below.
        seen: `beside_next` of the right ones, (B, h, 2 w + 1, 2 C).
        whole: (B, 1, h, w) whole numbers.
        reach: steps to either side.

    Returns:
        (B, (2 reach + 1) C, h, w).
    """
    batch, rows, width, _, channels = own.shape
    columns, places = width // 2, width + 1
    table = seen.reshape(batch * rows * places, 2 * channels)
    steps = torch.arange(reach, -reach - 1, -1, device=own.device)
    at = 2 * torch.arange(columns, device=own.device).view(1, 1, -1, 1) + steps + 1
    at = (at - whole[:, 0].to(steps.dtype).unsqueeze(3)).clamp(0, width)
    lines = torch.arange(batch * rows, device=own.device).view(batch, rows, 1, 1) * places
    theirs = table[(lines + at).flatten()].view(batch, rows, columns, len(steps), 2 * channels)
    ours = own.reshape(batch, rows, columns, 1, 2 * channels)
    here, following = (ours - theirs).abs().split(channels, 4)
    costs = (here + following).reshape(batch, rows, columns, len(steps) * channels)
    return costs.permute(0, 3, 1, 2)


def local_range(values: Tensor) -> Tensor:
    """`confidence.local_range`, for whose pooling OpenVINO has but a reference kernel."""
    height, width = values.shape[2:]
    padded = F.pad(values, (1, 1, 1, 1), mode='replicate')
    rows = [padded[:, :, y : y + height] for y in range(3)]
    ends = []
    for extreme in (torch.maximum, torch.minimum):
        of_rows = functools.reduce(extreme, rows)
        ends.append(functools.reduce(extreme, [of_rows[..., x : x + width] for x in range(3)]))
    return ends[0] - ends[1]


def neighbourhood(whole: Tensor, rest: Tensor) -> Tensor:
    """`kestrel.neighbourhood` as a convolution that knows where its neighbours are."""
    kernel = np.zeros((9, 1, 3, 3), np.float32)
    kernel[range(9), 0, np.arange(9) // 3, np.arange(9) % 3] = 1
    kernel = np.delete(kernel - kernel[4], 4, 0)
    both = F.pad(torch.cat((whole, rest), 1), (1, 1, 1, 1), mode='replicate')
    return F.conv2d(both, torch.from_numpy(kernel.repeat(2, 1)))


def mean_of_bins(logits: Tensor, values: Tensor) -> Tensor:
    """Expectation of `values` under softmax(logits), (B, D, h, w) twice to (B, h, w) float32.

    A runtime's Softmax takes its entries side by side: over any other axis than the last it
    transposes the map before and after, which costs more than the exponentials.
    """
    logits = logits.float()
    likelihood = torch.exp(logits - logits.amax(1, keepdim=True))
    return (likelihood * values).sum(1) / likelihood.sum(1)


def shuffled(parts: Tensor, factors: tuple[int, int]) -> Tensor:
    """(B, fy * fx, h, w), row by row the parts of each cell, to (B, 1, fy * h, fx * w)."""
    down, across = factors
    if down == across:
        return F.pixel_shuffle(parts, down)
    batch, _, height, width = parts.shape
    cells = parts.reshape(batch, down, across, height, width).permute(0, 3, 1, 4, 2)
    return cells.reshape(batch, 1, height * down, width * across)


def shuffled_rows(parts: Tensor, factors: tuple[int, int]) -> Tensor:
    """`shuffled` of what lies with its parts together: they are turned as they lie."""
    down, across = factors
    batch, _, height, width = parts.shape
    cells = parts.permute(0, 2, 3, 1).reshape(batch, height, width, down, across)
    return cells.permute(0, 1, 3, 2, 4).reshape(batch, 1, height * down, width * across)


def weighted_mean(shares: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """`kestrel.weighted_mean` by two or three at a time, and then what these are together.

    What is elementwise a runtime does in one pass, of so many maps at most. What is summed one by
    one it cuts at places of its own, where shares are written down and read again.
    """
    bounds = [*range(0, max(len(shares) - 1, 1), 2), len(shares)]
    groups = [range(first, last) for first, last in itertools.pairwise(bounds)]
    weighted = [_sum_of([shares[k] * values[k] for k in group]) for group in groups]
    total = [_sum_of([shares[k] for k in group]) for group in groups]
    return _sum_of(weighted) / _sum_of(total)


def _sum_of(terms: Sequence[Tensor]) -> Tensor:
    """The last two first."""
    return functools.reduce(lambda later, term: term + later, reversed(terms))


def bilinear(
    coarse: Tensor, factors: tuple[int, int], size: tuple[int, int] | None = None
) -> Tensor:
    """Bilinear (B, 1, h, w) to (B, 1, fy * h, fx * w) between pixel centres, or `size` of it.

    As weighted sums: a runtime's Resize takes each output pixel for itself.
    """
    down, across = factors
    height, width = coarse.shape[2:]
    padded = F.pad(coarse, (1, 1, 1, 1), mode='replicate')
    # Columns first: what is put between each other one by one is small then, and rows are copied.
    columns = padded[..., :width], padded[..., 1 : width + 1], padded[..., 2:]
    # Each of them as it lies, and all turned at once: a copy of single numbers is slow.
    wide = torch.cat(_between(*columns, across), 1).permute(0, 2, 3, 1)
    wide = wide.reshape(-1, 1, height + 2, width * across)
    if size is not None:
        wide = wide[..., : size[1]]
    rows = wide[:, :, :height], wide[:, :, 1 : height + 1], wide[:, :, 2:]
    made = torch.stack(_between(*rows, down), 3)
    fine = made.reshape(-1, 1, height * down, wide.shape[3])
    return fine if size is None else fine[:, :, : size[0]]


def _between(before: Tensor, here: Tensor, after: Tensor, factor: int) -> list[Tensor]:
    """Values at the centres of `factor` equal parts of `here`."""
    places = [(k + 0.5) / factor - 0.5 for k in range(factor)]
    return [
        (1.0 - abs(at)) * here + abs(at) * (before if at < 0 else after) if at else here
        for at in places
    ]
