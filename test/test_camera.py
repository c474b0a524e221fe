# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""StereoCamera against first principles: points in space, projected by hand."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stereo_kd_ros.camera import (
    CalibrationError,
    StereoCamera,
    calibration_hash,
    calibration_record,
    depth_to_millimetres,
)

UNSET_ROI = (0, 0, 0, 0)


def camera_info(
    fx: float = 500.0,
    fy: float = 500.0,
    cx: float = 320.0,
    cy: float = 240.0,
    tx: float = 0.0,
    width: int = 640,
    height: int = 480,
    binning: tuple[int, int] = (0, 0),
    roi: tuple[int, int, int, int] = UNSET_ROI,
    **changes: object,
) -> SimpleNamespace:
    """A CameraInfo by its ROS 2 field names; `roi` is x, y, width, height."""
    fields = {
        'width': width,
        'height': height,
        'k': np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1.0]),
        'p': np.array([fx, 0, cx, tx, 0, fy, cy, 0, 0, 0, 1.0, 0]),
        'binning_x': binning[0],
        'binning_y': binning[1],
        'roi': SimpleNamespace(
            x_offset=roi[0], y_offset=roi[1], width=roi[2], height=roi[3], do_rectify=False
        ),
    }
    return SimpleNamespace(**{**fields, **changes})


def pair(**right: object) -> tuple[SimpleNamespace, SimpleNamespace]:
    """A good pair with a baseline of 0.1 m; `right` changes the right eye."""
    return camera_info(), camera_info(**{'tx': -50.0, **right})


def test_a_calibrated_pair_is_read():
    camera = StereoCamera.from_camera_info(*pair())
    assert camera == StereoCamera(640, 480, 500.0, 500.0, 320.0, 320.0, 240.0, 0.1)


def test_ros1_field_names_are_read():
    left, right = (SimpleNamespace(**{'K': info.k, 'P': info.p, **vars(info)}) for info in pair())
    for info in (left, right):
        del info.k, info.p
    assert StereoCamera.from_camera_info(left, right).baseline_m == pytest.approx(0.1)


def test_a_baseline_spread_over_both_eyes_is_their_difference():
    camera = StereoCamera.from_camera_info(camera_info(tx=25.0), camera_info(tx=-25.0))
    assert camera.baseline_m == pytest.approx(0.1)


@st.composite
def rigs(draw: st.DrawFn) -> tuple[SimpleNamespace, SimpleNamespace, dict]:
    """A CameraInfo pair and the full-resolution numbers it was made from."""
    binning = (draw(st.integers(0, 4)), draw(st.integers(0, 4)))
    width, height = draw(st.integers(64, 4096)), draw(st.integers(64, 4096))
    roi = UNSET_ROI
    if draw(st.booleans()):
        x, y = draw(st.integers(0, width - 16)), draw(st.integers(0, height - 16))
        roi = (x, y, draw(st.integers(16, width - x)), draw(st.integers(16, height - y)))
    full = {
        'fx': draw(st.floats(50, 5000)),
        'fy': draw(st.floats(50, 5000)),
        'cx': draw(st.floats(0, width)),
        'cy': draw(st.floats(0, height)),
        'cx_right': draw(st.floats(0, width)),
        'baseline_m': draw(st.floats(0.004, 2.0)),
        'width': width,
        'height': height,
        'binning': binning,
        'roi': roi,
    }
    shared = {key: full[key] for key in ('fx', 'fy', 'cy', 'width', 'height', 'binning', 'roi')}
    left = camera_info(cx=full['cx'], **shared)
    right = camera_info(cx=full['cx_right'], tx=-full['fx'] * full['baseline_m'], **shared)
    return left, right, full


def delivered_pixel(full: dict, cx: float, point: np.ndarray) -> tuple[float, float]:
    """Where a point in an eye's own frame appears in the delivered image."""
    u = full['fx'] * point[0] / point[2] + cx
    v = full['fy'] * point[1] / point[2] + full['cy']
    binning_x, binning_y = (max(b, 1) for b in full['binning'])
    return (u - full['roi'][0]) / binning_x, (v - full['roi'][1]) / binning_y


@given(rigs(), st.floats(0.2, 100.0), st.floats(-2, 2), st.floats(-2, 2))
def test_depth_of_a_projected_point_comes_back(rig, z, x_ratio, y_ratio):
    left, right, full = rig
    camera = StereoCamera.from_camera_info(left, right)
    point = np.array([x_ratio * z, y_ratio * z, z])
    u_left, v_left = delivered_pixel(full, full['cx'], point)
    u_right, v_right = delivered_pixel(
        full, full['cx_right'], point - np.array([full['baseline_m'], 0, 0])
    )
    assert v_left == pytest.approx(v_right)
    raw = u_left - u_right
    # A matcher searches from 0; a pair of principal points may put a point outside its range.
    assume(raw > 0.5)
    assume(abs(raw) < 1e3 * (raw - camera.cx_offset_px))
    disparity = camera.disparity_from_pixels(np.array([[raw]], dtype=np.float32))
    assert camera.disparity_to_depth(disparity)[0, 0] == pytest.approx(z, rel=2e-3)
    assert camera.projection_left @ [*point, 1] == pytest.approx(
        [u_left * z, v_left * z, z], rel=1e-6, abs=1e-6 * full['fx'] * z
    )
    assert camera.projection_right @ [*point, 1] == pytest.approx(
        [u_right * z, v_right * z, z], rel=1e-6, abs=1e-6 * full['fx'] * z
    )


@given(rigs())
def test_the_delivered_size_is_the_roi_over_the_binning(rig):
    left, right, full = rig
    camera = StereoCamera.from_camera_info(left, right)
    roi_width = full['roi'][2] or full['width']
    roi_height = full['roi'][3] or full['height']
    assert camera.width == roi_width // max(full['binning'][0], 1)
    assert camera.height == roi_height // max(full['binning'][1], 1)
    camera.require_size(camera.width, camera.height)
    with pytest.raises(CalibrationError, match='camera_info describes'):
        camera.require_size(camera.width + 1, camera.height)


@given(rigs())
def test_projections_give_the_same_camera_back(rig):
    camera = StereoCamera.from_camera_info(*rig[:2])
    again = StereoCamera.from_projection(
        camera.projection_left, camera.projection_right, camera.width, camera.height
    )
    for name, value in vars(camera).items():
        assert getattr(again, name) == pytest.approx(value, rel=1e-12, abs=1e-9), name


@given(rigs(), st.floats(0.25, 4.0), st.floats(0.25, 4.0), st.floats(0.5, 50.0))
def test_resizing_keeps_the_depth(rig, sx, sy, z):
    camera = StereoCamera.from_camera_info(*rig[:2])
    scaled = camera.scaled(sx, sy)
    disparity = camera.fx * camera.baseline_m / z
    assert scaled.fx * scaled.baseline_m / (disparity * sx) == pytest.approx(z)
    assert scaled.cx_offset_px == pytest.approx(camera.cx_offset_px * sx)
    assert (scaled.cy, scaled.fy) == (camera.cy * sy, camera.fy * sy)


def test_binning_by_two_halves_everything_but_the_baseline():
    full = StereoCamera.from_camera_info(*pair())
    binned = StereoCamera.from_camera_info(
        camera_info(binning=(2, 2)), camera_info(binning=(2, 2), tx=-50.0)
    )
    assert binned == StereoCamera(320, 240, 250.0, 250.0, 160.0, 160.0, 120.0, full.baseline_m)
    assert binned.projection_right[0, 3] == pytest.approx(-25.0)


def test_the_roi_counts_unbinned_pixels():
    window = {'binning': (2, 2), 'roi': (100, 40, 200, 120)}
    camera = StereoCamera.from_camera_info(camera_info(**window), camera_info(tx=-50.0, **window))
    assert (camera.width, camera.height) == (100, 60)
    assert (camera.cx_left, camera.cy) == ((320 - 100) / 2, (240 - 40) / 2)


def test_eyes_with_their_own_roi_columns_differ_in_cx():
    camera = StereoCamera.from_camera_info(
        camera_info(roi=(40, 0, 600, 480)), camera_info(roi=(0, 0, 600, 480), tx=-50.0)
    )
    assert camera.cx_offset_px == -40.0


@pytest.mark.parametrize(
    ('left', 'right', 'message'),
    [
        ({'k': np.zeros(9)}, {}, 'left camera_info is uncalibrated'),
        ({}, {'p': np.zeros(12)}, 'right camera_info is uncalibrated'),
        ({}, {'tx': 0.0}, 'Tx .* is zero'),
        ({}, {'tx': -1e-6}, 'Tx .* is zero'),
        ({}, {'tx': 50.0}, 'left and right are probably swapped'),
        ({}, {'tx': math.nan}, 'NaN or Inf'),
        ({'fx': math.nan}, {}, 'left camera_info'),
        ({'cx': math.inf}, {}, 'NaN or Inf'),
        ({'fx': -500.0}, {}, 'uncalibrated'),
        ({'width': 0}, {}, 'size 0x480'),
        ({}, {'fx': 510.0}, 'fx is 500.0 px on the left and 510.0'),
        ({}, {'fy': 510.0}, 'fy is'),
        ({}, {'cy': 250.0}, 'rows of the pair do not line up'),
        ({}, {'height': 400}, '640x480 pixels, the right one 640x400'),
        ({}, {'binning': (2, 2)}, 'must agree'),
        ({'roi': (600, 0, 100, 480)}, {}, 'leaves its 640x480 image'),
        ({'roi': (640, 0, 0, 0)}, {}, 'leaves its'),
        ({'binning': (1000, 1)}, {'binning': (1000, 1)}, 'at least 1x1'),
        ({}, {'p': np.zeros(3)}, '3 numbers, expected 12'),
    ],
)
def test_a_useless_calibration_is_refused_with_its_reason(left, right, message):
    with pytest.raises(CalibrationError, match=message):
        StereoCamera.from_camera_info(camera_info(**left), camera_info(**{'tx': -50.0, **right}))


@pytest.mark.parametrize(
    ('both', 'right', 'message'),
    [
        ({'fx': 1e300}, {'tx': -1e299}, 'fx=1e\\+300'),
        ({'fx': 1e-320}, {'tx': -1e-321}, 'fx='),
        ({'fy': 1e30}, {}, 'fy=1e\\+30'),
        ({'cx': 1e30}, {}, 'cx_left is 1e\\+30'),
        ({}, {'cx': -1e30}, 'cx_right is -1e\\+30'),
        ({'cy': 1e30}, {}, 'cy is 1e\\+30'),
        ({}, {'tx': -1e30}, 'at most 10000 m'),
    ],
)
def test_finite_numbers_beyond_any_camera_are_refused(both, right, message):
    with pytest.raises(CalibrationError, match=message):
        StereoCamera.from_camera_info(
            camera_info(**both), camera_info(**{'tx': -50.0, **both, **right})
        )


def test_a_vertical_pair_is_refused():
    right = camera_info()
    right.p[7] = -50.0
    with pytest.raises(CalibrationError, match='vertical'):
        StereoCamera.from_camera_info(camera_info(), right)


def test_an_info_may_be_read_twice():
    left, right = pair(roi=(10, 10, 100, 100))
    left = camera_info(roi=(10, 10, 100, 100))
    assert StereoCamera.from_camera_info(left, right) == StereoCamera.from_camera_info(left, right)


CAMERA = StereoCamera.from_intrinsics(fx=400.0, baseline_m=0.25, width=64, height=48)


def depths(*disparities: float, **limits: float) -> list[float]:
    disparity = np.array([disparities], dtype=np.float32)
    return CAMERA.disparity_to_depth(disparity, **limits)[0].tolist()


def test_depth_is_focal_length_times_baseline_over_disparity():
    assert depths(1.0, 10.0, 100.0) == [100.0, 10.0, 1.0]


def test_depth_is_coded_after_rep_117():
    near, inside, far, zero, negative, nothing, infinite = depths(
        100.0, 10.0, 1.0, 0.0, -3.0, math.nan, math.inf, min_depth_m=2.0, max_depth_m=50.0
    )
    assert (near, inside, far) == (-math.inf, 10.0, math.inf)
    assert all(math.isnan(value) for value in (zero, negative, nothing, infinite))


@given(
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=20),
    st.floats(0.0, 5.0),
    st.floats(5.0, 100.0),
)
def test_no_disparity_becomes_a_depth_outside_the_range(disparities, low, high):
    for disparity, depth in zip(
        disparities, depths(*disparities, min_depth_m=low, max_depth_m=high)
    ):
        if not (math.isfinite(disparity) and disparity > 0):
            assert math.isnan(depth)
        else:
            assert depth in (math.inf, -math.inf) or low * 0.999 <= depth <= high * 1.001


def test_the_input_is_left_alone():
    disparity = np.array([[1.0, -1.0, np.nan]], dtype=np.float32)
    before = disparity.copy()
    CAMERA.disparity_to_depth(disparity, 1.0, 2.0)
    CAMERA.disparity_from_pixels(disparity)
    np.testing.assert_array_equal(disparity, before)


@given(st.floats(0.3, 1000.0))
def test_disparity_and_depth_are_inverse(z):
    depth = np.array([[z]], dtype=np.float32)
    assert CAMERA.disparity_to_depth(CAMERA.depth_to_disparity(depth))[0, 0] == pytest.approx(z)


def test_what_is_no_depth_has_no_disparity():
    depth = np.array([[np.inf, -np.inf, np.nan, 0.0, -1.0]], dtype=np.float32)
    disparity = CAMERA.depth_to_disparity(depth)[0]
    assert disparity[0] == 0
    assert np.isnan(disparity[1:]).all()


def test_raw_disparity_below_the_matchers_range_is_invalid_even_with_an_offset():
    """With cx_right > cx_left a raw 0 would pass for a near point."""
    camera = StereoCamera(64, 48, 400.0, 400.0, 20.0, 40.0, 24.0, 0.25)
    raw = np.array([[10.0, 0.0, -5.0, np.nan, np.inf]], dtype=np.float32)
    corrected = camera.disparity_from_pixels(raw)[0]
    assert corrected[0] == 30.0
    assert np.isnan(corrected[1:]).all()


def test_sigma_grows_with_the_square_of_the_depth():
    depth = np.array([[1.0, 2.0, 4.0, np.inf, -np.inf, np.nan]], dtype=np.float32)
    sigma = CAMERA.depth_sigma(depth, 0.5)[0]
    np.testing.assert_allclose(sigma[:3], [0.005, 0.02, 0.08], rtol=1e-6)
    assert np.isnan(sigma[3:]).all()


@given(st.floats(0.5, 50.0), st.floats(0.1, 1.0))
def test_sigma_is_the_derivative_of_depth(z, sigma_px):
    f_b = CAMERA.fx * CAMERA.baseline_m
    step = 1e-4
    slope = (f_b / (f_b / z - step) - f_b / (f_b / z + step)) / (2 * step)
    sigma = CAMERA.depth_sigma(np.array([[z]], dtype=np.float32), sigma_px)[0, 0]
    assert sigma == pytest.approx(slope * sigma_px, rel=1e-3)


@given(st.integers(0, 63), st.integers(0, 47), st.floats(0.1, 100.0))
def test_points_project_back_onto_their_pixels(column, row, z):
    depth = np.full((48, 64), np.nan, dtype=np.float32)
    depth[row, column] = z
    cloud = CAMERA.points(depth)
    u, v, w = CAMERA.projection_left @ [*cloud[row, column].astype(float), 1.0]
    assert (u / w, v / w, w) == pytest.approx((column, row, z), rel=1e-4, abs=1e-3)
    assert np.isnan(cloud).sum() == 3 * (depth.size - 1)


def test_points_out_of_range_are_nan_in_all_coordinates():
    cloud = CAMERA.points(np.array([[np.inf, -np.inf, np.nan]], dtype=np.float32))
    assert np.isnan(cloud).all()


def test_millimetres_have_zero_for_what_is_missing_or_does_not_fit():
    depth = np.array([[1.2344, 65.535, 65.54, np.nan, np.inf, -np.inf, -1.0, 0.0002]], np.float32)
    millimetres = depth_to_millimetres(depth)
    assert millimetres.dtype == np.uint16
    assert millimetres.tolist() == [[1234, 65535, 0, 0, 0, 0, 0, 0]]


KITTI = StereoCamera(1241, 376, 718.856, 718.856, 607.1928, 607.1928, 185.2157, 0.5371657)


@given(st.floats(-1e-6, 1e-6))
def test_rounding_noise_leaves_the_calibration_hash_alone(relative):
    noisy = {
        name: getattr(KITTI, name) * (1 + relative)
        for name in ('fx', 'fy', 'cx_left', 'cx_right', 'cy', 'baseline_m')
    }
    assert calibration_hash(dataclasses.replace(KITTI, **noisy)) == calibration_hash(KITTI)


@pytest.mark.parametrize(
    'change',
    [
        {'width': 1240},
        {'height': 375},
        {'fx': 718.9},
        {'fy': 718.9},
        {'cx_left': 607.3, 'cx_right': 607.3},
        {'cx_right': 607.3},
        {'cy': 185.3},
        {'baseline_m': 0.5373},
    ],
)
def test_another_calibration_has_another_hash(change):
    assert calibration_hash(dataclasses.replace(KITTI, **change)) != calibration_hash(KITTI)


def test_the_calibration_hash_is_the_same_in_every_release():
    # Models in the field carry it: a new way to compute it would warn about all of them.
    camera = StereoCamera.from_intrinsics(500.0, 0.1, 640, 480)
    assert calibration_hash(camera) == '76e1b2a026edcb15'
    assert calibration_record(camera) == {
        'hash': '76e1b2a026edcb15',
        'fx': 500.0,
        'baseline_m': 0.1,
        'width': 640,
        'height': 480,
    }
