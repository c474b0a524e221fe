# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""StereoEngine on tiny real models in the real ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stereo_kd_ros import engine as engine_module
from stereo_kd_ros.engine import EXECUTION_PROVIDERS, EngineError, StereoEngine, usable_cores
from stereo_kd_ros.model import Manifest, ModelError, write_manifest

onnx = pytest.importorskip('onnx', reason='builds its models with onnx')
from at_once import at_once  # noqa: E402
from contract_models import difference, difference_model, random_pair  # noqa: E402

AVAILABLE = onnxruntime.get_available_providers()
NOT_BUILT_IN = [name for name, full in EXECUTION_PROVIDERS.items() if full not in AVAILABLE]
needs_openvino = pytest.mark.skipif(
    'openvino' in NOT_BUILT_IN, reason='needs onnxruntime-openvino'
)


@pytest.fixture(scope='module')
def model_file(tmp_path_factory) -> Path:
    return difference_model(tmp_path_factory.mktemp('models') / 'difference.onnx')


@pytest.fixture(scope='module')
def engine(model_file) -> StereoEngine:
    return StereoEngine(model_file, 'cpu')


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_any_size_gives_maps_of_that_size(engine, height, width, seed):
    left, right = random_pair(height, width, seed)
    result = engine.infer(left, right)
    for array in (result.disparity, result.confidence):
        assert array.shape == (height, width)
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
    np.testing.assert_allclose(result.disparity, difference(left, right), atol=1e-3)
    np.testing.assert_allclose(result.confidence, result.disparity / 255, atol=1e-5)
    assert result.inference_ms > 0


def test_views_and_read_only_images_are_taken(engine):
    left, right = random_pair(20, 30)
    left, right = left[::2, 5:25], right[::-2, 5:25, ::-1]
    left.flags.writeable = False
    result = engine.infer(left, right)
    np.testing.assert_allclose(result.disparity, difference(left, right), atol=1e-3)


def test_a_result_stays_what_it_was(engine):
    """The maps of one pair must not be overwritten by the next."""
    first = engine.infer(*random_pair(16, 16, seed=1))
    before = first.disparity.copy()
    for seed in range(5):
        engine.infer(*random_pair(16, 16, seed=seed))
    np.testing.assert_array_equal(first.disparity, before)


def test_threads_do_not_mix_their_pairs(engine):
    def work(seed: int) -> None:
        left, right = random_pair(30 + seed, 40, seed)
        for _ in range(20):
            got = engine.infer(left, right).disparity
            np.testing.assert_allclose(got, difference(left, right), atol=1e-3)

    at_once(work, range(4))


@pytest.mark.parametrize('options', [{'threads': 1}, {'threads': 2, 'spinning': False}])
def test_threads_change_no_number(model_file, engine, options):
    left, right = random_pair(64, 96)
    np.testing.assert_array_equal(
        StereoEngine(model_file, 'cpu', **options).infer(left, right).disparity,
        engine.infer(left, right).disparity,
    )


def test_the_provider_that_runs_is_reported(model_file, engine):
    assert engine.provider == 'cpu'
    assert [(attempt.name, attempt.ok) for attempt in engine.provider_report] == [('cpu', True)]
    automatic = StereoEngine(model_file)
    names = [attempt.name for attempt in automatic.provider_report]
    assert names[-1] == automatic.provider
    assert automatic.provider_report[-1].ok
    assert not any(attempt.ok for attempt in automatic.provider_report[:-1])


@pytest.mark.parametrize('name', NOT_BUILT_IN)
def test_a_provider_by_name_that_is_not_built_in_is_an_error(model_file, name, capfd):
    with pytest.raises(EngineError, match=rf'{name}: .*install onnxruntime-(gpu|openvino)'):
        StereoEngine(model_file, name)
    assert capfd.readouterr() == ('', '')


def test_several_providers_are_tried_in_order(model_file):
    engine = StereoEngine(model_file, [*NOT_BUILT_IN, 'cpu'])
    assert engine.provider == 'cpu'
    assert [attempt.name for attempt in engine.provider_report] == [*NOT_BUILT_IN, 'cpu']


@pytest.mark.filterwarnings('ignore:Specified provider')
def test_a_silent_fall_back_is_noticed(model_file, monkeypatch):
    """onnxruntime lists what it was built with; here it claims a GPU build it is not."""
    monkeypatch.setattr(
        onnxruntime, 'get_available_providers', lambda: list(EXECUTION_PROVIDERS.values())
    )
    name = NOT_BUILT_IN[0]
    with pytest.raises(EngineError, match=f'{name}: .*falls back to CPUExecutionProvider'):
        StereoEngine(model_file, name)
    engine = StereoEngine(model_file, 'auto')
    assert engine.provider not in NOT_BUILT_IN
    assert 'falls back' in engine.provider_report[0].reason


@pytest.mark.parametrize('fault', [{'bias': 3.0}, {'bias': 0.5}, {'ceiling': 60.0}])
def test_a_provider_with_other_numbers_is_refused(model_file, tmp_path, monkeypatch, fault):
    """One that is off everywhere, or far off in some places, loads and must not be believed."""
    deviant = difference_model(tmp_path / 'deviant.onnx', **fault)
    create = engine_module._create_session

    def create_deviant(path, name, *options):
        return create(deviant if name == 'openvino' else path, 'cpu', *options)

    monkeypatch.setattr(engine_module, '_create_session', create_deviant)
    monkeypatch.setattr(
        onnxruntime, 'get_available_providers', lambda: list(EXECUTION_PROVIDERS.values())
    )
    with pytest.raises(EngineError, match='differs from that of the CPU by'):
        StereoEngine(model_file, 'openvino', precision='fp32')
    engine = StereoEngine(model_file, ['openvino', 'cpu'])
    assert engine.provider == 'cpu'
    assert 'differs' in engine.provider_report[0].reason


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'provider': 'gpu'}, "no provider 'gpu', expected one of auto, tensorrt"),
        ({'provider': []}, 'no provider was given'),
        ({'precision': 'int4'}, "precision is 'int4', expected one of"),
        ({'threads': 0}, 'threads is 0, expected 1 or more'),
        ({'provider': 'cpu', 'precision': 'bf16'}, 'bf16 needs the provider openvino'),
    ],
)
def test_impossible_options_are_refused(model_file, options, message):
    with pytest.raises(EngineError, match=message):
        StereoEngine(model_file, **options)


def test_the_manifest_is_read(tmp_path, engine):
    assert engine.manifest is None
    path = difference_model(tmp_path / 'model.onnx')
    write_manifest(path, Manifest(name='difference', max_disparity_px=255.0))
    assert StereoEngine(path, 'cpu').manifest.name == 'difference'


def test_a_file_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match='does not exist'):
        StereoEngine(tmp_path / 'nowhere.onnx', 'cpu')
    path = tmp_path / 'broken.onnx'
    for content in (b'', b'no model', difference_model(path).read_bytes()[:-20]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r'broken\.onnx cannot be loaded'):
            StereoEngine(path, 'cpu')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'inputs': ('image_left', 'right')}, "input 'left' is missing; .* 'image_left'"),
        ({'inputs': ('left', 'right', 'third')}, "input 'third' is not part"),
        ({'outputs': ('disparity',)}, "output 'confidence' is missing"),
        ({'outputs': ('disp', 'confidence')}, "output 'disparity' is missing; .* 'disp'"),
        ({'input_type': onnx.TensorProto.FLOAT}, r"input 'left' is a tensor\(float\)"),
        ({'output_type': onnx.TensorProto.FLOAT16}, r"'disparity' is a tensor\(float16\)"),
        ({'input_shape': ('H', 'W', 3)}, r"input 'left' has the shape \['H', 'W', 3\]"),
        ({'input_shape': ('N', 3, 'H', 'W')}, "input 'left' has the shape .*RGB"),
    ],
)
def test_a_breach_of_the_contract_names_the_input_or_output(tmp_path, changes, message):
    path = difference_model(tmp_path / 'breach.onnx', **changes)
    with pytest.raises(ModelError, match=message):
        StereoEngine(path, 'cpu')


def test_more_outputs_than_the_contracts_are_no_breach(tmp_path):
    path = difference_model(
        tmp_path / 'more.onnx', outputs=('confidence', 'features', 'disparity')
    )
    left, right = random_pair(9, 11)
    result = StereoEngine(path, 'cpu').infer(left, right)
    np.testing.assert_allclose(result.disparity, difference(left, right), atol=1e-3)


@pytest.mark.parametrize(
    ('left', 'right', 'message'),
    [
        (np.zeros((4, 5, 3), np.float32), None, 'left image is float32, expected a uint8'),
        (np.zeros((4, 5, 3), np.uint8).tolist(), None, 'left image is list'),
        (None, np.zeros((4, 5), np.uint8), r'right image has the shape \(4, 5\)'),
        (None, np.zeros((4, 5, 4), np.uint8), r'right image has the shape \(4, 5, 4\)'),
        (None, np.zeros((4, 6, 3), np.uint8), 'left image has 5x4 pixels, the right one 6x4'),
        (np.zeros((0, 5, 3), np.uint8), np.zeros((0, 5, 3), np.uint8), '5x0'),
    ],
)
def test_images_that_do_not_fit_are_refused(engine, left, right, message):
    good = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(EngineError, match=message):
        engine.infer(good if left is None else left, good if right is None else right)
    assert engine.infer(good, good).disparity.shape == (4, 5)


def test_the_limits_of_the_manifest_hold(tmp_path):
    path = difference_model(tmp_path / 'limited.onnx')
    limits = {'min_height': 8, 'max_height': 64, 'min_width': 16}
    write_manifest(path, Manifest(name='limited', input_limits=limits))
    engine = StereoEngine(path, 'cpu')
    assert engine.infer(*random_pair(8, 4000)).disparity.shape == (8, 4000)
    for height, width, message in (
        (7, 32, 'height of 8 to 64 px'),
        (65, 32, 'height of 8 to 64 px'),
        (8, 15, 'width of 16 to any px'),
    ):
        with pytest.raises(EngineError, match=message):
            engine.infer(*random_pair(height, width))


def test_a_model_of_fixed_size_takes_that_size_only(tmp_path):
    path = difference_model(tmp_path / 'fixed.onnx', input_shape=(1, 24, 40, 3))
    engine = StereoEngine(path, 'cpu')
    assert engine.infer(*random_pair(24, 40)).disparity.shape == (24, 40)
    with pytest.raises(EngineError, match='40x25, but the model takes a height of 24 to 24'):
        engine.infer(*random_pair(25, 40))


def test_a_failing_model_is_an_error_and_the_engine_goes_on(tmp_path, capfd):
    path = difference_model(tmp_path / 'picky.onnx', only_size=(10, 12))
    engine = StereoEngine(path, 'cpu')
    for _ in range(3):
        with pytest.raises(EngineError, match='failed on a 13x10 pair'):
            engine.infer(*random_pair(10, 13))
        left, right = random_pair(10, 12)
        np.testing.assert_allclose(
            engine.infer(left, right).disparity, difference(left, right), atol=1e-3
        )
    assert capfd.readouterr() == ('', '')


OUT_OF_MEMORY = """
import resource, sys
import numpy as np, psutil
from stereo_kd_ros.engine import EngineError, StereoEngine

engine = StereoEngine(sys.argv[1], 'cpu', threads=1)
small, large = (np.zeros((size, size, 3), np.uint8) for size in (64, 3000))
engine.infer(small, small)
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000,) * 2)
for _ in range(2):
    try:
        engine.infer(large, large)
    except EngineError as error:
        print('refused', error)
    print('then', engine.infer(small, small).disparity.shape)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='limits memory as Linux does')
def test_a_pair_too_large_for_the_memory_is_an_error_and_the_engine_goes_on(
    model_file, repository
):
    pytest.importorskip('psutil')
    done = subprocess.run(
        [sys.executable, '-c', OUT_OF_MEMORY, str(model_file)],
        capture_output=True,
        text=True,
        check=True,
        timeout=400,
        cwd=repository,
    )
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ['refused', 'then'] * 2, done.stdout
    assert 'failed on a 3000x3000 pair' in lines[0]
    assert lines[1] == 'then (64, 64)'


def test_maps_of_another_size_than_the_images_are_an_error(tmp_path):
    path = difference_model(tmp_path / 'half.onnx', columns_step=2)
    with pytest.raises(EngineError, match='failed on a 20x10 pair'):
        StereoEngine(path, 'cpu').infer(*random_pair(10, 20))


def test_what_is_no_disparity_becomes_nan(tmp_path):
    path = difference_model(tmp_path / 'negative.onnx', bias=-60.0)
    left, right = random_pair(20, 20)
    truth = difference(left, right) - 60
    disparity = StereoEngine(path, 'cpu').infer(left, right).disparity
    assert (truth < -0.1).any()
    assert np.isnan(disparity[truth < -0.1]).all()
    np.testing.assert_allclose(disparity[truth > 0.1], truth[truth > 0.1], atol=1e-3)


@pytest.mark.parametrize(('gain', 'bias'), [(np.inf, 0.0), (1.0, np.nan), (1.0, np.inf)])
def test_nan_and_infinity_of_a_model_are_no_disparity(tmp_path, gain, bias):
    path = difference_model(tmp_path / 'endless.onnx', gain=gain, bias=bias)
    left, right = random_pair(6, 6)
    result = StereoEngine(path, 'cpu').infer(left, right)
    assert np.isnan(result.disparity).all()
    assert ((result.confidence >= 0) & (result.confidence <= 1)).all()


@pytest.mark.parametrize('scale', [1.0, -1.0, np.nan, np.inf])
def test_a_confidence_is_brought_into_its_range(tmp_path, scale):
    path = difference_model(tmp_path / 'boastful.onnx', confidence_scale=scale)
    confidence = StereoEngine(path, 'cpu').infer(*random_pair(12, 12)).confidence
    assert ((confidence >= 0) & (confidence <= 1)).all()
    if not scale > 0:
        assert (confidence == 0).all()


def test_warming_up_runs_at_the_size_asked_for(tmp_path):
    path = difference_model(tmp_path / 'picky.onnx', only_size=(10, 12))
    engine = StereoEngine(path, 'cpu')
    assert engine.warm_up(10, 12, runs=3) > 0
    with pytest.raises(EngineError, match='failed on a 9x9 pair'):
        engine.warm_up(9, 9)


def test_a_closed_engine_says_so(model_file):
    engine = StereoEngine(model_file, 'cpu')
    engine.close()
    with pytest.raises(EngineError, match='closed'):
        engine.infer(*random_pair(4, 4))


@needs_openvino
@pytest.mark.parametrize('precision', ['fp32', 'auto'])
def test_openvino_agrees_with_the_cpu(model_file, precision):
    engine = StereoEngine(model_file, 'openvino', threads=1, precision=precision)
    assert engine.provider == 'openvino'
    for height, width in ((48, 64), (33, 47), (128, 128)):
        left, right = random_pair(height, width)
        result = engine.infer(left, right)
        np.testing.assert_allclose(result.disparity, difference(left, right), rtol=0.02, atol=0.5)


@needs_openvino
def test_openvino_survives_a_failing_run(tmp_path):
    path = difference_model(tmp_path / 'half.onnx', columns_step=2)
    with pytest.raises(EngineError):
        StereoEngine(path, 'openvino').infer(*random_pair(10, 20))


@needs_openvino
def test_openvino_has_a_session_of_its_own_for_the_size_warmed_up(model_file):
    engine = StereoEngine(model_file, 'openvino', threads=1, precision='fp32')
    engine.warm_up(48, 64)
    binding = engine._serving.binding
    assert binding.fits(48, 64)
    for height, width in ((48, 64), (20, 30)):
        left, right = random_pair(height, width)
        np.testing.assert_allclose(
            engine.infer(left, right).disparity, difference(left, right), atol=0.01
        )


@pytest.fixture
def fitting_cpu(monkeypatch):
    """The CPU provider, made to fix sizes as OpenVINO does."""
    monkeypatch.setattr(engine_module, 'FITTED_PROVIDERS', frozenset({'cpu'}))


@pytest.mark.usefixtures('fitting_cpu')
def test_a_size_warmed_up_gets_a_session_that_takes_it_alone(model_file):
    engine = StereoEngine(model_file, 'cpu', threads=1)
    binding = engine._serving.binding
    engine.warm_up(20, 30)
    assert binding.fits(20, 30)
    assert not binding.fits(30, 20)
    fitted = binding._fitted[20, 30]
    assert [node.shape for node in fitted.get_inputs()] == [[1, 20, 30, 3]] * 2
    engine.warm_up(20, 30)
    assert binding._fitted[20, 30] is fitted
    for height, width in ((20, 30), (30, 20)):
        left, right = random_pair(height, width)
        np.testing.assert_allclose(
            engine.infer(left, right).disparity, difference(left, right), atol=1e-3
        )
    engine.close()
    with pytest.raises(EngineError, match='closed'):
        engine.warm_up(20, 30)


@pytest.mark.usefixtures('fitting_cpu')
def test_a_session_of_its_own_with_other_numbers_is_not_used(model_file, tmp_path, monkeypatch):
    honest = engine_module._create_session
    wrong = difference_model(tmp_path / 'wrong.onnx', gain=2.0)

    def create(path, *arguments, sizes=None, **options):
        return honest(wrong if sizes else path, *arguments, sizes=sizes, **options)

    monkeypatch.setattr(engine_module, '_create_session', create)
    engine = StereoEngine(model_file, 'cpu', threads=1)
    engine.warm_up(20, 30)
    assert not engine._serving.binding.fits(20, 30)


@pytest.mark.usefixtures('fitting_cpu')
def test_a_model_of_fixed_size_needs_no_other_session(tmp_path):
    engine = StereoEngine(
        difference_model(tmp_path / 'fixed.onnx', input_shape=(1, 10, 12, 3)), 'cpu'
    )
    assert engine.warm_up(10, 12) > 0
    assert not engine._serving.binding.fits(10, 12)


def test_the_threads_are_stated_so_that_none_is_pinned_to_a_core(model_file):
    engine = StereoEngine(model_file, 'cpu')
    assert engine.threads == usable_cores() >= 1
    options = engine._session.get_session_options()
    assert options.intra_op_num_threads == engine.threads


class PretendedGpu:
    """CUDA and TensorRT that are the CPU under other names, to follow how they are used."""

    def __init__(self, monkeypatch) -> None:
        self.tensorrt_model: Path | None = None
        self.opened: list[tuple[str, str, str]] = []
        self.may_build = threading.Event()
        create = engine_module._create_session

        def create_on_cpu(path, name, threads, precision, spinning=True, *gpu):
            profile = str(gpu[1]) if len(gpu) > 1 else ''
            if name != 'cpu':
                self.opened.append((name, precision, profile))
            if name == 'tensorrt':
                assert self.may_build.wait(120)
                path = self.tensorrt_model or path
            return create(path, 'cpu', threads, 'fp32', spinning)

        monkeypatch.setattr(engine_module, '_create_session', create_on_cpu)
        monkeypatch.setattr(
            engine_module, '_bind', lambda session, *_: engine_module.HostBinding(session)
        )
        monkeypatch.setattr(
            onnxruntime, 'get_available_providers', lambda: list(EXECUTION_PROVIDERS.values())
        )


@pytest.fixture
def pretended_gpu(monkeypatch, tmp_path) -> PretendedGpu:
    monkeypatch.setenv('STEREO_KD_CACHE', str(tmp_path / 'cache'))
    return PretendedGpu(monkeypatch)


def wait_for_tensorrt(engine: StereoEngine, size: tuple[int, int]) -> None:
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        engine.infer(*random_pair(*size))
        if engine.provider == 'tensorrt':
            return
        if engine._upgrade._over:
            engine._upgrade._thread.join(60)  # it reports after it has given up
            return
        threading.Event().wait(0.005)
    pytest.fail('the build never ended')


def test_cuda_serves_while_tensorrt_builds_for_the_size_in_use(model_file, pretended_gpu):
    engine = StereoEngine(model_file)
    assert engine.provider == 'cuda'
    assert [attempt.name for attempt in engine.provider_report] == ['tensorrt', 'cuda']
    left, right = random_pair(40, 50)
    for _ in range(40):
        engine.infer(left, right)
    assert engine.provider == 'cuda'
    pretended_gpu.may_build.set()
    wait_for_tensorrt(engine, (40, 50))
    assert (engine.provider, engine.precision) == ('tensorrt', 'fp16')
    assert pretended_gpu.opened[-1] == ('tensorrt', 'fp16', '40x50 40x50 40x50')
    assert engine.provider_report[0].ok
    # Any other size goes where it went before.
    np.testing.assert_allclose(
        engine.infer(left[1:], right[1:]).disparity,
        difference(left[1:], right[1:]),
        atol=1e-3,
    )
    assert engine.provider == 'cuda'


def test_tensorrt_with_other_numbers_never_takes_over(model_file, pretended_gpu, tmp_path, caplog):
    pretended_gpu.tensorrt_model = difference_model(tmp_path / 'deviant.onnx', bias=3.0)
    pretended_gpu.may_build.set()
    engine = StereoEngine(model_file)
    wait_for_tensorrt(engine, (40, 50))
    assert engine.provider == 'cuda'
    assert [precision for name, precision, _ in pretended_gpu.opened if name == 'tensorrt'] == [
        'fp16',
        'fp32',
    ]
    assert not engine.provider_report[0].ok
    assert 'differs from that of the CPU' in engine.provider_report[0].reason
    assert 'differs from that of the CPU' in caplog.text


def test_without_a_known_gpu_tensorrt_is_not_kept_and_says_so(model_file, pretended_gpu, caplog):
    pretended_gpu.may_build.set()
    engine = StereoEngine(model_file, 'tensorrt', precision='fp32')
    assert engine.provider == 'tensorrt'
    assert 'not kept for the next start: cannot tell' in caplog.text
    # By name it covers a span of sizes, and refuses what lies outside.
    assert pretended_gpu.opened[0][2] == '1x1 480x640 1200x1920'
    with pytest.raises(EngineError, match='height of 1 to 1200'):
        engine.infer(*random_pair(1201, 8))


@pytest.fixture
def known_gpu(monkeypatch) -> None:
    monkeypatch.setattr(engine_module, 'gpu_and_driver', lambda _: ('Test GPU', '1.0'))
    monkeypatch.setattr(engine_module, 'tensorrt_version', lambda: '101300')


def test_an_engine_that_no_longer_loads_is_built_anew(
    model_file, pretended_gpu, known_gpu, monkeypatch, tmp_path
):
    pretended_gpu.may_build.set()
    create = engine_module._create_session
    seen: list[bool] = []

    def create_with_files(path, name, *options):
        if name != 'tensorrt':
            return create(path, name, *options)
        folder = options[-1].directory
        stored = folder / 'test.engine'
        seen.append(stored.exists())
        if stored.exists() and stored.read_text() == 'bad':
            raise EngineError('the engine cannot be read')
        stored.write_text('bad' if len(seen) == 1 else 'good')
        return create(path, name, *options)

    monkeypatch.setattr(engine_module, '_create_session', create_with_files)
    for _ in range(3):
        assert StereoEngine(model_file, 'tensorrt', precision='fp32').provider == 'tensorrt'
    # Built; found, refused and built anew; found.
    assert seen == [False, True, False, True]


def test_a_cache_that_cannot_be_written_is_only_a_warning(
    model_file, pretended_gpu, known_gpu, tmp_path, caplog
):
    (tmp_path / 'cache').write_text('in the way')
    pretended_gpu.may_build.set()
    assert StereoEngine(model_file, 'tensorrt').provider == 'tensorrt'
    assert 'not kept for the next start' in caplog.text


@pytest.fixture
def choices(monkeypatch, tmp_path) -> list[dict]:
    """Every measuring of the CPU's candidates, with sleeping threads found quickest."""
    monkeypatch.setenv('STEREO_KD_CACHE', str(tmp_path / 'cache'))
    measured: list[dict] = []

    def measure(runs):
        for run in runs.values():
            run()
        measured.append({one: 10.0 if one.spinning else 5.0 for one in runs})
        return measured[-1]

    monkeypatch.setattr(engine_module, 'measure', measure)
    return measured


def on_cpu_only(monkeypatch) -> None:
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: ['CPUExecutionProvider'])


def test_the_quickest_way_on_the_cpu_is_measured_once_per_size(model_file, choices, monkeypatch):
    on_cpu_only(monkeypatch)
    engine = StereoEngine(model_file)
    assert engine.spinning
    engine.warm_up(20, 30)
    assert not engine.spinning
    assert 'quickest at 30x20 of 10.0 ms with cpu' in engine.provider_report[-1].reason
    again = StereoEngine(model_file)
    again.warm_up(20, 30)
    assert (again.provider, again.spinning, len(choices)) == ('cpu', False, 1)
    assert '5.0 ms at 30x20, as remembered' in again.provider_report[-1].reason
    again.warm_up(21, 30)
    assert len(choices) == 2
    left, right = random_pair(20, 30)
    np.testing.assert_allclose(
        again.infer(left, right).disparity, difference(left, right), atol=1e-3
    )


@pytest.mark.parametrize('options', [{'provider': 'cpu'}, {'spinning': True}, {'spinning': False}])
def test_what_the_caller_states_is_not_measured(model_file, choices, monkeypatch, options):
    on_cpu_only(monkeypatch)
    engine = StereoEngine(model_file, **options)
    engine.warm_up(20, 30)
    assert choices == []
    assert engine.spinning == options.get('spinning', True)


@pytest.fixture
def pretended_openvino(monkeypatch) -> None:
    """OpenVINO with BF16, computed by the CPU provider."""
    created = engine_module._create_session

    def create(path, name, threads, precision, *arguments, **options):
        return created(path, 'cpu', threads, 'fp32', *arguments, **options)

    monkeypatch.setattr(engine_module, '_create_session', create)
    monkeypatch.setattr(engine_module, 'computes_bf16', lambda: True)
    providers = ['OpenVINOExecutionProvider', 'CPUExecutionProvider']
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: providers)


@pytest.mark.usefixtures('pretended_openvino')
@pytest.mark.parametrize('quickest', ['bf16', 'fp32'])
def test_what_a_provider_named_computes_in_is_measured(model_file, choices, monkeypatch, quickest):
    def measure(runs):
        choices.append({one: 5.0 if one.precision == quickest else 9.0 for one in runs})
        return choices[-1]

    monkeypatch.setattr(engine_module, 'measure', measure)
    engine = StereoEngine(model_file, 'openvino')
    assert engine.precision == 'bf16'
    engine.warm_up(20, 30)
    assert (engine.provider, engine.precision) == ('openvino', quickest)
    assert 'of 9.0 ms with' in engine.provider_report[-1].reason or quickest == 'bf16'
    assert [(one.provider, one.precision) for one in choices[0]] == [
        ('openvino', 'bf16'),
        ('openvino', 'fp32'),
    ]
    again = StereoEngine(model_file, 'openvino')
    again.warm_up(20, 30)
    assert (again.precision, len(choices)) == (quickest, 1)
    for precision in ('bf16', 'fp32'):
        named = StereoEngine(model_file, 'openvino', precision=precision)
        named.warm_up(20, 30)
        assert (named.precision, len(choices)) == (precision, 1)


def test_a_choice_that_cannot_be_kept_is_only_a_warning(
    model_file, choices, monkeypatch, tmp_path, caplog
):
    on_cpu_only(monkeypatch)
    (tmp_path / 'cache').write_text('in the way')
    engine = StereoEngine(model_file)
    engine.warm_up(20, 30)
    assert not engine.spinning
    assert 'is not remembered' in caplog.text


def test_a_size_at_which_the_model_fails_is_still_an_error(tmp_path, choices, monkeypatch):
    on_cpu_only(monkeypatch)
    engine = StereoEngine(difference_model(tmp_path / 'picky.onnx', only_size=(10, 12)))
    with pytest.raises(EngineError, match='failed on a 9x9 pair'):
        engine.warm_up(9, 9)
    assert engine.warm_up(10, 12) > 0


def test_the_real_measuring_ends_and_leaves_an_engine(model_file, monkeypatch, tmp_path):
    monkeypatch.setenv('STEREO_KD_CACHE', str(tmp_path))
    engine = StereoEngine(model_file)
    assert engine.warm_up(48, 64) > 0
    assert engine.provider_report[-1].ok
    assert engine.provider_report[-1].name == engine.provider
