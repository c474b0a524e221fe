# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What depth costs as the task grows: pixels, disparity range, cameras, and the start.

    python benchmarks/scale.py --json scale.json --plot scale.png [--provider cpu] [--model small]

    pixels      320x240 to 1920x1080, one engine; ms over pixels to which power
    range       Kestrels of 64 to 256 px with random weights (needs torch; left out without)
    cameras     1 to 8 rigs on the same cores, a thread and an engine each: pairs per second of all
    start       a process of its own: opening the model, the first pair, warming up; with an empty
                cache and with a filled one; its memory

Times are processor time of one pair on one thread, the least of the runs, so that a busy machine
disturbs them little; pairs per second of several cameras are time on the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from stereo_kd_ros.benchmark import machine, write_report
from stereo_kd_ros.engine import StereoEngine, usable_cores
from stereo_kd_ros.procedural import render_pair

SIZES = ((320, 240), (640, 480), (960, 540), (1280, 720), (1920, 1080))
RANGES_PX = (64, 128, 192, 256)
CAMERAS = (1, 2, 4, 8)
START = """
import json, sys, time
begun = time.perf_counter()
from stereo_kd_ros.engine import StereoEngine
import numpy as np
imported = time.perf_counter()
engine = StereoEngine(sys.argv[1], sys.argv[2], threads=1)
opened = time.perf_counter()
engine.warm_up(480, 640, runs=1)
warm = time.perf_counter()
blank = np.zeros((480, 640, 3), np.uint8)
engine.infer(blank, blank)
from stereo_kd_ros.subjects import resident_mb
print(json.dumps({
    'provider': engine.provider,
    'import_ms': 1e3 * (imported - begun),
    'open_ms': 1e3 * (opened - imported),
    'warm_up_ms': 1e3 * (warm - opened),
    'next_pair_ms': 1e3 * (time.perf_counter() - warm),
    'memory_mb': resident_mb('VmHWM'),
}))
"""


def least_ms(engine: StereoEngine, height: int, width: int, runs: int) -> float:
    """Least processor time of one pair [ms]."""
    pair = render_pair(0, height, width, min(192, width / 2))
    engine.warm_up(height, width, runs=1)
    taken = []
    for _ in range(runs):
        started = time.process_time()
        engine.infer(pair.left, pair.right)
        taken.append(1e3 * (time.process_time() - started))
    return min(taken)


def pixels(model: str, provider: str, runs: int) -> dict[str, Any]:
    """Cost against the number of pixels, and to which power of it (1 is proportional)."""
    engine = StereoEngine(model, provider, threads=1)
    rows = []
    for width, height in SIZES:
        rows.append(
            {'width': width, 'height': height, 'least_ms': least_ms(engine, height, width, runs)}
        )
        print(f'{width}x{height}: {rows[-1]["least_ms"]:.1f} ms', flush=True)
    megapixels = np.array([row['width'] * row['height'] / 1e6 for row in rows])
    times = np.array([row['least_ms'] for row in rows])
    exponent, _ = np.polyfit(np.log(megapixels), np.log(times), 1)
    return {
        'provider': engine.provider,
        'precision': engine.precision,
        'rows': rows,
        'ms_per_megapixel': (times / megapixels).tolist(),
        'exponent': float(exponent),
    }


def disparity_range(provider: str, runs: int) -> list[dict[str, Any]]:
    """Cost against the range of disparities, with random weights."""
    try:
        from stereo_kd_training.export import export_network
        from stereo_kd_training.networks import create
    except ImportError as error:
        print(f'range: not measured, {error}', file=sys.stderr)
        return []
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for range_px in RANGES_PX:
            path = Path(folder) / f'{range_px}.onnx'
            network = create('kestrel', max_disparity_px=range_px).eval()
            export_network(network, path, sizes=((64, 96),))
            engine = StereoEngine(path, provider, threads=1)
            rows.append(
                {'max_disparity_px': range_px, 'least_ms': least_ms(engine, 480, 640, runs)}
            )
            print(f'range {range_px} px: {rows[-1]["least_ms"]:.1f} ms', flush=True)
    return rows


def cameras(model: str, provider: str, seconds: float) -> list[dict[str, Any]]:
    """Pairs per second of several rigs at 640x480, each with a thread and an engine of its own."""
    pair = render_pair(0, 480, 640)
    rows = []
    for count in CAMERAS:
        engines = [StereoEngine(model, provider, threads=1) for _ in range(count)]
        for engine in engines:
            engine.warm_up(480, 640, runs=1)
        done = [0] * count
        ends_at = time.perf_counter() + seconds

        def work(number: int, engine: StereoEngine, ends_at=ends_at, done=done) -> None:
            while time.perf_counter() < ends_at:
                engine.infer(pair.left, pair.right)
                done[number] += 1

        started = time.perf_counter()
        threads = [
            threading.Thread(target=work, args=(number, engine))
            for number, engine in enumerate(engines)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lasted = time.perf_counter() - started
        rows.append(
            {
                'cameras': count,
                'pairs_per_second': sum(done) / lasted,
                'least_of_one': min(done) / lasted,
                'most_of_one': max(done) / lasted,
            }
        )
        print(f'{count} cameras: {rows[-1]["pairs_per_second"]:.1f} pairs/s in all', flush=True)
        for engine in engines:
            engine.close()
    return rows


def start(model: str, provider: str) -> list[dict[str, Any]]:
    """Two starts of a process, the first with an empty cache."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for cache in ('empty', 'filled'):
            environment = {**os.environ, 'STEREO_KD_CACHE': folder}
            answer = subprocess.run(
                [sys.executable, '-c', START, model, provider],
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
                check=True,
            ).stdout
            rows.append({'cache': cache, **json.loads(answer.splitlines()[-1])})
            print(f'start, {cache} cache: {rows[-1]}', flush=True)
    return rows


def plot(report: dict[str, Any], path: Path) -> None:
    """The three curves side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout='constrained')
    axes = figure.subplots(1, 3)
    of = report['pixels']
    x = [row['width'] * row['height'] / 1e6 for row in of['rows']]
    axes[0].plot(x, [row['least_ms'] for row in of['rows']], 'o')
    axes[0].plot([0.0, max(x)], [0.0, of['ms_per_megapixel'][0] * max(x)], '--')
    axes[0].set(
        title=f'pixels to the power of {of["exponent"]:.2f} (dashed: of 1)',
        xlabel='megapixels',
        ylabel='processor time of a pair [ms]',
    )
    rows = report['range']
    axes[1].plot(
        [row['max_disparity_px'] for row in rows], [row['least_ms'] for row in rows], 'o-'
    )
    axes[1].set(title='640x480, random weights', xlabel='largest disparity [px]')
    rows = report['cameras']
    axes[2].plot([row['cameras'] for row in rows], [row['pairs_per_second'] for row in rows], 'o-')
    axes[2].set(
        title=f'640x480, {report["cores"]} cores', xlabel='cameras', ylabel='pairs per second, all'
    )
    for each in axes:
        each.set_ylim(bottom=0)
        each.grid(alpha=0.3)
    figure.suptitle(f'{report["machine"]["processor"]}, {of["provider"]} in {of["precision"]}')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='small')
    parser.add_argument('--provider', default='cpu')
    parser.add_argument('--runs', type=int, default=5)
    parser.add_argument('--seconds', type=float, default=3.0, help='of each number of cameras')
    parser.add_argument('--json', type=Path)
    parser.add_argument('--plot', type=Path)
    arguments = parser.parse_args()
    model, provider = arguments.model, arguments.provider
    report = {
        'schema': 1,
        'machine': machine(),
        'cores': usable_cores(),
        'model': Path(model).stem,
        'start': start(model, provider),
        'pixels': pixels(model, provider, arguments.runs),
        'range': disparity_range(provider, arguments.runs),
        'cameras': cameras(model, provider, arguments.seconds),
    }
    print(f'time grows as pixels to the power of {report["pixels"]["exponent"]:.2f}')
    if arguments.json:
        write_report(report, arguments.json)
    if arguments.plot:
        plot(report, arguments.plot)


if __name__ == '__main__':
    main()
