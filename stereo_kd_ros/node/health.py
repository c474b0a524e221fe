# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node's health once a second: why nothing is published, and `/diagnostics`.

Reads what the node keeps about itself and changes nothing of it. The keys are those of
`diagnostics.KEYS`, the causes those of `silence.CAUSES`.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType

from stereo_kd_ros.node import diagnostics
from stereo_kd_ros.node.calibration_watch import CHECKS, WatchReport, adapted_elsewhere
from stereo_kd_ros.node.diagnostics import status_message
from stereo_kd_ros.node.inputs import TOPICS
from stereo_kd_ros.node.silence import NO_FAULT, Observation, Silence, explain

if TYPE_CHECKING:
    from builtin_interfaces.msg import Time

    from stereo_kd_ros.node.stereo_node import StereoNode


class HealthReport:
    """Publishes diagnostics of a node and logs why it is silent.

    Args:
        node: Whose health it is.
        period_s: Time between two reports; REP 107 asks for 1 s.
    """

    def __init__(self, node: StereoNode, period_s: float) -> None:
        self._node = node
        self._history: deque[tuple[float, Counter[str]]] = deque()
        self._silence: Silence | None = None
        self._foreign_camera = ''
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # A steady clock: with use_sim_time and a paused bag the node must still say what is wrong.
        self._timer = node.create_timer(
            period_s, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def forget(self) -> None:
        """Forgets what was counted so far, as the node begins anew."""
        self._history.clear()

    def _report(self) -> None:
        node = self._node
        try:
            # The stamp comes first: nothing in the report is older than it says.
            stamp = node.get_clock().now().to_msg()
            counts = node.counts()
            self._watch_silence(counts)
            self._watch_model_calibration()
            self._publish_diagnostics(counts, stamp)
        except Exception as error:  # a report that fails must not end the node
            node.get_logger().error(f'health report: {type(error).__name__}: {error}')

    def _watch_silence(self, counts: Counter[str]) -> None:
        """Names why nothing is published, in the log once per change."""
        node = self._node
        now_s = time.monotonic()
        received = node.inputs.received if node.inputs is not None else {}
        arrived = Counter({f'in_{name}': number for name, number in received.items()})
        self._history.append((now_s, counts + arrived))
        timeout_s = node.settings.silence_timeout
        while len(self._history) > 1 and now_s - self._history[1][0] >= timeout_s:
            self._history.popleft()
        since_s = node.active_since_s if node.last_output_s is None else node.last_output_s
        silence = None
        if now_s - since_s >= timeout_s:
            silence = explain(self._observe(now_s))
        if silence is not None and (self._silence is None or silence.cause != self._silence.cause):
            text = f'nothing is published ({silence.cause}): {silence.message}'
            if silence.cause in NO_FAULT:
                node.get_logger().info(text)
            else:
                node.get_logger().warning(text)
        if silence is None and self._silence is not None:
            node.get_logger().info('publishing again')
        self._silence = silence

    def _watch_model_calibration(self) -> None:
        """Says once per change that the model was adapted to another camera."""
        node = self._node
        model = node.model_in_use()
        manifest = model.engine.manifest if model is not None else None
        adapted_to = manifest.calibration if manifest is not None else None
        difference = adapted_elsewhere(adapted_to, node.last.get('camera'))
        if difference and difference != self._foreign_camera:
            node.get_logger().warning(
                f'{model.name}: {difference}; adapt it to this camera, or use a model for any'
            )
        self._foreign_camera = difference

    def _observe(self, now_s: float) -> Observation:
        node = self._node
        began_s, before = self._history[0]
        delta = self._history[-1][1] - before
        inputs, published, began = node.inputs, node.outputs, node.inference_began_s
        return Observation(
            state=node.state,
            window_s=max(now_s - began_s, node.settings.silence_timeout),
            topics=inputs.topics if inputs is not None else {},
            publishers=inputs.publisher_counts() if inputs is not None else {},
            received={name: delta[f'in_{name}'] for name in TOPICS},
            qos_conflicts=tuple(inputs.qos_conflicts()) if inputs is not None else (),
            output_qos_conflicts=tuple(published.qos_conflicts()) if published is not None else (),
            pairs=delta['pairs_received'] + delta['dropped_no_camera_info'],
            nearest_skew_ms=inputs.nearest_skew_ms() if inputs is not None else None,
            tolerance_ms=node.settings.tolerance_ns / 1e6,
            drops={cause: delta[f'dropped_{cause}'] for cause in diagnostics.DROP_CAUSES},
            reasons=dict(node.reasons),
            inference_running_s=now_s - began if began is not None else 0.0,
            max_age_s=node.settings.max_age,
        )

    def _publish_diagnostics(self, counts: Counter[str], stamp: Time) -> None:
        array = DiagnosticArray()
        array.header.stamp = stamp
        array.status = [
            self._pipeline_status(counts),
            self._input_status(),
            self._model_status(),
            self._calibration_status(),
        ]
        self._publisher.publish(array)

    def _pipeline_status(self, counts: Counter[str]) -> DiagnosticStatus:
        node = self._node
        now_ns = time.monotonic_ns()
        rate_hz = node.output_rate.rate_hz(now_ns)
        expected_hz = node.settings.expected_frequency
        drops = {
            f'dropped_{cause}': counts[f'dropped_{cause}'] for cause in diagnostics.DROP_CAUSES
        }
        figures = node.times.percentiles()
        values: dict[str, object] = {
            'state': node.state,
            'silence_cause': self._silence.cause if self._silence is not None else 'none',
            'pairs_received': counts['pairs_received'],
            'pairs_published': counts['pairs_published'],
            **drops,
            'total_dropped_frames': sum(drops.values()),
            'clock_jumps': counts['clock_jumps'],
            'frame_rate_node': rate_hz,
            'expected_frequency': expected_hz,
            'current_delay_from_realtime_ms': figures.get('stamp_to_publish_ms_p50', 0.0),
            **figures,
            'skew_ms_last': node.last.get('skew_ms', 0.0),
            'skew_ms_max': node.last.get('skew_ms_max', 0.0),
            'queue_age_ms': node.queue_age_ms(now_ns),
            'valid_fraction': node.last.get('valid_fraction', 0.0),
            'flicker_fraction': node.last.get('flicker_fraction', 0.0),
            'pair_interval_ms': node.governor.interval_ms,
            'pair_busy_ms': node.governor.busy_ms,
            'over_budget': str(node.governor.over_budget).lower(),
            'memory_mb': diagnostics.memory_mb(),
        }
        level, message = diagnostics.OK, f'{rate_hz:.1f} Hz'
        if self._silence is not None:
            no_fault = self._silence.cause in NO_FAULT
            level = diagnostics.OK if no_fault else diagnostics.ERROR
            message = f'nothing is published: {self._silence.message}'
        elif expected_hz and rate_hz < 0.9 * expected_hz:
            level, message = diagnostics.WARN, f'{rate_hz:.1f} Hz, expected {expected_hz:.1f} Hz'
        elif node.governor.over_budget:
            level = diagnostics.WARN
            message = (
                f'{rate_hz:.1f} Hz, over budget: a pair takes {node.governor.busy_ms:.0f} ms and '
                f'comes every {node.governor.interval_ms:.0f} ms'
            )
        return self._status('pipeline', level, message, values)

    def _input_status(self) -> DiagnosticStatus:
        node = self._node
        inputs = node.inputs
        if inputs is None:
            return self._status('inputs', diagnostics.OK, f'not subscribed ({node.state})', {})
        now_ns = time.monotonic_ns()
        values: dict[str, object] = {}
        publishers = inputs.publisher_counts()
        for name in TOPICS:
            values[f'{name}_rate_hz'] = inputs.rates[name].rate_hz(now_ns)
            values[f'{name}_publishers'] = publishers[name]
        left = inputs.last_left
        if left is not None:
            values['encoding'] = getattr(left, 'encoding', '') or getattr(left, 'format', '')
            values['width'], values['height'] = (
                getattr(left, 'width', 0),
                getattr(left, 'height', 0),
            )
            values['frame_id'] = left.header.frame_id
        absent = [inputs.topics[name] for name, number in publishers.items() if not number]
        if absent:
            message = 'nobody publishes ' + ', '.join(absent)
            return self._status('inputs', diagnostics.WARN, message, values)
        return self._status('inputs', diagnostics.OK, 'all four topics have a publisher', values)

    def _model_status(self) -> DiagnosticStatus:
        node = self._node
        model = node.model_in_use()
        if model is None:
            message = node.start_error or f'no model loaded ({node.state})'
            level = diagnostics.ERROR if node.start_error else diagnostics.OK
            return self._status('model', level, message, {'model': node.settings.model})
        engine, manifest = model.engine, model.engine.manifest
        report = '; '.join(
            f'{attempt.name}: {"runs" if attempt.ok else attempt.reason}'
            for attempt in engine.provider_report
        )
        values: dict[str, object] = {
            'model': model.name,
            'model_path': str(engine.path),
            'model_name': manifest.name if manifest is not None else '',
            'model_version': manifest.version if manifest is not None else '',
            'model_sha256': manifest.weights_sha256 if manifest is not None else '',
            'provider': engine.provider,
            'provider_report': report,
            'model_switch': node.models.last_switch or 'none',
        }
        return self._status('model', diagnostics.OK, f'runs on {engine.provider}', values)

    def _calibration_status(self) -> DiagnosticStatus:
        node = self._node
        error = node.reasons.get('calibration', '')
        camera = node.last.get('camera')
        model = node.model_in_use()
        manifest = model.engine.manifest if model is not None else None
        adapted = manifest is not None and bool(manifest.calibration)
        watched = node.watch.report()
        values: dict[str, object] = {
            'calibration_error': error,
            'model_calibration': (
                'any camera'
                if not adapted
                else 'another camera'
                if self._foreign_camera
                else 'this camera'
            ),
            **self._check_values(watched),
        }
        if camera is not None:
            values.update(
                fx=camera.fx,
                baseline_m=camera.baseline_m,
                cx_offset_px=camera.cx_offset_px,
                width=camera.width,
                height=camera.height,
            )
        remedies = [f'{finding.measured}. {finding.remedy}' for finding in watched.faults]
        if error:
            message = '; '.join([error, *remedies[:1]])
            return self._status('calibration', diagnostics.ERROR, message, values)
        warnings = [*remedies, *([self._foreign_camera] if self._foreign_camera else [])]
        if warnings:
            # No error: depth is published, and what pictures seem to show is no proof.
            more = f' (and {len(warnings) - 1} more)' if len(warnings) > 1 else ''
            return self._status('calibration', diagnostics.WARN, warnings[0] + more, values)
        message = 'no pair yet' if camera is None else 'rectified stereo pair'
        return self._status('calibration', diagnostics.OK, message, values)

    def _check_values(self, watched: WatchReport) -> dict[str, object]:
        if not self._node.settings.calibration_check:
            state = 'off'
        elif watched.failure:
            state = f'failed: {watched.failure}'
        else:
            state = 'watching' if watched.answers else 'no pair yet'
        answers = {
            f'check_{name}': 'unknown'
            if answer is None
            else f'{answer.severity}: {answer.measured}'
            for name, answer in ((name, watched.answers.get(name)) for name in CHECKS)
        }
        return {
            'check_state': state,
            'check_pairs': watched.pairs,
            'check_ms': watched.look_ms,
            'check_findings': ', '.join(f.check for f in watched.standing) or 'none',
            **answers,
        }

    def _status(
        self, part: str, level: bytes, message: str, values: dict[str, object]
    ) -> DiagnosticStatus:
        name = f'{self._node.get_fully_qualified_name().lstrip("/")}: {part}'
        return status_message(name, level, message, values, hardware_id='stereo_kd_ros')
