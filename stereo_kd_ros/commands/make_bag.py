# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd make-bag`: folders of rectified frames to a rosbag2 that plays anywhere."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from stereo_kd_ros.commands.console import console, progress_bar, readable_errors


class Storage(str, Enum):
    """The two storage formats of rosbag2."""

    SQLITE3 = 'sqlite3'
    MCAP = 'mcap'


@readable_errors
def make_bag(
    left: Annotated[Path, typer.Option(help='Folder of rectified left pictures.')],
    right: Annotated[Path, typer.Option(help='Folder of right pictures, same file names.')],
    calib: Annotated[Path, typer.Option(help='KITTI or Middlebury calib.txt, or a JSON file.')],
    output: Annotated[Path, typer.Option('--output', '-o', help='Bag folder to be made.')],
    storage: Annotated[Storage, typer.Option(help='rosbag2 storage format.')] = Storage.SQLITE3,
    rate: Annotated[
        float | None,
        typer.Option(help='Pairs per second; else from file names (ns), times.txt, or 10.'),
    ] = None,
    namespace: Annotated[
        str, typer.Option(help='Topics become NAMESPACE/left/image_rect and so on.')
    ] = '/stereo',
    frame_id: Annotated[
        str, typer.Option(help='Optical frame of the left camera.')
    ] = 'left_camera_optical_frame',
    compress: Annotated[bool, typer.Option(help='Compress the bag with zstd.')] = False,
) -> None:
    """Write a rosbag2 with images and camera_info from two folders of rectified frames.

    Understands KITTI's layout (000000.png, calib.txt, times.txt) and EuRoC's (file name = stamp in
    nanoseconds).
    """
    from stereo_kd_ros.bag import StereoBagWriter, StereoTopics
    from stereo_kd_ros.sequence import ImageSequence, read_camera, read_picture

    sequence = ImageSequence.from_folders(left, right, rate)
    height, width = read_picture(sequence.frames[0].left).shape[:2]
    colour_kitti = left.name in ('image_2', 'image_02')
    camera = read_camera(calib, width, height, kitti_cameras=(2, 3) if colour_kitti else (0, 1))
    topics = StereoTopics.in_namespace(namespace)
    with (
        StereoBagWriter(
            output, storage.value, topics=topics, frame_id=frame_id, compressed=compress
        ) as bag,
        progress_bar() as progress,
    ):
        for stamp_ns, left_image, right_image in progress.track(
            sequence.images(), total=len(sequence), description='writing pairs'
        ):
            bag.write_pair(stamp_ns, left_image, right_image, camera)

    console.print(
        f'{len(sequence)} pairs of {width}x{height}, stamps from {sequence.times_from}, '
        f'f {camera.fx:.2f} px, baseline {camera.baseline_m:.4f} m'
    )
    console.print(f'{output} ({storage.value}): ' + ', '.join(topics.names), soft_wrap=True)
