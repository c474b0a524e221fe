# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The model folder that a launch takes as `model:=FOLDER`.

NAME.onnx        with a manifest that names the camera, the data, the labels' licence
manifest.json    the same, to be read
report.html, report.json
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from stereo_kd_ros.model import Manifest, ModelError, read_manifest, write_manifest
from stereo_kd_training.adapt.render import manifests
from stereo_kd_training.adapt.report import write_report
from stereo_kd_training.adapt.settings import AdaptError, RunFolder
from stereo_kd_training.adapt.student import find_student
from stereo_kd_training.complexity import complexity
from stereo_kd_training.export import build_manifest, training_sources
from stereo_kd_training.train import load_network

FREE = 'Apache-2.0'


def require_free_place(run: RunFolder) -> None:
    """Refuse to write over a folder that this run did not deliver.

    Raises:
        AdaptError: there is something.
    """
    out = Path(run.settings.out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())) or _is_ours(run, out):
        return
    raise AdaptError(f'{out} exists already and is not overwritten; give another --out')


def _is_ours(run: RunFolder, out: Path) -> bool:
    try:
        manifest = read_manifest(out / f'{run.settings.name}.onnx')
    except ModelError:
        return False
    adaptation = {} if manifest is None else manifest.extra.get('adaptation', {})
    return adaptation.get('asked_sha256') == run.settings.sha256()


def deliver(run: RunFolder) -> dict[str, Any]:
    """Put the folder together beside its place, and move it there in one step."""
    settings = run.settings
    out = Path(settings.out)
    require_free_place(run)
    model = run.folder / run.facts('gate')['model']
    partial = out.with_name(f'.{out.name}.{os.getpid()}')
    for stale in out.parent.glob(f'.{out.name}.*'):
        shutil.rmtree(stale)
    partial.mkdir(parents=True)
    delivered = partial / f'{settings.name}.onnx'
    shutil.copyfile(model, delivered)
    manifest = find_student(settings.student).described(adapted_manifest(run))
    write_manifest(delivered, manifest)
    text = json.dumps(json.loads(manifest.to_json()), indent=2)
    (partial / 'manifest.json').write_text(text + '\n', encoding='utf-8')
    write_report(run, partial)
    if out.exists():
        shutil.rmtree(out)
    os.replace(partial, out)
    run.say('deliver', f'{out}: launch it with model:={out}')
    return {
        'folder': str(out),
        'model': f'{settings.name}.onnx',
        'weights_sha256': manifest.weights_sha256,
        'licence': manifest.licence,
    }


def adapted_manifest(run: RunFolder) -> Manifest:
    """What the model says of itself, or of a joined one the first."""
    settings, look, chosen = run.settings, run.facts('look'), run.facts('select')
    label, verdict = run.facts('label'), run.facts('gate')
    network = load_network(run.folder / run.facts('prune')['checkpoint'])
    student = find_student(settings.student)
    labels = [
        {
            'name': f'labels by {teacher["name"]}',
            'licence': teacher['licence'],
            'pairs': label['pairs'],
            'teacher_fingerprint': teacher['fingerprint'],
        }
        for teacher in look['teachers']
    ]
    bags = [
        {
            'name': f'bag {bag["name"]}',
            'licence': settings.bag_licence,
            'pairs': bag['pairs'],
        }
        for bag in look['bags']
    ]
    licences = sorted(
        {teacher['licence'] for teacher in look['teachers']} | {student.licence or FREE} - {FREE}
    )
    return build_manifest(
        network,
        settings.name,
        licence=' AND '.join(licences) or FREE,
        macs_640x480=complexity(network).macs,
        teacher=' + '.join(teacher['name'] for teacher in look['teachers']),
        training_data=[
            *bags,
            *labels,
            *training_sources(manifests(run.stage('render'))),
            *student.training_data,
        ],
        pruning=run.facts('prune')['steps'],
        metrics={'held_out': verdict['held_out'], 'procedural': verdict['procedural']},
        calibration=look['calibration'],
        extra={
            'adaptation': {
                'student': look['student'],
                'pairs': {part: len(chosen[part]) for part in ('train', 'validation', 'held_out')},
                'steps': run.facts('distil')['steps'],
                'checks': verdict['checks'],
                'asked_sha256': settings.sha256(),
            }
        },
    )
