# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One pair to one depth frame: right at every size, ROI, binning, baseline and focal length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from ros_rig import as_message, camera_infos, textured_pair
from sensor_msgs.msg import CameraInfo, PointCloud2, RegionOfInterest
from std_msgs.msg import Header
from tiny_models import write_failing_model

from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.engine import StereoEngine
from stereo_kd_ros.node.messages import (
    depth_camera_info,
    depth_message,
    disparity_message,
    points_message,
)
from stereo_kd_ros.node.parameters import SPECS, Settings
from stereo_kd_ros.node.pipeline import PairDropped, process_pair, without_speckles

DEFAULTS = Settings(**{name: spec.default for name, spec in SPECS.items()})
CAMERA = StereoCamera.from_intrinsics(fx=100.0, baseline_m=0.2, width=8, height=6)


@pytest.fixture(scope='module')
def engine(block_matcher: str) -> StereoEngine:
    return StereoEngine(block_matcher, 'cpu')


def floats(message: object) -> np.ndarray:
    return np.frombuffer(message.data, np.float32).reshape(message.height, message.width)


def full_resolution_infos(
    height: int, width: int, binning: int, offset: int, fx: float, baseline_m: float
) -> tuple[CameraInfo, CameraInfo]:
    """camera_info of a sensor of which a binned region of interest is delivered."""
    full_height, full_width = height * binning + 2 * offset, width * binning + 3 * offset
    infos = camera_infos(full_height, full_width, fx, baseline_m)
    for info in infos:
        info.binning_x = info.binning_y = binning
        info.roi = RegionOfInterest(
            x_offset=offset, y_offset=offset, width=width * binning, height=height * binning
        )
    return infos


@settings(max_examples=25)
@given(
    height=strategies.integers(24, 60),
    width=strategies.integers(40, 90),
    binning=strategies.sampled_from([1, 2, 4]),
    offset=strategies.sampled_from([0, 3, 16]),
    fx=strategies.floats(20.0, 2000.0),
    baseline_m=strategies.floats(0.02, 2.0),
    disparity_px=strategies.integers(1, 12),
)
def test_every_output_has_the_left_images_size_and_one_geometry(
    engine: StereoEngine,
    height: int,
    width: int,
    binning: int,
    offset: int,
    fx: float,
    baseline_m: float,
    disparity_px: int,
) -> None:
    infos = full_resolution_infos(height, width, binning, offset, fx, baseline_m)
    left, right = (as_message(image) for image in textured_pair(disparity_px, height, width))
    frame = process_pair(left, right, *infos, engine, DEFAULTS)
    inner = (slice(4, -4), slice(disparity_px + 4, -4))
    delivered_fx = fx / binning
    expected_m = delivered_fx * baseline_m / disparity_px

    disparity = disparity_message(
        frame.disparity_px, frame.camera, Header(), 0.0, frame.max_disparity_px
    )
    depth = depth_message(frame.depth_m, '32FC1', Header())
    cloud = points_message(frame.depth_m, frame.left_rgb, frame.camera, Header())
    for message in (disparity.image, depth, cloud):
        assert (message.height, message.width) == (height, width)
    assert disparity.image.step == depth.step == 4 * width
    window = disparity.valid_window
    assert (window.width, window.height) == (width, height)
    assert disparity.f == pytest.approx(delivered_fx, rel=1e-6)
    assert disparity.t == pytest.approx(baseline_m, rel=1e-6)
    # REP 118: whoever computes depth from the DisparityImage gets the depth image.
    np.testing.assert_allclose(floats(depth)[inner], expected_m, rtol=1e-5)
    np.testing.assert_allclose(
        disparity.f * disparity.t / floats(disparity.image)[inner], expected_m, rtol=1e-5
    )
    # The camera_info is the left one: its P, binned and cut, projects each point to its pixel.
    xyz = cloud_fields(cloud)[0][inner]
    p = np.array(infos[0].p).reshape(3, 4)
    column = (p[0, 0] * xyz[..., 0] / xyz[..., 2] + p[0, 2] - offset) / binning
    row = (p[1, 1] * xyz[..., 1] / xyz[..., 2] + p[1, 2] - offset) / binning
    rows, columns = np.mgrid[0:height, 0:width]
    np.testing.assert_allclose(column, columns[inner], atol=1e-2)
    np.testing.assert_allclose(row, rows[inner], atol=1e-2)


def cloud_fields(cloud: PointCloud2) -> tuple[np.ndarray, np.ndarray]:
    """Returns xyz `(H, W, 3)` and RGB `(H, W, 3)` as a reader of the field table sees them."""
    offsets = {field.name: field.offset for field in cloud.fields}
    values = np.frombuffer(cloud.data, np.uint8).reshape(cloud.height, cloud.width, -1)
    assert values.shape[2] == cloud.point_step
    assert cloud.row_step == cloud.point_step * cloud.width
    xyz = [values[..., offsets[n] : offsets[n] + 4].copy().view(np.float32)[..., 0] for n in 'xyz']
    packed = values[..., offsets['rgb'] : offsets['rgb'] + 4].copy().view(np.uint32)[..., 0]
    rgb = [(packed >> shift) & 255 for shift in (16, 8, 0)]
    return np.stack(xyz, -1), np.stack(rgb, -1)


def test_points_have_the_images_colours_and_nan_without_depth() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    depth_m = np.full((6, 8), 2.0, np.float32)
    depth_m[0, :3] = np.nan, np.inf, -np.inf
    xyz, colours = cloud_fields(points_message(depth_m, rgb, CAMERA, Header()))
    np.testing.assert_array_equal(colours, rgb)
    assert np.all(np.isnan(xyz[0, :3]))
    np.testing.assert_allclose(xyz[5, 7], [3.5 * 2 / 100, 2.5 * 2 / 100, 2.0], rtol=1e-6)


def test_16uc1_is_millimetres_with_zero_for_whatever_has_no_depth() -> None:
    depth_m = np.array([[np.nan, np.inf, -np.inf, 1.2344, 65.535, 65.536, 0.0004]], np.float32)
    message = depth_message(depth_m, '16UC1', Header())
    assert (message.encoding, message.step) == ('16UC1', 2 * 7)
    assert np.frombuffer(message.data, np.uint16).tolist() == [0, 0, 0, 1234, 65535, 0, 0]


def test_32fc1_keeps_the_three_kinds_of_no_depth() -> None:
    depth_m = np.array([[np.nan, np.inf, -np.inf, 1.5]], np.float32)
    np.testing.assert_array_equal(floats(depth_message(depth_m, '32FC1', Header())), depth_m)


@pytest.mark.parametrize('min_disparity_px', [0.0, 4.0])
def test_invalid_disparity_is_below_min_disparity(min_disparity_px: float) -> None:
    disparity_px = np.array([[np.nan, 4.0, 9.5]], np.float32)
    message = disparity_message(disparity_px, CAMERA, Header(), min_disparity_px, 64.0)
    coded = floats(message.image)[0]
    assert coded[0] < message.min_disparity == min_disparity_px
    assert coded[1:].tolist() == [4.0, 9.5]


def test_camera_info_keeps_everything_but_the_header() -> None:
    info = full_resolution_infos(24, 40, 2, 3, 500.0, 0.1)[0]
    header = Header(frame_id='left')
    published = depth_camera_info(info, header)
    assert published.header == header
    assert published.header is not info.header
    published.header = info.header
    assert published == info


@pytest.mark.parametrize(
    ('changes', 'depth_m'),
    [
        ({'max_depth': 3.0}, np.inf),
        ({'min_depth': 5.0}, -np.inf),
        ({'max_disparity': 4.0}, np.nan),
        ({'min_disparity': 6.0}, np.nan),
        ({'confidence_threshold': 1.0}, 4.0),
        ({'speckle_size': 20}, 4.0),
        ({'speckle_size': 100_000}, np.nan),
    ],
)
def test_settings_rule_pixels_out(
    engine: StereoEngine, changes: dict[str, float], depth_m: float
) -> None:
    left, right = (as_message(image) for image in textured_pair(5))
    frame = process_pair(left, right, *camera_infos(), engine, replace(DEFAULTS, **changes))
    assert np.all(np.isclose(frame.depth_m[10:-10, 20:-10], depth_m, equal_nan=True))


def test_low_confidence_is_invalid(engine: StereoEngine) -> None:
    left, right = textured_pair(5)
    frame = process_pair(
        as_message(left),
        as_message(255 - right),
        *camera_infos(),
        engine,
        replace(DEFAULTS, confidence_threshold=0.95),
    )
    assert np.all(np.isnan(frame.disparity_px[frame.confidence < 0.95]))
    assert frame.valid_fraction == pytest.approx(np.mean(np.isfinite(frame.disparity_px)))


def test_speckles_vanish_and_surfaces_stay() -> None:
    disparity_px = np.full((40, 40), 10.0, np.float32)
    disparity_px[10:13, 10:13] = 30.0
    disparity_px[0, 0] = np.nan
    cleaned = without_speckles(disparity_px, size_px=9, range_px=1.0)
    assert np.all(np.isnan(cleaned[10:13, 10:13]))
    assert np.count_nonzero(np.isnan(cleaned)) == 10
    assert np.all(without_speckles(disparity_px, 8, 1.0)[10:13, 10:13] == 30.0)


def test_depth_is_not_computed_when_nobody_wants_it(engine: StereoEngine) -> None:
    left, right = (as_message(image) for image in textured_pair(5))
    frame = process_pair(left, right, *camera_infos(), engine, DEFAULTS, with_depth=False)
    assert frame.depth_m is None


def test_model_that_fails_at_run_time_drops_the_pair(tmp_path: Path) -> None:
    failing = StereoEngine(write_failing_model(tmp_path / 'failing.onnx', max_width_px=32), 'cpu')
    left, right = (as_message(image) for image in textured_pair(5))
    with pytest.raises(PairDropped, match='inference') as dropped:
        process_pair(left, right, *camera_infos(), failing, DEFAULTS)
    assert dropped.value.cause == 'inference'
