# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays in, ROS messages out, each under the left image's header untouched.

Coding follows REP 117 and REP 118: 32FC1 depth in metres with NaN invalid, -Inf too close and +Inf
beyond range; 16UC1 in millimetres with 0 invalid. A DisparityImage marks an invalid pixel with a
value below `min_disparity`.
"""

from __future__ import annotations

from copy import deepcopy

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField, RegionOfInterest
from std_msgs.msg import Header
from stereo_msgs.msg import DisparityImage

from stereo_kd_ros.camera import StereoCamera, depth_to_millimetres
from stereo_kd_ros.image import encode_image, image_bytes

# The smallest disparity step that DisparityImage promises. The student is continuous; a sixteenth
# of a pixel, the step of fixed-point matchers, is about the finest difference that means
# something.
DELTA_DISPARITY_PX = 1 / 16


def stamp_ns(header: Header) -> int:
    """Returns a header's stamp in nanoseconds."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def image_message(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """Wraps an `(H, W)` or `(H, W, C)` array as an Image without row padding."""
    fields = encode_image(pixels, encoding)
    data = fields.pop('data')
    message = Image(header=header, **fields)
    # Not in the constructor, which copies the pixels one more time.
    message.data = data
    return message


def disparity_message(
    disparity_px: np.ndarray,
    camera: StereoCamera,
    header: Header,
    min_disparity_px: float,
    max_disparity_px: float,
) -> DisparityImage:
    """Wraps an `(H, W)` float32 disparity, NaN invalid, already corrected for the cx offset."""
    height, width = disparity_px.shape
    coded = cv2.patchNaNs(disparity_px.copy(), float(np.float32(min_disparity_px - 1.0)))
    return DisparityImage(
        header=header,
        image=image_message(coded, '32FC1', header),
        f=camera.fx,
        t=camera.baseline_m,
        valid_window=RegionOfInterest(x_offset=0, y_offset=0, height=height, width=width),
        min_disparity=float(min_disparity_px),
        max_disparity=float(max_disparity_px),
        delta_d=DELTA_DISPARITY_PX,
    )


def depth_message(depth_m: np.ndarray, encoding: str, header: Header) -> Image:
    """Wraps an `(H, W)` float32 depth in metres as 32FC1, or as 16UC1 millimetres."""
    if encoding == '16UC1':
        return image_message(depth_to_millimetres(depth_m), encoding, header)
    return image_message(depth_m, '32FC1', header)


def depth_camera_info(left_info: CameraInfo, header: Header) -> CameraInfo:
    """Returns the left camera_info under the depth image's header.

    Depth has the size of the left image, so ROI, binning, K and P hold for it as they are.
    """
    info = deepcopy(left_info)
    info.header = header
    return info


def points_message(
    depth_m: np.ndarray, rgb: np.ndarray, camera: StereoCamera, header: Header
) -> PointCloud2:
    """Wraps an organised cloud of the left optical frame: x, y, z, rgb; NaN without depth.

    Args:
        depth_m: `(H, W)` float32, metres.
        rgb: `(H, W, 3)` uint8, the rectified left image.
    """
    height, width = depth_m.shape
    z = np.where(np.isfinite(depth_m), depth_m, np.float32(np.nan))
    per_column = (np.arange(width, dtype=np.float32) - np.float32(camera.cx_left)) / camera.fx
    per_row = (np.arange(height, dtype=np.float32) - np.float32(camera.cy)) / camera.fy
    x = z * per_column.astype(np.float32)
    y = z * per_row.astype(np.float32)[:, np.newaxis]
    # 0x00RRGGBB in the bits of a float, as point cloud readers expect it.
    packed = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA).view('<u4')[..., 0] & np.uint32(0xFFFFFF)
    cloud = cv2.merge([x, y, z, packed.view(np.float32)])
    message = PointCloud2(
        header=header,
        height=height,
        width=width,
        fields=[
            PointField(name=name, offset=offset, datatype=PointField.FLOAT32, count=1)
            for name, offset in (('x', 0), ('y', 4), ('z', 8), ('rgb', 12))
        ],
        is_bigendian=False,
        point_step=16,
        row_step=16 * width,
        is_dense=False,
    )
    message.data = image_bytes(cloud)
    return message
