# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How commands that train set PyTorch up on a CPU."""

from __future__ import annotations

from typing import Annotated

import typer

Threads = Annotated[int, typer.Option(min=1, help='CPU threads of PyTorch.')]


def use_threads(count: int) -> None:
    """Compute with `count` threads, and take numbers near zero for zero.

    Denormals, which weights decay into, take many times as long as other numbers.
    """
    import torch

    torch.set_num_threads(count)
    torch.set_flush_denormal(True)
