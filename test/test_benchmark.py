# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark: real subjects in turn, an honest floor, and a guard that fails when slower."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tiny_models import write_block_matcher
from typer.testing import CliRunner

from stereo_kd_ros import benchmark as benchmarking
from stereo_kd_ros.bag import BagError, StereoBagWriter, StereoTopics
from stereo_kd_ros.benchmark import (
    FIRST_EPE_SEED,
    GeneratedPairs,
    baseline_for,
    benchmark,
    check_plot,
    compare_with,
    floor_ms,
    measure_epe,
    not_compared,
    plot_report,
    read_report,
    time_in_turn,
    write_report,
)
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.commands import bench as bench_command
from stereo_kd_ros.commands.main import app
from stereo_kd_ros.disparity_io import write_pfm
from stereo_kd_ros.engine import StereoEngine
from stereo_kd_ros.model import ModelError
from stereo_kd_ros.peak import Peak, PeakError
from stereo_kd_ros.procedural import render_pair
from stereo_kd_ros.processor import maker_of
from stereo_kd_ros.subjects import BenchmarkError, Subject, open_peer

ROW_KEYS = {
    'subject', 'provider', 'width', 'height', 'threads', 'p50_ms', 'p99_ms', 'fps', 'floor_ms',
    'epe',
}  # fmt: skip
HEADER_KEYS = {
    'processor', 'cores', 'load_1min', 'load_1min_after', 'system', 'python', 'onnxruntime',
    'opencv', 'numpy', 'stereo_kd_ros', 'stolen_percent',
}  # fmt: skip


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return write_block_matcher(tmp_path_factory.mktemp('models') / 'tiny.onnx', 8)


@pytest.fixture(scope='module')
def report(model):
    return benchmark(
        [str(model)], ['cpu', 'tensorrt'], ['bm'], [(256, 64)], [1], runs=3, epe_pairs=2
    )


def test_every_subject_has_a_row_that_says_what_ran(report):
    assert [row['subject'] for row in report['rows']] == ['bm', 'block_matcher']
    for row in report['rows']:
        assert not ROW_KEYS - set(row)
        assert 0 < row['min_ms'] <= row['p50_ms'] <= row['p99_ms']
        assert row['fps'] == pytest.approx(1e3 / row['p50_ms'], rel=0.01)
        assert (row['width'], row['height'], row['threads'], row['runs']) == (256, 64, 1, 3)
    assert report['rows'][0]['ratio_to_reference'] == 1.0
    assert [row['provider'].split()[0] for row in report['rows']] == ['opencv', 'cpu']
    assert [row['precision'] for row in report['rows']] == ['', 'fp32']
    assert not HEADER_KEYS - set(report['machine'])
    # Every subject takes some memory, told from that of the others by a process of its own.
    assert all(0 <= row['memory_mb'] < 2000 for row in report['rows'])
    assert any(row['memory_mb'] > 0.1 for row in report['rows'])


def test_a_provider_that_does_not_load_is_told_not_measured(report):
    assert [item['provider'] for item in report['skipped']] == ['tensorrt']
    assert report['skipped'][0]['reason']


def test_a_model_that_is_not_there_is_an_error_before_anything_is_timed(model):
    with pytest.raises(ModelError, match='absent'):
        benchmark([str(model), 'absent'], ['cpu'], ['bm'], [(256, 64)], [1], runs=3)


@pytest.mark.parametrize(
    ('given', 'error', 'told'),
    [
        ({'providers': ['cpu', 'gpu']}, BenchmarkError, "no provider 'gpu'"),
        ({'providers': ['openvino:fp64']}, BenchmarkError, "precision 'fp64'"),
        ({'providers': ['cpu:bf16']}, BenchmarkError, 'bf16 needs the provider openvino'),
        ({'peers': ['bm', 'sgm']}, BenchmarkError, "no peer 'sgm'"),
        ({'peers': ['tensorflow:psmnet']}, BenchmarkError, 'torch:NETWORK'),
    ],
)
def test_a_typing_error_is_told_before_anything_is_timed(model, monkeypatch, given, error, told):
    monkeypatch.setattr(benchmarking, 'time_in_turn', lambda *_, **__: pytest.fail('timed'))
    with pytest.raises(error, match=told):
        benchmark([str(model)], **{'providers': ['cpu'], 'peers': ['bm'], **given})


def test_two_files_of_one_name_are_told_apart_and_keep_their_errors(model, tmp_path):
    other = write_block_matcher(tmp_path / 'other.onnx', 2)
    report = benchmark(
        [str(model), str(other)], ['cpu'], [], [(128, 64)], [1], 3, epe_pairs=1, memory=False
    )
    near, far = report['rows']
    assert (near['subject'], far['subject']) == (
        'block_matcher (tiny.onnx)',
        'block_matcher (other.onnx)',
    )
    assert near['epe'] != far['epe']
    assert report['reference'] is None
    assert near['ratio_to_reference'] is None


def test_who_fails_at_a_size_is_told_and_the_others_go_on(tmp_path):
    low = write_block_matcher(tmp_path / 'low.onnx', 4, fails_above_px=64)
    report = benchmark(
        [str(low)], ['cpu'], ['bm'], [(64, 64), (64, 96)], [1], runs=3, memory=False
    )
    assert [(row['subject'], row['height']) for row in report['rows']] == [
        ('bm', 64), ('block_matcher', 64), ('bm', 96),
    ]  # fmt: skip
    (told,) = report['skipped']
    assert told['subject'] == 'block_matcher'
    assert 'at 64x96' in told['reason']


def test_what_is_reported_is_what_ran_last_and_its_own_peak_is_the_floor(monkeypatch):
    """An engine asked for `auto` may choose another provider for each size."""
    ran = [('cpu', 'fp32')]

    def prepare(height: int, width: int) -> None:
        ran[0] = ('openvino', 'bf16') if height > 64 else ('cpu', 'fp32')

    net = Subject(
        'net', 'cpu', lambda *_: None, 640 * 480, prepare=prepare, precision='fp32',
        ran=lambda: ran[0],
    )  # fmt: skip
    asked = []

    def peak(threads: int, provider: str, precision: str) -> Peak:
        asked.append((threads, provider, precision))
        if precision == 'bf16':
            return Peak(threads, 4e-6, 1e9, provider, precision)
        return Peak(threads, 1e-6, 1e9, provider, precision)

    monkeypatch.setattr(benchmarking, 'measure_peak', peak)
    monkeypatch.setattr(benchmarking.SubjectSpec, 'open', lambda *_: net)
    monkeypatch.setattr(benchmarking, 'resolve_model', lambda name: name)
    report = benchmark(
        ['net'], ['auto'], [], [(64, 64), (64, 128), (128, 64)], [1], runs=3, memory=False
    )
    rows = report['rows']
    assert [row['provider'] for row in rows] == ['cpu', 'openvino', 'cpu']
    assert [row['precision'] for row in rows] == ['fp32', 'bf16', 'fp32']
    # One MAC a pixel at 1000 or 4000 MACs a second.
    assert [row['floor_ms'] for row in rows] == [
        pytest.approx(4096), pytest.approx(2048), pytest.approx(8192),
    ]  # fmt: skip
    assert asked == [(1, 'cpu', 'fp32'), (1, 'openvino', 'bf16')]


def test_without_a_peak_there_is_no_floor_and_a_reason(model, monkeypatch):
    def none(*_):
        raise PeakError('no such unit')

    monkeypatch.setattr(benchmarking, 'measure_peak', none)
    # The block matcher states no MACs, so a subject with some stands in its place.
    net = Subject('net', 'cpu', lambda *_: None, 1000, precision='fp32')
    monkeypatch.setattr(benchmarking.SubjectSpec, 'open', lambda *_: net)
    report = benchmark([str(model)], ['cpu'], [], [(64, 64)], [1], runs=3, memory=False)
    assert report['rows'][0]['floor_ms'] is None
    assert report['skipped'] == [{'subject': 'floor', 'provider': 'cpu', 'reason': 'no such unit'}]


def test_a_peer_with_a_clock_of_its_own_is_timed_by_that():
    image = np.zeros((4, 4, 3), np.uint8)
    peer = Subject('far', 'test', lambda *_: None, own_ms=lambda: 123.0)
    assert time_in_turn([peer], image, image, runs=3) == [[123.0] * 3]


def test_subjects_run_in_turn_and_the_warm_up_is_not_counted():
    order: list[str] = []
    subjects = [Subject(name, 'test', lambda *_, name=name: order.append(name)) for name in 'ab']
    image = np.zeros((4, 4, 3), np.uint8)
    times = time_in_turn(subjects, image, image, runs=3)
    assert order == ['a', 'a', 'b', 'b', 'a', 'b', 'a', 'b', 'a', 'b']
    assert [len(taken) for taken in times] == [3, 3]


def test_a_subject_is_told_the_size_before_it_is_timed():
    told: list = []
    subject = Subject(
        'net', 'test', lambda *_: told.append('run'), prepare=lambda *size: told.append(size)
    )
    image = np.zeros((4, 6, 3), np.uint8)
    time_in_turn([subject], image, image, runs=1)
    assert told == [(4, 6), 'run', 'run', 'run']


def test_the_floor_is_the_larger_of_arithmetic_and_traffic():
    def nothing(*_):
        return None

    subject = Subject('net', 'cpu', nothing, macs_640x480=3_000_000_000, weight_bytes=0)
    fast_memory = Peak(2, gmacs_per_second=100.0, gigabytes_per_second=1e6)
    assert floor_ms(subject, 640, 480, fast_memory) == pytest.approx(30.0)
    assert floor_ms(subject, 1280, 960, fast_memory) == pytest.approx(120.0)
    # 14 bytes a pixel through 0.001 GB/s, whatever the arithmetic.
    slow_memory = Peak(2, gmacs_per_second=1e9, gigabytes_per_second=1e-3)
    assert floor_ms(subject, 100, 10, slow_memory) == pytest.approx(14.0)
    assert floor_ms(Subject('sgbm', 'opencv', nothing), 640, 480, fast_memory) is None


def test_the_error_is_that_against_the_exact_truth(report):
    assert report['epe_pairs'] == 2
    # Both match blocks; neither is near perfect on pairs this small, nor far off.
    for row in report['rows']:
        assert 0 < row['epe'] < 40


def test_errors_are_pooled_over_pairs_and_left_out_without_a_disparity():
    truths = [
        render_pair(seed, 64, 128, 64).disparity for seed in (FIRST_EPE_SEED, FIRST_EPE_SEED + 1)
    ]
    answers = iter((truths[0] + 1, truths[1] - 3))
    subjects = [
        Subject('off', 'test', lambda *_: None, disparity=lambda *_: next(answers)),
        Subject('mute', 'test', lambda *_: None),
    ]
    counted = [((truth > 0) & np.isfinite(truth)).sum() for truth in truths]
    off, mute = measure_epe(subjects, GeneratedPairs(2), 128, 64)
    assert off == pytest.approx((counted[0] * 1 + counted[1] * 3) / sum(counted), rel=1e-5)
    assert mute is None
    assert measure_epe(subjects, GeneratedPairs(), 128, 64) == [None, None]


def test_a_bag_with_truth_gives_size_and_error(model, tmp_path):
    camera = StereoCamera.from_intrinsics(fx=90.0, baseline_m=0.1, width=128, height=64)
    bag, truth, report = tmp_path / 'drive', tmp_path / 'truth', tmp_path / 'bench.json'
    truth.mkdir()
    pairs = [render_pair(seed, 64, 128, 12) for seed in range(3)]
    with StereoBagWriter(bag, topics=StereoTopics.in_namespace('/stereo')) as writer:
        for index, pair in enumerate(pairs):
            writer.write_pair(10**9 * (index + 1), pair.left, pair.right, camera)
            if index:
                write_pfm(truth / f'{10**9 * (index + 1)}.pfm', pair.disparity)
    words = f'bench --models {model} --peers bm --data {bag} --threads 1 --runs 3 --json {report}'
    result = CliRunner().invoke(app, [*words.split(), '--truth', str(truth)])
    assert result.exit_code == 0, result.output
    told = json.loads(report.read_text())
    assert told['data'] == 'drive'
    assert [(row['width'], row['height']) for row in told['rows']] == [(128, 64)] * 2
    # Over the two pairs that have truth, as the engine itself gives it.
    engine = StereoEngine(model, 'cpu', threads=1)
    errors = [
        np.abs(engine.infer(pair.left, pair.right).disparity - pair.disparity)[pair.disparity > 0]
        for pair in pairs[1:]
    ]
    expected = np.concatenate(errors).mean()
    assert told['rows'][1]['epe'] == pytest.approx(expected, abs=0.01)


def test_truth_without_a_bag_and_a_bag_without_its_truth_are_errors(model, tmp_path):
    with pytest.raises(BenchmarkError, match='of no bag'):
        benchmark([str(model)], truth='/truth')
    with pytest.raises(BagError):
        benchmark([str(model)], data=tmp_path / 'absent')


def test_a_network_of_others_is_a_peer(tmp_path):
    onnx = pytest.importorskip('onnx', reason='builds its network with onnx')
    one = onnx.helper.make_tensor_value_info('input', 1, ['n', 'h', 'w', 2])
    answer = onnx.helper.make_tensor_value_info('out', 1, ['n', 'h', 'w', 1])
    node = onnx.helper.make_node('ReduceMax', ['input'], ['out'], axes=[3])
    opset = [onnx.helper.make_opsetid('', 17)]
    graph = onnx.helper.make_graph([node], 'tiny', [one], [answer])
    network = onnx.helper.make_model(graph, opset_imports=opset)
    network.ir_version = 8
    path = tmp_path / 'tiny.onnx'
    onnx.save(network, path)
    report = benchmark(
        [],
        peers=[f'hitnet={path}', 'bm'],
        sizes=[(128, 64)],
        threads=[1],
        runs=3,
        epe_pairs=1,
        memory=False,
    )
    assert report['reference'] == 'hitnet'
    assert (report['rows'][0]['subject'], report['rows'][0]['provider']) == ('hitnet', 'cpu')
    # It answers with a brightness in [0, 1], so its error is about the mean disparity.
    mean = render_pair(FIRST_EPE_SEED, 64, 128, 64).disparity.mean()
    assert mean - 1 <= report['rows'][0]['epe'] <= mean


def test_the_guard_names_what_got_slower(report, tmp_path):
    path = tmp_path / 'report.json'
    write_report(report, path)
    before = read_report(path)
    assert compare_with(report, before) == []
    faster_before = copy.deepcopy(before)
    faster_before['rows'][1]['ratio_to_reference'] /= 2
    (sentence,) = compare_with(report, faster_before)
    assert 'block_matcher on cpu at 256x64' in sentence
    # A quarter is borne, more is not.
    for growth, told in ((1.2, 0), (1.3, 1)):
        grown = copy.deepcopy(before)
        grown['rows'][1]['ratio_to_reference'] *= growth
        assert len(compare_with(grown, before)) == told
    other = copy.deepcopy(before)
    other['rows'][1]['width'] = 1
    with pytest.raises(BenchmarkError, match='in common'):
        compare_with(report, other)


def test_of_a_folder_the_baseline_of_such_a_processor_counts(report, tmp_path):
    kinds = (('one', 'AMD EPYC', 'AVX2'), ('two', 'Intel(R) Xeon(R)', 'AVX2'), ('arm', '', 'NEON'))
    for ratio, (name, processor, vectors) in enumerate(kinds):
        of_it = copy.deepcopy(report)
        of_it['machine'].update(vectors=vectors, processor=processor)
        of_it['rows'][1]['ratio_to_reference'] = ratio + 1
        write_report(of_it, tmp_path / f'{name}.json')
    for name, processor, vectors in (*kinds, ('one', 'AMD Ryzen 9', 'AVX2')):
        assert baseline_for(tmp_path, vectors, processor) == read_report(tmp_path / f'{name}.json')
    # A file by name is what was asked for, whatever it is of.
    assert baseline_for(tmp_path / 'one.json', 'NEON', '')['machine']['vectors'] == 'AVX2'
    # The same instructions of another maker are not as fast beside a matcher of integers.
    for vectors, processor in (('AMX BF16', 'AMD EPYC'), ('NEON', 'AMD EPYC')):
        with pytest.raises(
            BenchmarkError,
            match=rf'\(AMD {vectors}\), but arm.json \(NEON\), one.json \(AMD AVX2\), two.*--json',
        ):
            baseline_for(tmp_path, vectors, processor)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(BenchmarkError, match='but no report at all'):
        baseline_for(tmp_path / 'empty', 'AVX2', 'AMD EPYC')


def test_shipped_baselines_are_of_processors_that_differ():
    folder = Path(__file__).resolve().parents[1] / 'benchmarks' / 'baselines'
    machines = [read_report(path)['machine'] for path in folder.glob('*.json')]
    kinds = [(maker_of(of['processor']), of['vectors']) for of in machines]
    assert kinds and len(set(kinds)) == len(kinds) and all(map(all, kinds))


def test_the_guard_says_what_it_did_not_compare(report):
    before = copy.deepcopy(report)
    assert not_compared(report, before) == []
    row = before['rows'][1]
    # A provider that no longer loads must not pass for one that is as quick as before.
    before['rows'].append({**row, 'provider': 'openvino', 'precision': 'bf16'})
    before['rows'].append({**row, 'width': 9999})
    before['rows'].remove(row)
    gone, new = not_compared(report, before)
    assert 'block_matcher on openvino bf16 at 256x64' in gone
    assert 'block_matcher on cpu at 256x64' in new


def test_a_baseline_without_precisions_is_still_compared(report):
    before = copy.deepcopy(report)
    for row in before['rows']:
        del row['precision']
        row['ratio_to_reference'] /= 2
    assert len(compare_with(report, before)) == 1


def test_the_chart_has_a_line_for_each_subject_and_kind(report, tmp_path):
    pytest.importorskip('matplotlib', reason='draws with matplotlib')
    path = tmp_path / 'bench.svg'
    plot_report(report, path)
    assert '<svg' in path.read_text()
    with pytest.raises(BenchmarkError, match=r'expected \.png, \.svg, \.pdf'):
        check_plot(tmp_path / 'bench.txt')


def test_a_file_that_is_no_report_is_named(tmp_path):
    path = tmp_path / 'x.json'
    path.write_text('[1]')
    with pytest.raises(BenchmarkError, match='no benchmark report'):
        read_report(path)
    with pytest.raises(BenchmarkError, match='cannot be read'):
        read_report(tmp_path / 'absent.json')


def test_unknown_peers_and_nothing_to_measure_are_errors():
    with pytest.raises(BenchmarkError, match="no peer 'sgm'"):
        open_peer('sgm', 1)
    with pytest.raises(BenchmarkError, match='nothing to measure'):
        benchmark([], peers=[], sizes=[(64, 64)], threads=[1], runs=3)


def test_the_command_writes_json_and_fails_when_slower(model, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarking, 'measure_memory', lambda *_: 1.5)
    path = tmp_path / 'bench.json'
    common = ['bench', '--models', str(model), '--peers', 'bm', '--sizes', '128x64',
              '--threads', '1', '--runs', '3']  # fmt: skip
    result = CliRunner().invoke(app, [*common, '--json', str(path)])
    assert result.exit_code == 0, result.output
    written = json.loads(path.read_text())
    written['rows'][1]['ratio_to_reference'] = 1e-6
    path.write_text(json.dumps(written))
    result = CliRunner().invoke(app, [*common, '--check', str(path)])
    assert result.exit_code == 1
    assert 'slower' in result.output


def timing(subject: str, size: tuple[int, int] = (640, 480), epe: float | None = None) -> dict:
    """A row of a report with figures as wide as they come."""
    return {
        'subject': subject, 'provider': 'openvino', 'precision': 'fp32', 'threads': 2,
        'width': size[0], 'height': size[1], 'min_ms': 427.8, 'p50_ms': 443.2, 'p99_ms': 1492.3,
        'fps': 2.3, 'floor_ms': 111.7, 'ratio_to_reference': 10.71, 'memory_mb': 926.0,
        'epe': epe,
    }  # fmt: skip


def shown(table, width: int, monkeypatch) -> str:
    out = io.StringIO()
    monkeypatch.setattr(bench_command, 'console', Console(file=out, width=width))
    bench_command.console.print(table())
    return out.getvalue()


def test_tables_of_timings_are_whole_in_a_terminal_of_80_columns(monkeypatch):
    machine = {'processor': 'AMD EPYC', 'vectors': 'AVX2', 'load_1min': 1.4, 'cpu': 'AMD EPYC'}
    report = {'machine': machine, 'reference': 'sgbm-3way',
              'rows': [timing('sgbm-3way'), timing('kestrel_medium')]}  # fmt: skip
    text = shown(lambda: bench_command.bench_table(report), 80, monkeypatch)
    # What is common to all rows is told once, and what nobody measured is not told.
    assert '…' not in text and text.count('640x480') == 1 and 'EPE' not in text
    assert '427.8 / 443.2 / 1492.3' in text and 'kestrel_medium' in text
    report['rows'].append(timing('kestrel_medium', (1280, 720), epe=0.9))
    text = shown(lambda: bench_command.bench_table(report), 120, monkeypatch)
    assert text.count('640x480') == 2 and '1280x720' in text and '0.90' in text and 'fps' in text

    ranks = {'p50': 128.8, 'p95': 159.9, 'p99': 285.0}
    stages = ('transfer', 'wait', 'decode', 'inference', 'depth', 'publish')
    row = {
        'subject': 'kestrel_medium', 'provider': 'openvino', 'threads': 2, 'width': 1280,
        'height': 720, 'rate_hz': 30.0, 'place': 'one_process', 'pairs_sent': 150,
        'sent_hz': 29.4,
        'dropped_percent': 4.7, 'bare_ms': ranks, 'stamp_to_publish_ms': ranks,
        'stage_ms': dict.fromkeys(stages, 122.7),
        'lead_in': {'pairs': 30, 'lost': 4, 'first_ms': 141.7, 'longest_ms': 1162.4},
    }  # fmt: skip
    text = shown(lambda: bench_command.node_table({**report, 'rows': [row]}), 80, monkeypatch)
    assert (
        '…' not in text
        and '1280x720 at 30 Hz' in text
        and 'at 29.4 Hz' in text
        and 'publish 122.7' in text
    )
    assert 'stamp to publish 128.8 / 159.9 / 285.0' in text
    told = ' '.join(text.replace('│', ' ').split())
    assert 'before it 30 pairs, 4 lost;' in told and 'the first took 142' in told
    nothing = {**row, 'lead_in': {'pairs': 1, 'lost': 1, 'first_ms': None, 'longest_ms': None}}
    text = shown(lambda: bench_command.node_table({**report, 'rows': [nothing]}), 120, monkeypatch)
    assert 'before it 1 pairs, 1 lost; none published' in text


def test_lists_of_sizes_and_threads_give_a_row_each(model, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarking, 'measure_memory', lambda *_: 1.5)
    path = tmp_path / 'bench.json'
    words = (
        f'bench --models {model} --peers bm,sgbm-3way,sgbm-hh --sizes 64x48,96x64 --threads 1,2'
    )
    result = CliRunner().invoke(app, [*words.split(), '--runs', '3', '--json', str(path)])
    assert result.exit_code == 0, result.output
    rows = json.loads(path.read_text())['rows']
    subjects = ['bm', 'sgbm-3way', 'sgbm-hh', 'block_matcher']
    assert [(r['threads'], r['width'], r['subject']) for r in rows] == [
        (threads, width, subject)
        for threads in (1, 2)
        for width in (64, 96)
        for subject in subjects
    ]


def test_a_chart_that_cannot_be_drawn_is_refused_before_anything_is_timed(model, monkeypatch):
    monkeypatch.setattr(benchmarking, 'benchmark', lambda *_: pytest.fail('timed'))
    result = CliRunner().invoke(app, ['bench', '--models', str(model), '--plot', 'bench.txt'])
    assert result.exit_code == 1
    assert '.png' in result.output


@pytest.mark.parametrize('option', [['--sizes', '640'], ['--threads', 'two']])
def test_misuse_is_explained(option, model):
    result = CliRunner().invoke(app, ['bench', '--models', str(model), *option])
    assert result.exit_code == 2
