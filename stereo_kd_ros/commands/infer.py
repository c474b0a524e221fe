# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd infer LEFT RIGHT -o OUT`: a rectified pair of pictures to disparity and depth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stereo_kd_ros.commands.console import console, readable_errors


@readable_errors
def infer(
    left: Annotated[Path, typer.Argument(help='Rectified left picture.')],
    right: Annotated[Path, typer.Argument(help='Rectified right picture, of the same size.')],
    output: Annotated[Path, typer.Option('--output', '-o', help='Folder for the results.')],
    calib: Annotated[
        Path | None,
        typer.Option(help='KITTI or Middlebury calib.txt or a JSON file: also writes depth.'),
    ] = None,
    model: Annotated[str, typer.Option(help='ONNX file, or a shipped model.')] = 'small',
    provider: Annotated[str, typer.Option(help='auto, cpu, cuda, tensorrt or openvino.')] = 'auto',
    max_disparity: Annotated[
        float | None,
        typer.Option(min=1.0, help='Disparity at the warm end of the colours; else the largest.'),
    ] = None,
) -> None:
    """Compute the disparity of two rectified pictures.

    Writes disparity.png (colours), disparity.pfm (pixels), confidence.png (0 to 255) and, with a
    calibration, depth.png (16 bits, millimetres, 0 = no depth).
    """
    import cv2
    import numpy as np

    from stereo_kd_ros.disparity_io import write_depth_png, write_pfm
    from stereo_kd_ros.engine import StereoEngine
    from stereo_kd_ros.model import resolve_model
    from stereo_kd_ros.sequence import SequenceError, read_camera, read_picture
    from stereo_kd_ros.visualize import colorize_disparity

    left_rgb, right_rgb = (read_picture(path, colour=True) for path in (left, right))
    height, width = left_rgb.shape[:2]
    if left_rgb.shape != right_rgb.shape:
        raise SequenceError(
            f'{left} is {width}x{height} and {right} is '
            f'{right_rgb.shape[1]}x{right_rgb.shape[0]}: a rectified pair has one size. '
            'Give both pictures of one pair, rectified together.'
        )
    camera = read_camera(calib, width, height) if calib else None
    engine = StereoEngine(resolve_model(model), provider=provider)
    engine.warm_up(height, width)
    result = engine.infer(left_rgb, right_rgb)

    output.mkdir(parents=True, exist_ok=True)
    picture = colorize_disparity(result.disparity, max_disparity)
    _write_picture(output / 'disparity.png', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    write_pfm(output / 'disparity.pfm', result.disparity)
    _write_picture(
        output / 'confidence.png', np.rint(result.confidence * 255).clip(0, 255).astype(np.uint8)
    )
    depth = None
    if camera is not None:
        depth = camera.disparity_to_depth(camera.disparity_from_pixels(result.disparity))
        write_depth_png(output / 'depth.png', depth)

    low, median, high = np.nanpercentile(result.disparity, (1, 50, 99))
    console.print(
        f'{width}x{height} in {result.inference_ms:.1f} ms on {engine.provider}; '
        f'disparity {low:.1f} .. {median:.1f} .. {high:.1f} px (1 %, median, 99 %)'
    )
    if depth is not None and np.isfinite(depth).any():
        console.print(f'median depth {np.median(depth[np.isfinite(depth)]):.2f} m')
    console.print(f'written to {output}', soft_wrap=True)


def _write_picture(path: Path, pixels: object) -> None:
    import cv2

    encoded, content = cv2.imencode(path.suffix, pixels)
    if not encoded:
        raise OSError(f'{path}: OpenCV could not encode the picture.')
    path.write_bytes(content.tobytes())
