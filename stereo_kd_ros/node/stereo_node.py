# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The stereo depth node: a lifecycle node around the pure modules.

    subscriptions ──▶ PairMatcher ──▶ Mailbox (newest wins) ──▶ worker thread ──▶ publishers
    (executor's thread files messages)                          (decode, infer, triangulate)

configure loads and warms the model and creates the publishers, activate subscribes and starts the
worker, deactivate ends both and keeps the model warm, cleanup frees everything. No input ends the
node: whatever is wrong with a pair is counted by cause, logged at most every few seconds, and
forgotten with the next good one.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter

from stereo_kd_ros.engine import EngineError, StereoEngine
from stereo_kd_ros.model import ModelError, read_manifest, resolve_model
from stereo_kd_ros.node.calibration_watch import CalibrationWatch, Offer
from stereo_kd_ros.node.diagnostics import Counts, RateMeter, StageTimes
from stereo_kd_ros.node.health import HealthReport
from stereo_kd_ros.node.inputs import ReceivedPair, StereoInputs
from stereo_kd_ros.node.load import LoadGovernor
from stereo_kd_ros.node.model_slot import LoadedModel, ModelSlot
from stereo_kd_ros.node.outputs import NEED_DEPTH, USUAL, StereoOutputs
from stereo_kd_ros.node.parameters import ParameterError, Settings, declare_parameters
from stereo_kd_ros.node.pipeline import DepthFrame, PairDropped, process_pair
from stereo_kd_ros.node.rehearsal import rehearse
from stereo_kd_ros.node.sync import make_matcher
from stereo_kd_ros.pairing import Mailbox

# Long enough for a thread to wake up.
HANDOVER_S = 5e-5
LOG_PERIOD_S = 5.0
HEALTH_PERIOD_S = 1.0
# Dropping these is the node doing its work, so they are counted and not logged.
EXPECTED_DROPS = frozenset({'no_subscriber', 'stale', 'inactive', 'superseded'})
WORKER_STOP_TIMEOUT_S = 30.0
REHEARSAL_TIMEOUT_S = 10.0
PARAMETER_STORED_TIMEOUT_S = 5.0


class StereoNode(LifecycleNode):
    """Depth from two rectified image topics.

    Raises:
        ParameterError: a parameter the node was started with is unusable.
    """

    # Here rather than in __init__: rclpy destroys a node whose __init__ raised.
    inputs: StereoInputs | None = None
    outputs: StereoOutputs | None = None
    models: ModelSlot | None = None
    watch: CalibrationWatch | None = None
    _worker: threading.Thread | None = None

    def __init__(self, node_name: str = 'stereo_node', **node_options: Any) -> None:
        super().__init__(node_name, **node_options)
        self.state = 'unconfigured'
        self.start_error = ''
        self.settings: Settings = declare_parameters(self)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self.models = ModelSlot(self._load_engine, self._on_switched, self._on_rolled_back)
        self._smaller: LoadedModel | None = None
        self.governor = LoadGovernor(has_smaller=False)
        self._mailbox: Mailbox[ReceivedPair] = Mailbox()
        self._counts = Counts()
        self.times = StageTimes()
        self.output_rate = RateMeter()
        self.last: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}
        self._restoring_model = False
        self._asked_model = ''
        self.log_throttle: dict[str, float] = {}
        self._previous_disparity: np.ndarray | None = None
        self._waiting_since_ns: int | None = None
        self.inference_began_s: float | None = None
        self.active_since_s = time.monotonic()
        self.last_output_s: float | None = None
        self.watch = CalibrationWatch(self._on_calibration_change)
        self._health = HealthReport(self, HEALTH_PERIOD_S)

    def start(self) -> bool:
        """Configures and activates; returns False, with the reason logged, when that fails."""
        return (
            self.trigger_configure() == TransitionCallbackReturn.SUCCESS
            and self.trigger_activate() == TransitionCallbackReturn.SUCCESS
        )

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Loads and warms the model, and creates the publishers."""
        return self._transition('inactive', self._configure, undo=self._release)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribes and starts the worker."""
        return self._transition('active', self._activate, undo=self._deactivate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Ends the subscriptions and the worker; the model stays warm."""
        return self._transition('inactive', self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Frees the model and the publishers."""
        return self._transition('unconfigured', self._release)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Ends everything, from any state."""
        return self._transition('finalized', self._release)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Goes back to unconfigured after a failed transition."""
        return self._transition('unconfigured', self._release)

    def destroy_node(self) -> None:
        """Ends the worker before anything it uses is destroyed."""
        try:
            self._release()
        except RuntimeError as error:
            self.get_logger().error(f'stopping: {error}')
        super().destroy_node()

    def _transition(
        self, target: str, action: Callable[[], None], undo: Callable[[], None] | None = None
    ) -> TransitionCallbackReturn:
        """Runs a transition; one that fails half-way is undone, so that it can be tried again."""
        # rclpy drops an exception of a transition without a word, hence the log here.
        try:
            action()
        except (ModelError, EngineError, ParameterError) as error:
            self.start_error = str(error)
            outcome = TransitionCallbackReturn.FAILURE
        except Exception as error:
            self.start_error = f'{type(error).__name__}: {error}'
            outcome = TransitionCallbackReturn.ERROR
        else:
            self.state, self.start_error = target, ''
            return TransitionCallbackReturn.SUCCESS
        self.get_logger().error(f'cannot become {target}: {self.start_error}')
        if undo is not None:
            undo()
        return outcome

    def _configure(self) -> None:
        settings = self.settings
        make_matcher(settings.sync_backend, settings.queue_size, settings.tolerance_ns)
        self.models.open(settings.model)
        if settings.auto_model:
            smaller = self._load_engine(settings.auto_model)
            self._smaller = LoadedModel(settings.auto_model, smaller)
        self.governor = LoadGovernor(has_smaller=self._smaller is not None)
        self.outputs = StereoOutputs(self)

    def _load_engine(self, model: str) -> StereoEngine:
        settings = self.settings
        path = resolve_model(model)
        engine = StereoEngine(
            path,
            settings.provider,
            settings.threads or None,
            settings.precision,
            settings.threads_spin,
        )
        height, width = self._expected_size()
        if engine.accepts(height, width):
            engine.warm_up(height, width)
        else:
            self.get_logger().warning(
                f'{path} does not take {width}x{height} images, so it was not warmed up; set '
                'warm_up_width and warm_up_height to the size of your camera'
            )
        self.get_logger().info(f'{path} runs on {engine.provider}')
        if engine.manifest is None:
            self.get_logger().warning(
                f'{path} carries no manifest: its disparity range and training data are unknown'
            )
        return engine

    def _expected_size(self) -> tuple[int, int]:
        camera = self.last.get('camera')
        if camera is not None:
            return camera.height, camera.width
        return self.settings.warm_up_height, self.settings.warm_up_width

    def _activate(self) -> None:
        self.active_since_s = time.monotonic()
        self.last_output_s = None
        self._health.forget()
        self._mailbox = Mailbox()
        ready = threading.Event()
        self._worker = threading.Thread(
            target=self._work, args=(self._mailbox, ready), name='stereo_worker', daemon=True
        )
        self._worker.start()
        ready.wait(REHEARSAL_TIMEOUT_S)
        self.watch.start()
        self.inputs = StereoInputs(self, self.settings, self._on_pair, self._on_input_error)

    def _deactivate(self) -> None:
        inputs, self.inputs = self.inputs, None
        if inputs is not None:
            inputs.destroy()
            self._counts.add_all(dropped_by_pairing(inputs))
        if self.watch is not None:
            self.watch.stop()
        worker, self._worker = self._worker, None
        if worker is not None:
            self._mailbox.close()
            worker.join(WORKER_STOP_TIMEOUT_S)
            if worker.is_alive():
                raise RuntimeError(f'inference did not end within {WORKER_STOP_TIMEOUT_S:.0f} s')
            if self._mailbox.take(timeout=0) is not None:
                self._counts.add('dropped_inactive')

    def _release(self) -> None:
        self._deactivate()
        published, self.outputs = self.outputs, None
        if published is not None:
            published.destroy()
        if self.models is not None:
            self.models.close()
            self._smaller = None
        self._previous_disparity = None

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        configured = self.state in ('inactive', 'active')
        try:
            changed = self.settings.changed(parameters, configured)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if configured and changed.model != self.settings.model and not self._restoring_model:
            try:
                read_manifest(resolve_model(changed.model))
                self._asked_model = changed.model
                self.models.begin_switch(changed.model)
            except ModelError as error:
                return SetParametersResult(successful=False, reason=f'model: {error}')
        self.settings = changed
        if not changed.calibration_check and self.watch is not None:
            self.watch.forget()
        return SetParametersResult(successful=True)

    def _on_switched(self, name: str) -> None:
        self.get_logger().info(f'the model is now {name}')

    def _on_rolled_back(self, name: str, reason: str) -> None:
        self.get_logger().error(f'the model stays {name}, as the other one failed: {reason}')
        # rclpy stores the request after the callback that began the switch: the last word is ours.
        deadline_s = time.monotonic() + PARAMETER_STORED_TIMEOUT_S
        while self.get_parameter('model').value != self._asked_model:
            if time.monotonic() > deadline_s:
                break
            time.sleep(0.001)
        self._restoring_model = True
        try:
            self.set_parameters([Parameter('model', value=name)])
        finally:
            self._restoring_model = False

    def _on_calibration_change(self, sentence: str, is_bad: bool) -> None:
        # Two calls: rclpy refuses another severity from the same line.
        if is_bad:
            self.get_logger().warning(sentence)
        else:
            self.get_logger().info(sentence)

    def _on_pair(self, received: ReceivedPair) -> None:
        self._counts.add('pairs_received')
        self.governor.arrived(time.monotonic())
        self._waiting_since_ns = received.received_ns
        if self._mailbox.put(received) is not None:
            self._counts.add('dropped_superseded')
        # The worker has been told, but this thread holds the interpreter until it waits again.
        time.sleep(HANDOVER_S)

    def _on_input_error(self, reason: str) -> None:
        self._counts.add('dropped_image')
        self._log_throttled('image', reason)

    def _rehearse(self) -> None:
        published, model = self.outputs, self.model_in_use()
        height, width = self._expected_size()
        if published is None or model is None or not model.engine.accepts(height, width):
            return
        try:
            outputs = USUAL | published.wanted(self.settings.lazy)
            rehearse(model.engine, self.settings, height, width, outputs)
        except Exception as error:
            # It only saves the first pair some time; if anything is wrong, that pair will say so.
            self.get_logger().warning(f'the rehearsal failed: {type(error).__name__}: {error}')

    def _work(self, mailbox: Mailbox[ReceivedPair], ready: threading.Event) -> None:
        self._rehearse()
        ready.set()
        while not mailbox.closed:
            received = mailbox.take(timeout=0.5)
            if received is None:
                continue
            try:
                self._handle(received)
            except PairDropped as dropped:
                self._drop(dropped.cause, str(dropped))
                if dropped.cause == 'calibration':
                    self._offer(received)
            except Exception as error:
                # Whatever the engine or the middleware throws, the next pair may work.
                self._drop('inference', f'{type(error).__name__}: {error}')
            finally:
                self.inference_began_s = None

    def _handle(self, received: ReceivedPair) -> None:
        taken_ns = time.monotonic_ns()
        self._waiting_since_ns = None
        self.inference_began_s = time.monotonic()
        published, model, settings = self.outputs, self.model_in_use(), self.settings
        if published is None or model is None:
            raise PairDropped('inactive', 'the node is being deactivated')
        wanted = published.wanted(settings.lazy)
        if not wanted:
            raise PairDropped('no_subscriber', 'nobody subscribes to an output')
        pair = received.pair
        self._require_fresh(pair.left_stamp_ns, settings.max_age)
        self._note_frames(pair.left, pair.right)
        try:
            frame = process_pair(
                pair.left,
                pair.right,
                received.left_info,
                received.right_info,
                model.engine,
                settings,
                with_depth=bool(wanted & NEED_DEPTH),
            )
        except PairDropped as dropped:
            if dropped.cause == 'inference':
                self._give_up_model(model, str(dropped))
            raise
        self.models.answered(model)
        publish_began_ns = time.monotonic_ns()
        try:
            published.publish(frame, pair.left.header, received.left_info, settings, wanted)
        except Exception as error:  # rclpy raises RCLError, InvalidHandle and others here
            raise PairDropped('publish', f'{type(error).__name__}: {error}') from error
        finished_ns = time.monotonic_ns()
        self.times.add(
            wait=(taken_ns - received.received_ns) / 1e6,
            decode=frame.decode_ms,
            inference=frame.inference_ms,
            depth=frame.depth_ms,
            publish=(finished_ns - publish_began_ns) / 1e6,
            total=(finished_ns - received.received_ns) / 1e6,
            stamp_to_publish=self._age_ns(pair.left_stamp_ns) / 1e6,
        )
        self._watch_load((finished_ns - taken_ns) / 1e6)
        self._note_published(frame, pair.skew_ns / 1e6, finished_ns)
        self._offer(received, frame.left_rgb, frame.right_rgb)

    def _offer(self, received: ReceivedPair, *pictures: np.ndarray) -> None:
        """Leaves a pair to the calibration watch, which may look at it later."""
        if self.settings.calibration_check:
            self.watch.offer(Offer(received.left_info, received.right_info, *pictures))

    def model_in_use(self) -> LoadedModel | None:
        """The smaller model while the load asks for it, else the one of the parameter."""
        if self._smaller is not None and self.governor.use_smaller:
            return self._smaller
        return self.models.current()

    def _give_up_model(self, model: LoadedModel, reason: str) -> None:
        if model is self._smaller:
            self._smaller = None
            self.get_logger().error(f'not stepping to {model.name} again: {reason}')
        else:
            self.models.failed(model, reason)

    def _watch_load(self, busy_ms: float) -> None:
        """Lets the governor choose the model for the next pair, and says so when it changes."""
        governor, used_smaller = self.governor, self.governor.use_smaller
        pace = f'pairs come every {governor.interval_ms:.0f} ms'
        governor.worked(time.monotonic(), busy_ms)
        if self._smaller is None or governor.use_smaller == used_smaller:
            return
        if governor.use_smaller:
            self.get_logger().warning(
                f'over budget: {pace} and {self.settings.model} takes {busy_ms:.0f} ms; '
                f'stepping to {self._smaller.name}'
            )
        else:
            self.get_logger().info(f'stepping back to {self.settings.model}: {pace}')

    def _require_fresh(self, left_stamp_ns: int, max_age_s: float) -> None:
        age_s = self._age_ns(left_stamp_ns) / 1e9
        if max_age_s and age_s > max_age_s:
            raise PairDropped('stale', f'the pair is {age_s:.3f} s old, max_age is {max_age_s} s')

    def _age_ns(self, stamp: int) -> int:
        return self.get_clock().now().nanoseconds - stamp

    def _note_frames(self, left: Any, right: Any) -> None:
        frames = (left.header.frame_id, right.header.frame_id)
        if self.last.get('frame_ids') == frames:
            return
        self.last['frame_ids'] = frames
        if frames[0] != frames[1]:
            self.get_logger().warning(
                f'left images are in frame {frames[0]!r}, right images in {frames[1]!r}; '
                f'a rectified pair shares one frame, outputs are in {frames[0]!r}'
            )

    def _note_published(self, frame: DepthFrame, skew_ms: float, now_ns: int) -> None:
        self.output_rate.add(now_ns)
        self.last_output_s = time.monotonic()
        coarse = frame.disparity_px[::8, ::8]
        self.last.update(
            camera=frame.camera,
            valid_fraction=frame.valid_fraction,
            skew_ms=skew_ms,
            skew_ms_max=max(self.last.get('skew_ms_max', 0.0), abs(skew_ms)),
            flicker_fraction=flicker(self._previous_disparity, coarse),
        )
        self._previous_disparity = coarse.copy()
        self.reasons.clear()
        # Last: whoever sees the count may rely on the rest.
        self._counts.add('pairs_published')

    def _drop(self, cause: str, reason: str) -> None:
        self._counts.add(f'dropped_{cause}')
        self.reasons[cause] = reason
        if cause not in EXPECTED_DROPS:
            self._log_throttled(cause, reason)

    def _log_throttled(self, cause: str, reason: str) -> None:
        """Logs the first pair dropped for a cause, then at most one every few seconds."""
        now_s = time.monotonic()
        if now_s - self.log_throttle.get(cause, -LOG_PERIOD_S) < LOG_PERIOD_S:
            return
        self.log_throttle[cause] = now_s
        number = self._counts.snapshot()[f'dropped_{cause}']
        self.get_logger().error(f'pair dropped ({cause}, {number} so far): {reason}')

    def counts(self) -> Counter[str]:
        """Returns `pairs_received`, `pairs_published` and `dropped_<cause>` since the start."""
        counts = self._counts.snapshot()
        inputs = self.inputs
        if inputs is not None:
            counts.update(dropped_by_pairing(inputs))
        return counts

    def queue_age_ms(self, now_ns: int) -> float:
        """Returns how long the pair has waited that is next, 0 when none waits."""
        since_ns = self._waiting_since_ns
        return 0.0 if since_ns is None else (now_ns - since_ns) / 1e6


def dropped_by_pairing(inputs: StereoInputs) -> Counter[str]:
    """Returns what pairing left out, under diagnostics keys."""
    matched = inputs.pairing_counts
    counts = Counter(
        {
            f'dropped_{cause}': matched[cause]
            for cause in ('unmatched_left', 'unmatched_right', 'duplicate', 'backward')
        }
    )
    counts['dropped_no_camera_info'] = inputs.lost_waiting
    counts['clock_jumps'] = matched['clock_jump']
    return counts


def flicker(before_px: np.ndarray | None, after_px: np.ndarray) -> float:
    """Returns the share of pixels valid in both maps that moved by more than 1 px + 5 %."""
    if before_px is None or before_px.shape != after_px.shape:
        return 0.0
    both = np.isfinite(before_px) & np.isfinite(after_px)
    if not both.any():
        return 0.0
    moved = np.abs(after_px[both] - before_px[both]) > 1.0 + 0.05 * after_px[both]
    return float(np.mean(moved))
