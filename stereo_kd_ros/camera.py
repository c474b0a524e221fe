# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A rectified stereo camera as one value, and the way from disparity to depth.

`StereoCamera` describes the images that are really delivered: a CameraInfo pair is read once,
its region of interest and binning applied, and from then on only pixels of the delivered image
appear. The geometry is that of sensor_msgs/CameraInfo and stereo_msgs/DisparityImage:

    baseline_m   B = -(P_right[3] / P_right[0] - P_left[3] / P_left[0])
    disparity    d = x_left - x_right - (cx_left - cx_right)                        [px]
    depth        Z = fx * B / d                                                      [m]

Depth maps are coded after REP 117: NaN has no measurement, -Inf is nearer than the range and
+Inf farther than it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Two eyes of one rectified pair share a projection; what is left is rounding in a YAML file.
FOCAL_TOLERANCE = 1e-3
ROW_TOLERANCE_PX = 0.5
# An endoscope has 4 mm. Anything below this is a zero that went through arithmetic.
MIN_BASELINE_M = 1e-4
# Damaged memory reads as 1e300 or 1e-320 as easily as anything, and those are finite: a product of
# them would be a depth of infinity, or of zero. No lens, sensor or rig lies outside of these.
MAX_BASELINE_M = 1e4
FOCAL_RANGE_PX = (1e-2, 1e6)
MAX_PRINCIPAL_POINT_PX = 1e6
MILLIMETRES_MAX = 65535
# Steps of `calibration_hash`. Powers of two, because the border between two steps is then a number
# of seven decimals, which no calibration file holds: rounding noise does not cross it.
_HASH_STEP_PX = 2.0**-6
_HASH_STEP_M = 2.0**-16


class CalibrationError(ValueError):
    """A calibration from which no depth can be computed, and what to do about it."""


@dataclass(frozen=True)
class StereoCamera:
    """A rectified stereo pair, in pixels of the delivered image.

    Attributes:
        width: Columns of either image.
        height: Rows of either image.
        fx: Focal length along the rows [px].
        fy: Focal length along the columns [px].
        cx_left: Principal point of the left eye [px].
        cx_right: Principal point of the right eye [px].
        cy: Principal row, the same in both eyes [px].
        baseline_m: Distance from the left to the right eye, positive [m].
    """

    width: int
    height: int
    fx: float
    fy: float
    cx_left: float
    cx_right: float
    cy: float
    baseline_m: float

    def __post_init__(self) -> None:
        """Refuse what would turn into a wrong depth later on.

        Raises:
            CalibrationError: A size below one pixel, a number that is not finite or beyond any
                camera, or a focal length or baseline that is not positive.
        """
        if self.width < 1 or self.height < 1:
            raise CalibrationError(
                f'the image size is {self.width}x{self.height}, expected at least 1x1: '
                'the camera_info carries no width and height'
            )
        for name in ('fx', 'fy', 'cx_left', 'cx_right', 'cy', 'baseline_m'):
            if not math.isfinite(getattr(self, name)):
                raise CalibrationError(
                    f'{name} is {getattr(self, name)}, expected a finite number'
                )
        if self.fx <= 0 or self.fy <= 0:
            raise CalibrationError(
                f'the focal length is fx={self.fx}, fy={self.fy} px, expected both above 0: '
                'the camera is uncalibrated'
            )
        least_px, most_px = FOCAL_RANGE_PX
        if not (least_px <= min(self.fx, self.fy) <= max(self.fx, self.fy) <= most_px):
            raise CalibrationError(
                f'the focal length is fx={self.fx}, fy={self.fy} px, expected {least_px} to '
                f'{most_px:.0f} px: the camera_info is damaged'
            )
        for name in ('cx_left', 'cx_right', 'cy'):
            if abs(getattr(self, name)) > MAX_PRINCIPAL_POINT_PX:
                raise CalibrationError(
                    f'{name} is {getattr(self, name)} px, expected at most '
                    f'{MAX_PRINCIPAL_POINT_PX:.0f} px: the camera_info is damaged'
                )
        if abs(self.baseline_m) > MAX_BASELINE_M:
            raise CalibrationError(
                f'the baseline is {self.baseline_m} m, expected at most {MAX_BASELINE_M:.0f} m: '
                'P[3] of the right camera_info is -fx * baseline, in pixels times metres'
            )
        if abs(self.baseline_m) < MIN_BASELINE_M:
            raise CalibrationError(
                f'the baseline is {self.baseline_m} m: Tx (P[3] of the right camera_info) is '
                'zero; calibrate the cameras as a stereo pair, or publish P[3] = -fx * baseline'
            )
        if self.baseline_m < 0:
            raise CalibrationError(
                f'the baseline is {self.baseline_m} m, expected it above 0: Tx has the wrong '
                'sign; left and right are probably swapped'
            )

    @classmethod
    def from_camera_info(cls, left: Any, right: Any) -> StereoCamera:
        """Read a pair of sensor_msgs/CameraInfo (rclpy's or a bag reader's).

        Binning and region of interest are honoured: the ROI counts unbinned pixels of the full
        image, binning divides what remains, P[3] included. 0 and 1 both mean "not binned", and
        a ROI of size 0 means "whole image".

        Raises:
            CalibrationError: The pair is uncalibrated or the two do not belong together.
        """
        p_left, width, height = _delivered_projection(left, 'left')
        p_right, width_right, height_right = _delivered_projection(right, 'right')
        if (width, height) != (width_right, height_right):
            raise CalibrationError(
                f'the left camera_info describes {width}x{height} pixels, the right one '
                f'{width_right}x{height_right}: width, height, binning and ROI must agree'
            )
        return cls.from_projection(p_left, p_right, width, height)

    @classmethod
    def from_projection(
        cls,
        p_left: Any,
        p_right: Any,
        width: int,
        height: int,
    ) -> StereoCamera:
        """Read two rectified projection matrices (3, 4) of images of `width` x `height` px.

        Raises:
            CalibrationError: The matrices are zero, not finite, or not those of one pair.
        """
        left = _projection(p_left, 'left')
        right = _projection(p_right, 'right')
        for axis, name in ((0, 'fx'), (1, 'fy')):
            f_left, f_right = left[axis, axis], right[axis, axis]
            if abs(f_left - f_right) > FOCAL_TOLERANCE * max(f_left, f_right):
                raise CalibrationError(
                    f'{name} is {f_left} px on the left and {f_right} px on the right: a '
                    'rectified pair shares one projection; rectify both with the same stereo '
                    'calibration'
                )
        if abs(left[1, 2] - right[1, 2]) > ROW_TOLERANCE_PX:
            raise CalibrationError(
                f'cy is {left[1, 2]} px on the left and {right[1, 2]} px on the right: the '
                'rows of the pair do not line up; use the same ROI rows and one stereo '
                'rectification'
            )
        with np.errstate(over='ignore', invalid='ignore'):  # refused below when not finite
            tx_m = right[0, 3] / right[0, 0] - left[0, 3] / left[0, 0]
            ty_m = right[1, 3] / right[1, 1] - left[1, 3] / left[1, 1]
        if abs(ty_m) > max(abs(tx_m) * 0.01, MIN_BASELINE_M):
            raise CalibrationError(
                f'the eyes are {abs(ty_m)} m apart along the columns (P[7]): this is a vertical '
                'pair; turn both images by 90 degrees and calibrate that'
            )
        return cls(
            width=int(width),
            height=int(height),
            fx=float(left[0, 0]),
            fy=float(left[1, 1]),
            cx_left=float(left[0, 2]),
            cx_right=float(right[0, 2]),
            cy=float(left[1, 2]),
            baseline_m=float(-tx_m),
        )

    @classmethod
    def from_intrinsics(
        cls,
        fx: float,
        baseline_m: float,
        width: int,
        height: int,
        cx: float | None = None,
        cy: float | None = None,
    ) -> StereoCamera:
        """Build an ideal pair: square pixels, principal point in the middle unless given."""
        cx = (width - 1) / 2 if cx is None else cx
        cy = (height - 1) / 2 if cy is None else cy
        return cls(width, height, fx, fx, cx, cx, cy, baseline_m)

    @property
    def cx_offset_px(self) -> float:
        """cx_left - cx_right: the raw disparity of a point at infinity [px]."""
        return self.cx_left - self.cx_right

    @property
    def projection_left(self) -> NDArray[np.float64]:
        """P of the left eye, (3, 4)."""
        return self._projection(self.cx_left, 0.0)

    @property
    def projection_right(self) -> NDArray[np.float64]:
        """P of the right eye, (3, 4), with P[0, 3] = -fx * baseline."""
        return self._projection(self.cx_right, -self.fx * self.baseline_m)

    def _projection(self, cx: float, tx: float) -> NDArray[np.float64]:
        return np.array(
            [[self.fx, 0.0, cx, tx], [0.0, self.fy, self.cy, 0.0], [0.0, 0.0, 1.0, 0.0]]
        )

    def scaled(self, sx: float, sy: float) -> StereoCamera:
        """The camera of the image resized by `sx` along the rows and `sy` along the columns."""
        return StereoCamera(
            width=round(self.width * sx),
            height=round(self.height * sy),
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx_left=self.cx_left * sx,
            cx_right=self.cx_right * sx,
            cy=self.cy * sy,
            baseline_m=self.baseline_m,
        )

    def require_size(self, width: int, height: int, name: str = 'the image') -> None:
        """Check that an image is the one this calibration describes.

        Raises:
            CalibrationError: Its size differs, so that its pixels mean something else.
        """
        if (width, height) != (self.width, self.height):
            raise CalibrationError(
                f'{name} has {width}x{height} pixels, but its camera_info describes '
                f'{self.width}x{self.height} (after binning and ROI): whatever resized the image '
                'must publish the camera_info that goes with it'
            )

    def disparity_from_pixels(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn x_left - x_right [px] into the disparity that depth is computed from.

        A raw value that is not finite or not above 0 matches nothing (a matcher that searches
        from 0 cannot tell a point beyond its range from one at its rim) and becomes NaN.
        """
        corrected = np.subtract(raw, np.float32(self.cx_offset_px), dtype=np.float32)
        return _nan_where_unmeasured(corrected, raw)

    def disparity_to_depth(
        self,
        disparity: NDArray[np.float32],
        min_depth_m: float = 0.0,
        max_depth_m: float = math.inf,
    ) -> NDArray[np.float32]:
        """Compute depth [m] from corrected disparity [px], coded after REP 117.

        Args:
            disparity: Corrected for the cx offset, any shape.
            min_depth_m: What is nearer becomes -Inf.
            max_depth_m: What is farther becomes +Inf.

        Returns:
            float32 of the same shape; NaN where the disparity is NaN, infinite or not above 0.
        """
        with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
            depth = np.divide(np.float32(self.fx * self.baseline_m), disparity, dtype=np.float32)
        if max_depth_m < math.inf:
            np.copyto(depth, np.inf, where=depth > np.float32(max_depth_m))
        if min_depth_m > 0:
            np.copyto(depth, -np.inf, where=depth < np.float32(min_depth_m))
        return _nan_where_unmeasured(depth, disparity)

    def depth_to_disparity(self, depth: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute corrected disparity [px] from depth [m].

        Returns:
            float32 of the same shape; 0 at +Inf, NaN where the depth is NaN, -Inf or not above 0.
        """
        depth = np.asarray(depth, dtype=np.float32)
        with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
            disparity = np.divide(np.float32(self.fx * self.baseline_m), depth, dtype=np.float32)
        np.copyto(disparity, np.nan, where=~(depth > 0))
        return disparity

    def depth_sigma(
        self, depth: NDArray[np.float32], sigma_px: float | NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Standard deviation of depth [m] for a disparity error `sigma_px`: Z^2 / (f B) * sigma.

        NaN wherever the depth is not finite.
        """
        with np.errstate(invalid='ignore', over='ignore'):
            sigma = np.square(depth, dtype=np.float32)
            sigma *= np.asarray(sigma_px, dtype=np.float32) / np.float32(self.fx * self.baseline_m)
        np.copyto(sigma, np.nan, where=~np.isfinite(depth))
        return sigma

    def points(self, depth: NDArray[np.float32]) -> NDArray[np.float32]:
        """Back-project a depth map (H, W) to an organised cloud (H, W, 3) [m].

        Axes are those of the left optical frame: x right, y down, z forward. All three are NaN
        where the depth is not finite.
        """
        columns = ((np.arange(depth.shape[1]) - self.cx_left) / self.fx).astype(np.float32)
        rows = ((np.arange(depth.shape[0]) - self.cy) / self.fy).astype(np.float32)
        cloud = np.empty((*depth.shape, 3), dtype=np.float32)
        z = np.array(depth, dtype=np.float32)
        np.copyto(z, np.nan, where=~np.isfinite(z))
        np.multiply(z, columns[np.newaxis, :], out=cloud[..., 0])
        np.multiply(z, rows[:, np.newaxis], out=cloud[..., 1])
        cloud[..., 2] = z
        return cloud


def calibration_hash(camera: StereoCamera) -> str:
    """Sixteen hexadecimal digits that are the same for the same calibration.

    Covers size, focal lengths, principal point, cx offset and baseline, in steps of 1/64 px and
    15 micrometres, so that a calibration survives a YAML file, a CameraInfo and single precision.
    """
    lengths_px = (camera.fx, camera.fy, camera.cx_left, camera.cy, camera.cx_offset_px)
    steps = [round(length / _HASH_STEP_PX) for length in lengths_px]
    steps.append(round(camera.baseline_m / _HASH_STEP_M))
    described = ' '.join(str(value) for value in (camera.width, camera.height, *steps))
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def calibration_record(camera: StereoCamera) -> dict[str, float | str]:
    """What a model's manifest says of the camera it was made for: `hash` and what people read."""
    return {
        'hash': calibration_hash(camera),
        'fx': round(camera.fx, 3),
        'baseline_m': round(camera.baseline_m, 5),
        'width': camera.width,
        'height': camera.height,
    }


def depth_to_millimetres(depth: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Code depth [m] as 16UC1: millimetres, 0 where there is none or it does not fit."""
    with np.errstate(invalid='ignore', over='ignore'):
        millimetres = np.multiply(depth, np.float32(1000.0), dtype=np.float32)
        np.rint(millimetres, out=millimetres)
        fits = (millimetres > 0) & (millimetres <= MILLIMETRES_MAX)
    np.copyto(millimetres, 0, where=~fits)
    return millimetres.astype(np.uint16)


def _nan_where_unmeasured(
    values: NDArray[np.float32], disparity: NDArray[np.float32]
) -> NDArray[np.float32]:
    """`values`, computed from `disparity`, with NaN where that is NaN, infinite or not above 0.

    NaN came through the arithmetic as it is; a masked store, which costs ten times as much as the
    comparisons, is only made where anything else is left to mark.
    """
    measured = np.asarray(disparity > 0)
    measured &= disparity < np.inf
    missing = measured.size - np.count_nonzero(measured)
    if missing and missing != np.count_nonzero(np.isnan(disparity)):
        np.copyto(values, np.nan, where=np.logical_not(measured, out=measured))
    return values


def _field(info: Any, name: str) -> Any:
    """A CameraInfo matrix; ROS 2 spells its name small, ROS 1 with a capital."""
    return getattr(info, name) if hasattr(info, name) else getattr(info, name.upper())


def _delivered_projection(info: Any, eye: str) -> tuple[NDArray[np.float64], int, int]:
    """P (3, 4), width and height of the image that goes with a CameraInfo.

    Raises:
        CalibrationError: The camera is uncalibrated, or its ROI leaves its image.
    """
    k = np.asarray(_field(info, 'k'), dtype=np.float64).reshape(-1)
    if k.size != 9 or not k.any() or k[0] == 0:
        raise CalibrationError(
            f'the {eye} camera_info is uncalibrated (K is zero): calibrate the camera, and check '
            'that the driver found its calibration file'
        )
    projection = _projection(_field(info, 'p'), eye)
    width, height = int(info.width), int(info.height)
    if width < 1 or height < 1:
        raise CalibrationError(
            f'the {eye} camera_info has the size {width}x{height}, expected the full resolution'
        )
    roi = info.roi
    roi_x, roi_y = int(roi.x_offset), int(roi.y_offset)
    roi_width, roi_height = int(roi.width) or width - roi_x, int(roi.height) or height - roi_y
    if roi_x + roi_width > width or roi_y + roi_height > height or min(roi_width, roi_height) < 1:
        raise CalibrationError(
            f'the ROI of the {eye} camera_info ({roi_width}x{roi_height} at {roi_x}, {roi_y}) '
            f'leaves its {width}x{height} image: the ROI counts unbinned full-resolution pixels'
        )
    binning_x, binning_y = max(int(info.binning_x), 1), max(int(info.binning_y), 1)
    projection[0, 2] -= roi_x
    projection[1, 2] -= roi_y
    projection[0] /= binning_x
    projection[1] /= binning_y
    return projection, roi_width // binning_x, roi_height // binning_y


def _projection(matrix: Any, eye: str) -> NDArray[np.float64]:
    """Check a projection matrix of any layout and return it as a fresh (3, 4).

    Raises:
        CalibrationError: It has not 12 numbers, or they are zero or not finite.
    """
    projection = np.array(matrix, dtype=np.float64)
    if projection.size != 12:
        raise CalibrationError(
            f'P of the {eye} camera_info has {projection.size} numbers, expected 12'
        )
    projection = projection.reshape(3, 4)
    if not np.isfinite(projection).all():
        raise CalibrationError(
            f'P of the {eye} camera_info holds NaN or Inf: {projection.tolist()}'
        )
    if projection[0, 0] <= 0 or projection[1, 1] <= 0:
        raise CalibrationError(
            f'P of the {eye} camera_info is uncalibrated (fx={projection[0, 0]}, '
            f'fy={projection[1, 1]}): run a stereo calibration, which fills P'
        )
    return projection
