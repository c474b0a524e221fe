# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd demo`: the whole system once, for real, with figures and pictures at the end.

`stereo_kd_ros.node.live` plays and records, `stereo_kd_ros.demo` compares; here they are joined.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stereo_kd_ros.commands.console import (
    console,
    phase_bar,
    progress_bar,
    readable_errors,
    require_rclpy,
)


@readable_errors
def demo(
    bag: Annotated[
        Path | None, typer.Argument(help='A bag of your own; else a drive is generated.')
    ] = None,
    output: Annotated[
        Path, typer.Option('--output', '-o', help='Folder for bag, logs, picture and figures.')
    ] = Path('demo'),
    frames: Annotated[int, typer.Option(min=1, help='Length of the generated drive.')] = 60,
    rate: Annotated[
        float | None, typer.Option(help='Pairs per second; 10, or what the bag was recorded at.')
    ] = None,
    model: Annotated[str, typer.Option(help='ONNX file, or a shipped model.')] = 'small',
    provider: Annotated[str, typer.Option(help='auto, cpu, cuda, tensorrt or openvino.')] = 'auto',
    seed: Annotated[int, typer.Option(help='Another seed, another drive.')] = 7,
) -> None:
    """Play a stereo sequence through the live node and show what comes back.

    Prints a table (pairs, drops by cause, latency, errors beside OpenCV's SGBM) and writes
    demo.png (left, ground truth, SGBM, ours) and demo.json.
    """
    if rate is not None and not rate > 0:
        raise typer.BadParameter(f'{rate}: expected a positive number.', param_hint='--rate')
    require_rclpy()
    import shutil

    from stereo_kd_ros.bag import StereoBag
    from stereo_kd_ros.demo import SCHEMA, write_sequence
    from stereo_kd_ros.model import resolve_model
    from stereo_kd_ros.node.live import play_through_node
    from stereo_kd_ros.results import machine, write_json

    model_path = resolve_model(model).resolve()
    output.mkdir(parents=True, exist_ok=True)
    for name in ('drive', 'recording'):
        shutil.rmtree(output / name, ignore_errors=True)
    truth: Path | None = None
    if bag is None:
        truth = output / 'drive' / 'truth'
        bag = output / 'drive' / 'bag'
        with progress_bar() as progress:
            drive = write_sequence(output / 'drive', frames, rate or 10.0, seed=seed)
            for _ in progress.track(drive, total=frames, description='generating the drive'):
                pass
    else:
        with StereoBag(bag):
            pass  # what is wrong with it is said before anything else

    with phase_bar() as on_progress:
        run = play_through_node(bag, output, model_path, provider, rate, on_progress)
    result = {'schema': SCHEMA, 'bag': str(bag), 'model': str(model_path), **run.to_json()}
    result |= _compare(bag, output, model_path, truth, run.recorded_stamps)
    result['machine'] = machine()
    write_json(output / 'demo.json', result)
    _print_table(result)
    console.print(f'{output}/demo.png, {output}/demo.json', soft_wrap=True)


def _compare(
    bag: Path,
    output: Path,
    model: Path,
    truth: Path | None,
    recorded_stamps: dict[int, int],
) -> dict[str, Any]:
    """Score what was recorded beside SGBM and draw the strip."""
    from stereo_kd_ros.bag import Bag
    from stereo_kd_ros.demo import Score, compare, pictured, pooled, strip_row, write_strip
    from stereo_kd_ros.node.live import DISPARITY_TOPIC
    from stereo_kd_ros.results import percentiles

    with Bag(output / 'recording') as recording:
        count = recording.message_counts[DISPARITY_TOPIC]
    score, rows = Score(), []
    wanted = set(pictured(count))
    with progress_bar() as progress:
        frames = compare(bag, output / 'recording', DISPARITY_TOPIC, recorded_stamps, truth)
        for place, frame in enumerate(
            progress.track(frames, total=count, description='comparing with SGBM')
        ):
            score.add(frame)
            if place in wanted:
                rows.append(strip_row(frame, model.stem))
    write_strip(output / 'demo.png', rows)
    return {
        'ours': pooled(score.ours),
        'sgbm': pooled(score.sgbm),
        'difference_from_sgbm': pooled(score.agreement),
        'sgbm_ms': percentiles(score.sgbm_ms),
        'valid_fraction': round(sum(score.valid_fraction) / len(score.valid_fraction), 4),
    }


def _print_table(result: dict[str, Any]) -> None:
    from rich.table import Table

    width, height = result['image_size']
    flow = Table(title=f'{width}x{height} at {result["rate_hz"]:g} Hz on {result["provider"]}')
    flow.add_column('pairs')
    flow.add_column('', justify='right')
    flow.add_row('sent by the player', str(result['pairs_sent']))
    flow.add_row('received by the node', str(result['pairs_received']))
    flow.add_row('published', str(result['pairs_published']))
    flow.add_row('recorded', str(result['pairs_recorded']))
    dropped = {cause: number for cause, number in result['dropped'].items() if number}
    for cause, number in dropped.items():
        flow.add_row(f'dropped: {cause}', str(number))
    if not dropped:
        flow.add_row('dropped', '0')
    latency = result['stamp_to_publish_ms']
    for rank in ('p50', 'p95', 'p99'):
        flow.add_row(f'stamp to publish, {rank}', f'{latency[rank]:.1f} ms')
    console.print(flow)

    errors = Table(title='against the ground truth' if result['ours'] else 'no ground truth')
    errors.add_column('')
    for heading in ('EPE px', 'bad-3 %', 'time p50 ms'):
        errors.add_column(heading, justify='right')
    for name, scores, time_ms in (
        (Path(result['model']).stem, result['ours'], result['inference_ms']['p50']),
        ('OpenCV SGBM 3WAY', result['sgbm'], result['sgbm_ms']['p50']),
    ):
        errors.add_row(
            name,
            f'{scores["epe_px"]:.3f}' if scores else '–',
            f'{scores["bad3"]:.2f}' if scores else '–',
            f'{time_ms:.1f}' if time_ms is not None else '–',
        )
    if not result['ours'] and result['difference_from_sgbm']:
        difference = result['difference_from_sgbm']
        errors.add_row(
            'ours minus SGBM (where SGBM answers)',
            f'{difference["epe_px"]:.3f}',
            f'{difference["bad3"]:.2f}',
            '–',
        )
    console.print(errors)
