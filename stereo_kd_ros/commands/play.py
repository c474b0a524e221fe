# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd play BAG`: publish a bag through rclpy where `ros2 bag play` is not installed."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from stereo_kd_ros.commands.console import (
    console,
    error_console,
    progress_bar,
    readable_errors,
    require_rclpy,
)


class Reliability(str, Enum):
    """What the publishers offer."""

    RELIABLE = 'reliable'
    BEST_EFFORT = 'best-effort'


@readable_errors
def play(
    bag: Annotated[Path, typer.Argument(help='rosbag2 folder, .mcap, .db3 or ROS 1 .bag file.')],
    rate: Annotated[float, typer.Option(help='2 plays twice as fast.')] = 1.0,
    loop: Annotated[bool, typer.Option('--loop', help='Begin again at the end.')] = False,
    qos: Annotated[Reliability, typer.Option(help='What is offered.')] = Reliability.RELIABLE,
    topic: Annotated[
        list[str] | None, typer.Option(help='Only this topic; may be given several times.')
    ] = None,
    clock: Annotated[
        bool, typer.Option('--clock', help="Publish the bag's time on /clock.")
    ] = False,
    restamp: Annotated[
        bool,
        typer.Option('--restamp', help='Stamp messages with the time at which they go out.'),
    ] = False,
    restamp_tolerance: Annotated[
        float,
        typer.Option(min=0.0, help='Stamps this near keep their distance, s.', hidden=True),
    ] = 0.0,
    wait: Annotated[
        float, typer.Option(help='Wait up to this many seconds for subscribers to the images.')
    ] = 0.0,
    hold_until: Annotated[
        Path | None, typer.Option(help='Begin when this file exists.', hidden=True)
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help='Write recorded and published stamps as JSON lines.')
    ] = None,
) -> None:
    """Publish a bag on live topics, in its own time."""
    if not rate > 0:
        raise typer.BadParameter(f'{rate}: expected a positive number.', param_hint='--rate')

    import json
    from contextlib import ExitStack, suppress
    from dataclasses import asdict

    from stereo_kd_ros.bag import COMPRESSED_IMAGE, IMAGE, Bag, BagError
    from stereo_kd_ros.memory import keep_freed_memory
    from stereo_kd_ros.transport import apply_fastdds_profile

    require_rclpy()
    apply_fastdds_profile()
    keep_freed_memory()
    from stereo_kd_ros.node.player import open_player

    sent = 0
    late_ms = 0.0
    with ExitStack() as stack:
        source = stack.enter_context(Bag(bag))
        unknown = sorted(set(topic or ()) - set(source.topics))
        if unknown:
            raise BagError(
                f'{bag} has no topic {", ".join(unknown)}; it has {", ".join(source.topics)}.'
            )
        player = stack.enter_context(
            open_player(source, topics=topic or None, reliable=qos is Reliability.RELIABLE)
        )
        for name, reason in player.skipped.items():
            error_console.print(f'not played: {name}: {reason}', markup=False)
        if wait > 0:
            image_types = (IMAGE, COMPRESSED_IMAGE)
            images = [name for name in player.publishers if source.topics[name] in image_types]
            for name in player.wait_for_subscribers(images, wait):
                error_console.print(f'nobody listens to {name} after {wait:g} s', markup=False)
        if hold_until is not None:
            player.wait_for_file(hold_until)
        log_file = stack.enter_context(log.open('w')) if log else None
        total = sum(source.message_counts[name] for name in player.publishers)
        progress = stack.enter_context(progress_bar())
        # Ctrl-C is how a loop ends, so it is no failure.
        stack.enter_context(suppress(KeyboardInterrupt))
        while True:
            task = progress.add_task(f'playing {bag.name}', total=total)
            for message in player.play(
                rate=rate,
                restamp_now=restamp,
                clock=clock,
                tolerance_ns=round(restamp_tolerance * 1e9),
            ):
                sent += 1
                late_ms = max(late_ms, message.late_ms)
                progress.advance(task)
                if log_file is not None:
                    log_file.write(json.dumps(asdict(message)) + '\n')
                    log_file.flush()
            if not loop or not player.running:
                break
            progress.remove_task(task)
        player.flush()
    console.print(f'{sent} messages published, at most {late_ms:.0f} ms late')
