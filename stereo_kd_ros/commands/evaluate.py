# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd evaluate BAG -o DIR`: are these models good enough, here, on this camera?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stereo_kd_ros.commands.console import (
    console,
    error_console,
    phase_bar,
    progress_bar,
    readable_errors,
    require_rclpy,
)

if TYPE_CHECKING:
    import numpy as np

    from stereo_kd_ros.evaluation import Matcher, ModelMatcher, Options
    from stereo_kd_ros.gate import Gate
    from stereo_kd_ros.report import Picture

_WORST_FRAMES = 3
# Truth that covers less of a picture is drawn with larger points.
_SPARSE_SHARE = 0.3


@readable_errors
def evaluate(
    bag: Annotated[Path, typer.Argument(help='rosbag2 folder, .mcap, .db3 or ROS 1 .bag file.')],
    output: Annotated[Path, typer.Option('--output', '-o', help='Folder for the reports.')],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help='ONNX file or shipped model, or a foreign network as for --teacher; give several '
            'to compare them, NAME=FILE.onnx where two have one name.',
            show_default='small',
        ),
    ] = None,
    provider: Annotated[str, typer.Option(help='auto, cpu, cuda, tensorrt or openvino.')] = 'auto',
    truth: Annotated[
        str | None,
        typer.Option(
            help='Folder of <stamp>.pfm or .png, or a topic of the bag (DisparityImage, depth '
            'Image or compressedDepth, PointCloud2).'
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help='What the models should agree with: ONNX file, shipped model, or a foreign '
            'network as hitnet=FILE.onnx or NAME=FILE.onnx@ADAPTER.yaml.'
        ),
    ] = None,
    extrinsics: Annotated[
        Path | None,
        typer.Option(
            help='Of a PointCloud2: file with the 3x4 matrix [R t] from the LiDAR into the '
            'rectified left optical frame, m.',
            show_default="the bag's tf",
        ),
    ] = None,
    gate: Annotated[
        str | None, typer.Option(help='Such as "bad3<5 and p95_ms<33": else exit code 1.')
    ] = None,
    sgbm: Annotated[bool, typer.Option(help="Put OpenCV's SGBM beside them.")] = True,
    left_right: Annotated[
        bool, typer.Option(help='Left-right consistency; doubles the time.')
    ] = True,
    every: Annotated[int, typer.Option(min=1, help='Take each N-th pair.')] = 1,
    max_pairs: Annotated[int | None, typer.Option(min=1, help='Stop after so many pairs.')] = None,
    namespace: Annotated[
        str | None, typer.Option(help='Which camera, in a bag with several.')
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help='Largest stamp difference of a pair, in seconds.')
    ] = 0.0,
    realtime: Annotated[
        bool,
        typer.Option('--realtime', help='Also play it through the live node: drops, latency.'),
    ] = False,
) -> None:
    """Evaluate models on a bag, with or without ground truth.

    Replays every pair through the node's own code, without a wall clock. Prints a table and writes
    report.json and report.html. A run that was interrupted goes on where it was.
    """
    from stereo_kd_ros.evaluation import (
        FIGURES,
        LIVE_FIGURES,
        ModelMatcher,
        Options,
        SgbmMatcher,
        drawn_figures,
        open_matcher,
    )
    from stereo_kd_ros.evaluation import evaluate as run_evaluation
    from stereo_kd_ros.gate import Gate, GateError
    from stereo_kd_ros.report import write_html
    from stereo_kd_ros.results import write_json

    condition = None
    if gate is not None:
        try:
            condition = Gate(gate)
            condition.require_known(dict.fromkeys(FIGURES + (LIVE_FIGURES if realtime else ())))
        except GateError as error:
            raise typer.BadParameter(str(error), param_hint='--gate') from error
    if realtime:
        require_rclpy()

    models = [open_matcher(name, provider) for name in model or ['small']]
    foreign = [known.name for known in models if not isinstance(known, ModelMatcher)]
    if realtime and foreign:
        raise typer.BadParameter(
            f'{", ".join(foreign)} is no model of our contract, so the node cannot run it.',
            param_hint='--realtime',
        )
    matchers = [*models, SgbmMatcher()] if sgbm else models
    taught = open_matcher(teacher, provider) if teacher else None
    options = Options(
        namespace=namespace,
        tolerance_ns=round(tolerance * 1e9),
        truth=truth,
        extrinsics=str(extrinsics) if extrinsics else None,
        every=every,
        max_pairs=max_pairs,
        left_right=left_right,
    )
    with progress_bar() as progress:
        task = progress.add_task(f'evaluating {bag.name}', total=None)
        report = run_evaluation(
            bag,
            matchers,
            output,
            options,
            lambda done, total: progress.update(task, completed=done, total=total),
            taught,
        )
    if realtime:
        for known, result in zip(models, report['models']):
            assert isinstance(known, ModelMatcher)
            result['live'] = _live(bag, output / 'live' / known.name, known, provider, options)
    if condition is not None:
        report['gate'] = _judge(condition, report['models'][: len(models)])
    drawn = {matcher.name: drawn_figures(output / f'{matcher.name}.jsonl') for matcher in matchers}
    pictures = _pictures(bag, matchers, drawn, options, taught)
    write_json(output / 'report.json', report)
    write_html(output / 'report.html', report, drawn, pictures)
    _print_table(report)
    console.print(f'{output}/report.html, {output}/report.json', soft_wrap=True)
    if condition is not None and not report['gate']['passed']:
        raise typer.Exit(1)


def _live(
    bag: Path, folder: Path, model: ModelMatcher, provider: str, options: Options
) -> dict[str, Any]:
    """Play the bag through the live node and return its counts and latencies."""
    import shutil

    from stereo_kd_ros.node.live import play_through_node

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with phase_bar(f'{model.name}: ') as on_progress:
        run = play_through_node(
            bag,
            folder,
            model.path,
            provider,
            None,
            on_progress,
            namespace=options.namespace,
            tolerance_ns=options.tolerance_ns,
        )
    # Two float pictures of every pair: of a long bag more than the bag itself.
    shutil.rmtree(folder / 'recording')
    return run.to_json()


def _judge(gate: Gate, models: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether every model fulfils the condition. SGBM is a yardstick and is not judged."""
    verdicts = {}
    for model in models:
        figures = {**model, **_live_figures(model.get('live'))}
        verdicts[model['name']] = {
            'passed': gate.holds(figures),
            'absent': gate.absent(figures),
        }
    passed = all(verdict['passed'] for verdict in verdicts.values())
    return {'condition': gate.condition, 'passed': passed, 'models': verdicts}


def _live_figures(live: dict[str, Any] | None) -> dict[str, float | None]:
    if live is None:
        return {}
    sent = live['pairs_sent']
    return {
        'live_dropped_percent': 100.0 * (sent - live['pairs_published']) / sent,
        **{f'live_{rank}_ms': live['stamp_to_publish_ms'][rank] for rank in ('p50', 'p95', 'p99')},
    }


def _pictures(
    bag: Path,
    matchers: list[Matcher],
    drawn: dict[str, dict[str, np.ndarray]],
    options: Options,
    teacher: Matcher | None,
) -> list[Picture]:
    """The first model's worst pairs and its median one, computed once more."""
    import numpy as np

    from stereo_kd_ros.evaluation import selected_frames
    from stereo_kd_ros.html_page import strip
    from stereo_kd_ros.report import Picture
    from stereo_kd_ros.visualize import colorize_disparity, colorize_error

    ranked, figure = _ranked(drawn[matchers[0].name])
    chosen = {index: f'{figure} {value:.3g}' for index, value in ranked[:_WORST_FRAMES]}
    middle = ranked[len(ranked) // 2]
    kinds = dict.fromkeys(chosen, 'among the worst')
    if middle[0] not in chosen:
        chosen[middle[0]] = f'{figure} {middle[1]:.3g}'
        kinds[middle[0]] = 'the median'
    pictures = {}
    with progress_bar() as progress:
        task = progress.add_task('drawing the worst pairs', total=len(chosen))
        for index, frame, truth in selected_frames(bag, list(chosen), options):
            answers = [matcher.match(frame.left, frame.right) for matcher in matchers]
            reference = truth if truth is not None else answers[-1].disparity
            known = reference[np.isfinite(reference)]
            max_px = float(np.percentile(known, 99)) if known.size else 64.0
            images, labels = [frame.left], ['left']
            if truth is not None:
                images.append(colorize_disparity(_thick(truth), max_px))
                labels.append(f'truth, 0 to {max_px:.0f} px')
            if teacher is not None:
                told = teacher.match(frame.left, frame.right).disparity
                images.append(colorize_disparity(told, max_px))
                labels.append(f'teacher: {teacher.name}')
            for matcher, answer in zip(matchers, answers):
                images.append(colorize_disparity(answer.disparity, max_px))
                labels.append(matcher.name)
                if truth is not None:
                    # Colours go by the difference of the two, wherever truth is drawn.
                    error = _thick(np.abs(answer.dense - truth))
                    images.append(colorize_error(_thick(truth) + error, _thick(truth)))
                    labels.append(f'{matcher.name}: error')
            pictures[index] = Picture(
                strip(images, labels, 2 if frame.left.shape[1] > 2 * frame.left.shape[0] else 3),
                f'pair {index}, {kinds[index]} of {matchers[0].name}: {chosen[index]}',
            )
            progress.advance(task)
    return [pictures[index] for index in chosen if index in pictures]


def _thick(values: np.ndarray) -> np.ndarray:
    """Points (H, W) of a LiDAR as large as eyes need them, the largest on top; NaN is unknown."""
    import cv2
    import numpy as np

    known = np.isfinite(values)
    if known.mean() > _SPARSE_SHARE:
        return values
    spread = cv2.dilate(np.where(known, values, -1).astype(np.float32), np.ones((3, 3), np.uint8))
    return np.where(spread >= 0, spread, np.nan)


def _ranked(drawn: dict[str, np.ndarray]) -> tuple[list[tuple[int, float]], str]:
    """Pairs from worst to best by the best figure there is, and the name of that figure."""
    name = next(
        name
        for name in ('epe_px', 'left_right_percent', 'photometric_error', 'inference_ms')
        if len(drawn[name])
    )
    values = [(int(index), float(value)) for index, value in drawn[name]]
    figure = 'EPE px' if name == 'epe_px' else name
    return sorted(values, key=lambda item: -item[1]), figure


def _print_table(report: dict[str, Any]) -> None:
    from rich.table import Table

    from stereo_kd_ros.report import TABLE

    table = Table('', title=report['bag']['name'])
    for result in report['models']:
        table.add_column(result['name'], justify='right')
    for name, title, digits in TABLE:
        values = [result.get(name) for result in report['models']]
        if any(value is not None for value in values):
            table.add_row(
                title, *('–' if value is None else f'{value:.{digits}f}' for value in values)
            )
    console.print(table)
    for result in report['models']:
        if live := result.get('live'):
            latency = live['stamp_to_publish_ms']
            dropped = [f'{count} {cause}' for cause, count in live['dropped'].items() if count]
            console.print(
                f'{result["name"]} live: {live["pairs_published"]} of {live["pairs_sent"]} pairs '
                f'published (dropped: {", ".join(dropped) or "none"}), stamp to publish '
                + ', '.join(f'{rank} {value:.1f} ms' for rank, value in latency.items())
            )
    if report['options']['truth'] and not report['models'][0]['pairs_with_truth']:
        error_console.print(
            f'Not one pair has truth in {report["options"]["truth"]}: the stamps must be those of '
            'the left image, or the files be numbered from 0.',
            soft_wrap=True,
        )
    if not report['rectified_topics']:
        error_console.print('The images are of a raw topic and may not be rectified.')
    for name, verdict in report.get('gate', {}).get('models', {}).items():
        word = '[green]passed[/green]' if verdict['passed'] else '[red]not passed[/red]'
        absent = f' (not measured: {", ".join(verdict["absent"])})' if verdict['absent'] else ''
        console.print(f'gate: {name} {word}{absent}')
