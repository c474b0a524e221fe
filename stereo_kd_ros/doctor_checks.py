# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the doctor looks at: the limits of each check, what a bad value does, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass

from stereo_kd_ros.camera import ROW_TOLERANCE_PX
from stereo_kd_ros.pair_measures import FEWEST_MATCHES

USUAL_BASELINE_M = (0.005, 3.0)
"""Beyond these, a rig is more likely given in millimetres than of that size."""
SWAPPED_SHARE = 0.7
"""Of matches beyond infinity, from which on the eyes are swapped."""


@dataclass(frozen=True)
class Check:
    """Something that is looked at.

    Attributes:
        title: for a table.
        unit: of the value and its limits.
        warn, error: limits of the value; None where a check knows no such grade.
        meaning: what a bad value does to depth.
        remedy: what most likely mends it.
    """

    title: str
    unit: str
    warn: float | None
    error: float | None
    meaning: str
    remedy: str


CHECKS: dict[str, Check] = {
    'rectified': Check(
        'rectified images',
        '',
        0,
        None,
        'Rows of raw pictures do not line up, and P does not describe them.',
        'Record and use the output of rectification (image_rect), or run image_proc first.',
    ),
    'calibrated': Check(
        'K and P',
        'eyes',
        None,
        0,
        'Without K and P there is no focal length and no depth.',
        'Run a stereo calibration and check that the driver loads its file for both eyes.',
    ),
    'baseline': Check(
        'baseline',
        'm',
        USUAL_BASELINE_M[1],
        0,
        'Depth is f * B / d: a wrong B scales or voids all of it.',
        'Publish P[3] = -fx * baseline [px m] in the right camera_info and 0 in the left one.',
    ),
    'same_projection': Check(
        'one projection',
        'px',
        None,
        ROW_TOLERANCE_PX,
        'Rows and scales of the two eyes do not agree, so nothing matches along a row.',
        'Rectify both eyes with one stereo calibration, at one resolution and the same ROI rows.',
    ),
    'camera_info': Check(
        'camera_info',
        '',
        None,
        0,
        'No depth can be computed from this camera_info.',
        'Calibrate the pair again and publish what the calibration wrote.',
    ),
    'cx_offset': Check(
        'cx offset',
        'px',
        0.5,
        None,
        'A point at infinity has this raw disparity. Depth here allows for it; software that '
        'computes f * B / d from raw pixels does not.',
        'Calibrate with zero disparity at infinity (CALIB_ZERO_DISPARITY) if others use the pair.',
    ),
    'frame_ids': Check(
        'frame ids',
        '',
        0,
        None,
        'A rectified pair shares one optical frame; some software refuses two.',
        "Give both images and camera_infos the left camera's optical frame_id.",
    ),
    'image_size': Check(
        'image size',
        'px',
        None,
        0,
        'The calibration describes another picture, so focal length and centre are wrong.',
        'Let whatever resized or cropped the images publish the camera_info that goes with them.',
    ),
    'stamps': Check(
        'stamps',
        'ms',
        0,
        20,
        'What moves between the two exposures is matched at a wrong depth, and exact pairing '
        'finds no pair at all.',
        'Trigger both cameras together and stamp both images with the trigger; until then set '
        'approximate_sync.',
    ),
    'frozen': Check(
        'repeated frames',
        '%',
        5,
        50,
        'The same picture under a new stamp: depth is older than it says.',
        'Check the driver and its link; a frame grabber repeats its last buffer when it starves.',
    ),
    'identical_eyes': Check(
        'identical eyes',
        '%',
        None,
        50,
        'Both eyes show the very same picture, so every disparity is 0.',
        'Check the remaps: one camera is published on both topics.',
    ),
    'matches': Check(
        'matches',
        '',
        FEWEST_MATCHES,
        None,
        'Rows, sign of disparity, exposure and sharpness are measured from these.',
        'Show the camera something with texture, at different distances.',
    ),
    'disparity_sign': Check(
        'negative disparity',
        '%',
        15,
        100 * SWAPPED_SHARE,
        'Points lie beyond infinity, so their depth is lost.',
        'Check cx of both eyes: the pair is rectified with another calibration than it publishes.',
    ),
    'row_offset': Check(
        'row offset',
        'px',
        0.5,
        1.5,
        'Matching runs along rows: above half a pixel thin structures tear, above two it fails.',
        'Calibrate again: one camera has pitched against the other; check that it sits tight.',
    ),
    'row_tilt': Check(
        'row tilt',
        'px',
        0.5,
        1.5,
        'Rows agree in the middle and part towards the left and right rim.',
        'Calibrate again: one camera has rolled against the other; check that it sits tight.',
    ),
    'row_stretch': Check(
        'row stretch',
        'px',
        0.5,
        1.5,
        'Rows agree in the middle and part towards the upper and lower rim.',
        'Use one focal length for both eyes: check lens, focus, zoom and resize of each, then '
        'calibrate again.',
    ),
    'row_scatter': Check(
        'row scatter',
        'px',
        0.7,
        2,
        'Rows disagree in a way that no shift or turn explains.',
        'Check the distortion model, rolling shutter and the trigger of both cameras.',
    ),
    'exposure': Check(
        'exposure',
        'grey',
        15,
        60,
        'One eye is brighter, which costs matches where texture is weak.',
        'Share exposure and gain between the cameras, or let one follow the other.',
    ),
    'sharpness': Check(
        'sharpness ratio',
        '',
        1.6,
        None,
        'One eye is blurred against the other: fine structure is lost or smeared.',
        'Clean the blurred lens and focus it; check that both eyes are compressed alike.',
    ),
    'blocked_lens': Check(
        'blocked lens',
        '%',
        0.9,
        10,
        'A part of one eye never shows what the other one sees; depth there is invented.',
        'Clean that lens and remove what covers it.',
    ),
    'saturation': Check(
        'saturated',
        '%',
        20,
        60,
        'Pixels at the end of their range hold nothing to match.',
        'Lower (or raise) exposure and gain, or use auto-exposure.',
    ),
    'disparity_range': Check(
        'disparity',
        'px',
        None,
        None,
        'Where the matches lie; from it follow min_disparity, max_disparity and the depth range.',
        'Set the suggested parameters if the scene is typical.',
    ),
}
