# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The manifest inside a model file, the contract, and where models are found."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stereo_kd_ros import model as model_module
from stereo_kd_ros.model import (
    METADATA_KEY,
    Manifest,
    ModelError,
    check_contract,
    file_sha256,
    list_models,
    model_directories,
    read_manifest,
    resolve_model,
    write_manifest,
)

onnx = pytest.importorskip('onnx', reason='builds its models with onnx')
from contract_models import difference_model  # noqa: E402

MANIFEST = Manifest(
    name='kestrel_nano',
    version='1.2.3',
    network='kestrel',
    parameters=300_000,
    macs_640x480=10**9,
    min_disparity_px=0.0,
    max_disparity_px=128.0,
    training_data=[{'name': 'procedural', 'licence': 'Apache-2.0'}],
    teacher='ensemble',
    pruning=[{'method': 'magnitude', 'ratio': 0.5}],
    input_limits={'min_height': 32, 'max_height': 2160},
    metrics={'heldin': {'epe_px': 0.7}},
    weights_sha256='ab' * 32,
    exporter={'torch': '2.9'},
    opset=17,
    stride=32,
    licence='Apache-2.0',
    calibration={'hash': 'ab12', 'fx': 500.0, 'baseline_m': 0.1, 'width': 640, 'height': 480},
    extra={'note': 'für später'},
)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    return difference_model(tmp_path / 'model.onnx')


def test_a_manifest_survives_json():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST
    assert Manifest.from_json(Manifest(name='bare').to_json()) == Manifest(name='bare')


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*vars(MANIFEST), 'new']) | st.text(), json_values))
def test_any_json_object_is_a_manifest_or_a_model_error(values):
    try:
        manifest = Manifest.from_json(json.dumps({'name': 'x', **values}))
    except ModelError:
        return
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_unknown_keys_are_kept():
    manifest = Manifest.from_json('{"name": "x", "shape": [1, 2]}')
    assert manifest.extra == {'shape': [1, 2]}
    assert json.loads(manifest.to_json())['shape'] == [1, 2]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{', 'no JSON'),
        ('[1]', 'is a list, expected an object'),
        ('{}', "lacks the key 'name'"),
        ('{"name": 5}', "'name' is a int .5., expected str"),
        ('{"name": "x", "parameters": "many"}', "'parameters' is a str .*expected int"),
        ('{"name": "x", "parameters": true}', "'parameters' is a bool"),
        ('{"name": "x", "max_disparity_px": "192"}', "'max_disparity_px' .*expected float"),
        ('{"name": "x", "max_disparity_px": NaN}', "'max_disparity_px' are 0.0 and nan"),
        ('{"name": "x", "min_disparity_px": 200}', '200.0 and 192.0, expected'),
        ('{"name": "x", "input_limits": {"min_width": "wide"}}', "'min_width': 'wide'"),
        ('{"name": "x", "input_limits": {"max_width": 0}}', "'max_width': 0"),
        ('{"name": "x", "teacher": 3}', "'teacher' is a int .*expected str or null"),
        ('{"name": "x", "calibration": {"fx": 500.0}}', "'calibration' is .*the text 'hash'"),
        ('{"name": "x", "calibration": "ab12"}', "'calibration' is a str .*expected dict or null"),
        ('{"name": "x", "training_data": {}}', "'training_data' is a dict .*expected list"),
    ],
)
def test_a_bad_manifest_names_the_key(text, message):
    with pytest.raises(ModelError, match=message):
        Manifest.from_json(text)


def test_a_whole_number_is_a_float_too():
    assert Manifest.from_json('{"name": "x", "max_disparity_px": 128}').max_disparity_px == 128.0


def test_a_written_manifest_is_read_back(model_file):
    assert read_manifest(model_file) is None
    write_manifest(model_file, MANIFEST)
    assert read_manifest(model_file) == MANIFEST
    write_manifest(model_file, Manifest(name='second'))
    assert read_manifest(model_file) == Manifest(name='second')
    loaded = onnx.load(model_file)
    onnx.checker.check_model(loaded)
    assert [entry.key for entry in loaded.metadata_props] == [METADATA_KEY]


def test_other_metadata_is_left_alone(model_file):
    loaded = onnx.load(model_file)
    loaded.metadata_props.add(key='author', value='someone')
    onnx.save(loaded, model_file)
    write_manifest(model_file, MANIFEST)
    assert {entry.key for entry in onnx.load(model_file).metadata_props} == {
        'author',
        METADATA_KEY,
    }


def test_a_failed_write_leaves_the_file_and_nothing_else(model_file, monkeypatch):
    before = model_file.read_bytes()

    def no_space(*_args):
        raise OSError('no space left on device')

    monkeypatch.setattr(model_module.os, 'replace', no_space)
    with pytest.raises(OSError, match='no space'):
        write_manifest(model_file, MANIFEST)
    assert model_file.read_bytes() == before
    assert list(model_file.parent.iterdir()) == [model_file]


def test_a_damaged_manifest_names_the_file(model_file):
    loaded = onnx.load(model_file)
    loaded.metadata_props.add(key=METADATA_KEY, value='{"name"')
    onnx.save(loaded, model_file)
    with pytest.raises(ModelError, match=r'model\.onnx.*no JSON'):
        read_manifest(model_file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r'nowhere\.onnx cannot be read'):
        read_manifest(tmp_path / 'nowhere.onnx')
    with pytest.raises(ModelError, match='cannot be read'):
        read_manifest(tmp_path)
    with pytest.raises(ModelError, match='cannot be read as an ONNX model'):
        write_manifest(tmp_path / 'nowhere.onnx', MANIFEST)


@pytest.mark.parametrize('content', [b'', b'hello world', bytes(100), b'\x08\x08', b'<html>' * 99])
def test_what_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / 'broken.onnx'
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r'broken\.onnx is'):
        read_manifest(path)


def test_a_cut_off_model_is_refused(model_file):
    write_manifest(model_file, MANIFEST)
    whole = model_file.read_bytes()
    for kept in (len(whole) - 1, len(whole) // 2, 40):
        model_file.write_bytes(whole[:kept])
        with pytest.raises(ModelError, match='damaged or no ONNX model'):
            read_manifest(model_file)


@given(st.binary(max_size=120))
def test_any_bytes_are_a_model_or_a_model_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp('fuzz') / 'any.onnx'
    path.write_bytes(content)
    with contextlib.suppress(ModelError):
        read_manifest(path)


def test_sha256_is_that_of_the_bytes(tmp_path):
    path = tmp_path / 'abc'
    path.write_bytes(b'abc')
    assert file_sha256(path) == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'


def node(name: str, kind: str, shape: list) -> SimpleNamespace:
    return SimpleNamespace(name=name, type=kind, shape=shape)


def contract(**changes: SimpleNamespace | None) -> tuple[list, list]:
    """Inputs and outputs that keep the contract but for `changes`; None leaves one out."""
    nodes = {
        'left': node('left', 'tensor(uint8)', ['N', 'H', 'W', 3]),
        'right': node('right', 'tensor(uint8)', ['N', 'H', 'W', 3]),
        'disparity': node('disparity', 'tensor(float)', ['N', 'H', 'W']),
        'confidence': node('confidence', 'tensor(float)', ['N', 'H', 'W']),
        **changes,
    }
    inputs = [nodes[key] for key in nodes if key not in ('disparity', 'confidence')]
    outputs = [nodes['disparity'], nodes['confidence']]
    return [n for n in inputs if n is not None], [n for n in outputs if n is not None]


def test_the_contract_holds_for_dynamic_and_fixed_sizes():
    check_contract(*contract())
    fixed = [1, 480, 640, 3]
    check_contract(
        *contract(
            left=node('left', 'tensor(uint8)', fixed), right=node('right', 'tensor(uint8)', fixed)
        )
    )


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'left': None}, "input 'left' is missing; the file has 'right'"),
        ({'left': node('image_l', 'tensor(uint8)', ['N', 'H', 'W', 3])}, "'left' is missing"),
        ({'third': node('third', 'tensor(uint8)', [1])}, "input 'third' is not part"),
        (
            {'right': node('right', 'tensor(float)', ['N', 'H', 'W', 3])},
            r"'right' is a tensor\(float\), expected tensor\(uint8\)",
        ),
        (
            {'right': node('right', 'tensor(uint8)', ['H', 'W', 3])},
            r"'right' has the shape \['H', 'W', 3\], expected \[N, H, W, 3\]",
        ),
        (
            {'left': node('left', 'tensor(uint8)', ['N', 3, 'H', 'W'])},
            "the input 'left' has .*RGB in the last",
        ),
        ({'left': node('left', 'tensor(uint8)', ['N', 'H', 'W', 1])}, 'RGB in the last'),
        ({'left': node('left', 'tensor(uint8)', [4, 'H', 'W', 3])}, 'fixed batch size 4'),
        (
            {'left': node('left', 'tensor(uint8)', ['N', 480, 640, 3])},
            "input 'right' has the shape .* 'left'",
        ),
        ({'disparity': None}, "output 'disparity' is missing; the file has 'confidence'"),
        ({'confidence': None}, "output 'confidence' is missing"),
        (
            {'confidence': node('confidence', 'tensor(float)', ['N', 1, 'H', 'W'])},
            "output 'confidence' has the shape",
        ),
        (
            {'disparity': node('disparity', 'tensor(float16)', ['N', 'H', 'W'])},
            r"'disparity' is a tensor\(float16\)",
        ),
    ],
)
def test_a_breach_names_the_input_or_output_at_fault(changes, message):
    with pytest.raises(ModelError, match=message):
        check_contract(*contract(**changes))


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    """A folder with two models, the only one that is searched."""
    for name in ('kestrel_nano.onnx', 'kestrel_small.onnx', 'readme.txt'):
        (tmp_path / name).touch()
    monkeypatch.setenv('STEREO_KD_MODELS', str(tmp_path))
    monkeypatch.setattr(model_module, 'model_directories', lambda: [tmp_path])
    return tmp_path


def test_models_are_listed_and_found_by_path_stem_and_size(models):
    assert [path.stem for path in list_models()] == ['kestrel_nano', 'kestrel_small']
    nano = models / 'kestrel_nano.onnx'
    for name in (nano, str(nano), 'kestrel_nano', 'kestrel_nano.onnx', 'nano'):
        assert resolve_model(name) == nano


def test_a_folder_stands_for_the_one_model_in_it(tmp_path):
    folder = tmp_path / 'my_robot'
    folder.mkdir()
    with pytest.raises(ModelError, match=r'holds 0 models \(none\)'):
        resolve_model(folder)
    file = difference_model(folder / 'my_robot.onnx')
    assert resolve_model(folder) == file
    assert resolve_model(f'{folder}/') == file
    difference_model(folder / 'other.onnx')
    with pytest.raises(ModelError, match=r'2 models \(my_robot.onnx, other.onnx\)'):
        resolve_model(folder)


def test_an_unknown_model_lists_what_exists(models):
    with pytest.raises(ModelError, match=r"no model 'huge'; .*kestrel_nano, kestrel_small"):
        resolve_model('huge')
    with pytest.raises(ModelError, match=r"'/no/such\.onnx' does not exist"):
        resolve_model('/no/such.onnx')
    with pytest.raises(ModelError, match='no model'):
        resolve_model('')


def test_a_size_of_two_families_is_ambiguous(models):
    (models / 'other_nano.onnx').touch()
    with pytest.raises(ModelError, match='any of kestrel_nano, other_nano'):
        resolve_model('nano')


def test_the_environment_comes_first_and_every_prefix_is_searched(tmp_path, monkeypatch):
    own, ament, python = (tmp_path / name for name in ('own', 'ament', 'python'))
    own.mkdir()
    for prefix in (ament, python):
        (prefix / 'share/stereo_kd_ros/models').mkdir(parents=True)
    monkeypatch.setenv('STEREO_KD_MODELS', str(own))
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'/does/not/exist:{ament}')
    monkeypatch.setattr(sys, 'prefix', str(python))
    found = model_directories()
    assert found[0] == own
    expected = [prefix / 'share/stereo_kd_ros/models' for prefix in (ament, python)]
    assert [directory for directory in found if directory in expected] == expected


def test_the_users_model_hides_one_of_the_same_name(tmp_path, monkeypatch):
    folders = [tmp_path / 'first', tmp_path / 'second']
    for folder in folders:
        folder.mkdir()
        (folder / 'kestrel_nano.onnx').touch()
    monkeypatch.setattr(model_module, 'model_directories', lambda: folders)
    assert resolve_model('nano').parent == folders[0]
    assert len(list_models()) == 1
