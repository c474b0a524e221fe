# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd run`: the stereo node in this terminal, where `ros2 launch` is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stereo_kd_ros.commands.console import readable_errors, require_rclpy


@readable_errors
def run(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help='ONNX file, or a shipped model.')] = None,
    provider: Annotated[
        str | None, typer.Option(help='auto, cpu, cuda, tensorrt or openvino.')
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help='Namespace of the node and its topics, such as /stereo.')
    ] = None,
    params_file: Annotated[
        Path | None, typer.Option(help='Parameters as YAML; config/stereo.yaml shows them all.')
    ] = None,
) -> None:
    """Run the stereo node until Ctrl-C.

    Whatever follows goes to ROS as it is:
    [bold]stereo-kd run --model small --ros-args -r left/image_rect:=/cam/left/image[/bold]
    """
    import sys

    from stereo_kd_ros.transport import apply_fastdds_profile

    if params_file is not None and not params_file.is_file():
        raise typer.BadParameter(f'{params_file}: no such file.', param_hint='--params-file')
    require_rclpy()
    apply_fastdds_profile()
    arguments = node_arguments(
        model=model, provider=provider, namespace=namespace, params_file=params_file
    )
    from stereo_kd_ros.node.main import main

    sys.exit(main([*arguments, *context.args]))


def node_arguments(
    *,
    model: str | None = None,
    provider: str | None = None,
    namespace: str | None = None,
    params_file: Path | None = None,
    parameters: dict[str, str] | None = None,
) -> list[str]:
    """The node's command line for these settings, in ROS's own syntax."""
    settings = dict(parameters or {})
    if model is not None:
        # A file is named from here, whatever folder the node may think it is in.
        settings['model'] = str(Path(model).resolve()) if Path(model).is_file() else model
    if provider is not None:
        settings['provider'] = provider
    arguments: list[str] = []
    if namespace is not None:
        arguments += ['-r', f'__ns:=/{namespace.strip("/")}']
    if params_file is not None:
        arguments += ['--params-file', str(params_file)]
    for name, value in settings.items():
        arguments += ['-p', f'{name}:={value}']
    return ['--ros-args', *arguments, '--'] if arguments else []
