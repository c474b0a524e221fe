# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the node says about itself on `/diagnostics`, once a second (REP 107).

Four statuses, `<node>: pipeline`, `<node>: inputs`, `<node>: model` and `<node>: calibration`,
with the keys of `KEYS` and, in `pipeline`, one `dropped_<cause>` per cause of `DROP_CAUSES` and
one `<stage>_ms_p50`, `_p95`, `_p99`, `_max` per stage of `STAGES`. Keys are stable; values are
strings; counts run from the start of the process.
"""

from __future__ import annotations

import resource
import threading
from collections import Counter, deque

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from stereo_kd_ros.doctor_checks import CHECKS
from stereo_kd_ros.node.calibration_watch import CHECKS as WATCHED_CHECKS

DROP_CAUSES = {
    'unmatched_left': 'left images without a right image of the same stamp',
    'unmatched_right': 'right images without a left image of the same stamp',
    'duplicate': 'images whose stamp had already been seen',
    'backward': 'images older than the last pair',
    'superseded': 'pairs replaced by a newer one before inference could begin',
    'stale': 'pairs older than max_age when inference could begin',
    'no_camera_info': 'pairs that waited for a camera_info which never came',
    'calibration': 'pairs whose camera_info is unusable',
    'image': 'pairs with an image that cannot be decoded',
    'size_mismatch': 'pairs whose images differ in size from each other or from camera_info',
    'inference': 'pairs on which the engine failed',
    'publish': 'pairs whose result could not be published',
    'no_subscriber': 'pairs skipped because nobody subscribes to any output',
    'inactive': 'pairs that arrived or waited while the node was being deactivated',
}

STAGES = {
    'wait': 'from the arrival of the second image of the pair until the worker takes it',
    'decode': 'messages to RGB arrays, and the calibration',
    'inference': 'in the model',
    'depth': 'masks, speckle filter, triangulation',
    'publish': 'building and sending the messages',
    'total': 'from the arrival of the second image of the pair until everything is sent',
    'stamp_to_publish': "the node's clock minus the stamp when everything is sent; it means "
    'something only when the stamps are of that clock',
}

KEYS: dict[str, dict[str, str]] = {
    'pipeline': {
        'state': 'lifecycle state: `unconfigured`, `inactive`, `active`',
        'silence_cause': '`none`, or why nothing is published',
        'pairs_received': 'complete pairs out of the matcher',
        'pairs_published': 'pairs for which something was published',
        'total_dropped_frames': 'sum of the drops: images for the causes of pairing, else pairs',
        'clock_jumps': 'times stamps went back and pairing began afresh (bag loop, clock reset)',
        'frame_rate_node': 'published pairs per second',
        'expected_frequency': 'the parameter',
        'current_delay_from_realtime_ms': 'median of `stamp_to_publish`',
        'skew_ms_last': 'right stamp minus left stamp of the last pair',
        'skew_ms_max': 'the largest so far, without its sign',
        'valid_fraction': 'share of pixels with a disparity in the last frame',
        'flicker_fraction': 'share of pixels that moved by more than 1 px + 5 % in one frame',
        'queue_age_ms': 'how long the pair has waited that is next; 0 when none waits',
        'pair_interval_ms': 'median time between pairs',
        'pair_busy_ms': 'median time that a pair takes, of those worked on',
        'over_budget': 'whether pairs come faster than they are worked off: `true` or `false`',
        'memory_mb': 'resident memory of the process',
    },
    'inputs': {
        **{
            f'{name}_{what}': f'{text} of the topic'
            for name in ('left_image', 'right_image', 'left_camera_info', 'right_camera_info')
            for what, text in (('rate_hz', 'messages per second'), ('publishers', 'publishers'))
        },
        'encoding': 'of the last left image',
        'width': 'of the last left image [px]; 0 when compressed',
        'height': 'of the last left image [px]; 0 when compressed',
        'frame_id': 'of the last left image',
    },
    'model': {
        'model': 'the model in use: that of the parameter `model`, or of `auto_model`',
        'model_path': 'the file in use',
        'model_name': 'by its manifest',
        'model_version': 'by its manifest',
        'model_sha256': 'of its weights, by its manifest',
        'provider': 'what really runs the model',
        'provider_report': 'what was tried, and why the others do not run it',
        'model_switch': 'what became of the last change of `model`',
    },
    'calibration': {
        'calibration_error': 'what is wrong with camera_info; empty when nothing is',
        'fx': 'focal length of the delivered image [px]',
        'baseline_m': 'distance of the two cameras [m]',
        'cx_offset_px': 'cx of the left camera minus cx of the right one',
        'width': 'of the delivered image [px]',
        'height': 'of the delivered image [px]',
        'model_calibration': 'what the model in use was adapted to: `any camera`, `this camera` '
        'or `another camera`',
        'check_state': '`off`, `no pair yet`, `watching`, or `failed:` and why',
        'check_pairs': 'pairs looked at since activation or the last change of the calibration',
        'check_ms': 'how long the last look took',
        'check_findings': 'the checks that found something, gravest first, or `none`',
        **{
            f'check_{name}': f'{CHECKS[name].title}: `ok`, `warn` or `error` and what was '
            'measured; `unknown` when there was nothing to go by'
            for name in WATCHED_CHECKS
        },
    },
}

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


class Counts:
    """Thread-safe counts by name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str, number: int = 1) -> int:
        """Adds to a count and returns its new value."""
        with self._lock:
            self._counts[name] += number
            return self._counts[name]

    def add_all(self, numbers: Counter[str]) -> None:
        """Adds to several counts."""
        with self._lock:
            self._counts.update(numbers)

    def snapshot(self) -> Counter[str]:
        """Returns a copy."""
        with self._lock:
            return Counter(self._counts)


class StageTimes:
    """Percentiles of the last durations of each stage, in milliseconds; thread-safe."""

    def __init__(self, window: int = 300) -> None:
        self._lock = threading.Lock()
        self._times = {stage: deque[float](maxlen=window) for stage in STAGES}

    def add(self, **durations_ms: float) -> None:
        """Adds one duration to each named stage."""
        with self._lock:
            for stage, duration_ms in durations_ms.items():
                self._times[stage].append(duration_ms)

    def percentiles(self) -> dict[str, float]:
        """Returns `{'inference_ms_p50': ..}`; a stage without a sample is left out."""
        with self._lock:
            samples = {stage: sorted(times) for stage, times in self._times.items() if times}
        figures = {}
        for stage, ordered in samples.items():
            for percent in (50, 95, 99):
                figures[f'{stage}_ms_p{percent}'] = nearest_rank(ordered, percent)
            figures[f'{stage}_ms_max'] = ordered[-1]
        return figures


def nearest_rank(ordered: list[float], percent: float) -> float:
    """Returns the smallest value that at least `percent` of the sorted samples do not exceed."""
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(int(rank), 1) - 1]


class RateMeter:
    """Events per second over a sliding window; times come from the caller, in nanoseconds."""

    def __init__(self, window_s: float = 3.0) -> None:
        self._lock = threading.Lock()
        self._window_ns = int(window_s * 1e9)
        self._times: deque[int] = deque(maxlen=2000)

    def add(self, now_ns: int) -> None:
        """Notes one event."""
        with self._lock:
            self._times.append(now_ns)

    def rate_hz(self, now_ns: int) -> float:
        """Returns the rate of the events inside the window; 0 with fewer than two."""
        with self._lock:
            while self._times and now_ns - self._times[0] > self._window_ns:
                self._times.popleft()
            if len(self._times) < 2:
                return 0.0
            span_ns = self._times[-1] - self._times[0]
            return (len(self._times) - 1) * 1e9 / span_ns if span_ns > 0 else 0.0


def memory_mb() -> float:
    """Returns the resident memory of this process, 0 where /proc does not tell."""
    try:
        with open('/proc/self/statm', encoding='ascii') as statm:
            pages = int(statm.read().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return pages * resource.getpagesize() / 1e6


def status_message(
    name: str, level: bytes, message: str, values: dict[str, object], hardware_id: str = ''
) -> DiagnosticStatus:
    """Builds one DiagnosticStatus; floats are written with four significant digits."""
    return DiagnosticStatus(
        level=level,
        name=name,
        message=message,
        hardware_id=hardware_id,
        values=[KeyValue(key=key, value=_text(value)) for key, value in values.items()],
    )


def _text(value: object) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)
