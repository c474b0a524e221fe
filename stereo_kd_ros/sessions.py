# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A plain ONNX Runtime session, for whatever is no engine: foreign networks, parity, timing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

_ERRORS = 3


def quiet_session(
    model: str | Path | bytes,
    threads: int | None = None,
    providers: Sequence[str] = ('CPUExecutionProvider',),
) -> onnxruntime.InferenceSession:
    """Open a model, without ONNX Runtime's warnings on the terminal.

    Args:
        model: A file, or its content.
        threads: Of one operator; None leaves it to ONNX Runtime.
        providers: In order of preference.

    Raises:
        Exception: Of ONNX Runtime's own classes, which share no public base.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS
    options.intra_op_num_threads = threads or 0
    # Its idle threads would go on spinning on the cores that whoever comes next is timed on.
    options.add_session_config_entry('session.force_spinning_stop', '1')
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=list(providers))
