# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The model zoo: what every shipped file is and what was measured with it, as JSON and as text.

`collect` reads the manifests of a folder of models and the reports that `stereo-kd-train
evaluate --json` wrote, and matches them by a digest of the graph, so that figures are never
those of another file. `as_markdown` turns that into a README; nothing in it is typed by hand.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from stereo_kd_ros.benchmark import check_plot
from stereo_kd_ros.metrics import DEPTH_ERROR, useful_depth_m
from stereo_kd_ros.model import file_sha256, read_manifest, write_manifest
from stereo_kd_ros.processor import maker_of
from stereo_kd_training.evaluation_report import read_report
from stereo_kd_training.joined import joined_with

FORMAT = 1
# Product of focal length [px] and baseline [m] of rigs that many have, at the named width.
RIGS = (
    ('0.05 m, 640 px wide', 19.0),
    ('0.075 m, 640 px wide', 34.0),
    ('0.12 m, 1280 px wide', 84.0),
    ('0.54 m, 1242 px wide (KITTI)', 388.0),
)

_FIGURES = ('epe_px', 'bad1', 'bad3', 'd1', 'edge_epe_px', 'confidence_ause')
_SUMMARY = (
    'geometric_mean_epe_px',
    'geometric_mean_edge_epe_px',
    'mean_bad1',
    'mean_bad3',
    'mean_d1',
    'mean_confidence_ause',
)


class ZooError(RuntimeError):
    """Models and reports that do not go together; the message says which."""


def graph_sha256(path: str | Path) -> str:
    """Digest of what a model computes: its file without the metadata, and so the manifest."""
    import onnx

    model = onnx.load(str(path))
    del model.metadata_props[:]
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def collect(
    folder: str | Path,
    reports: Sequence[Mapping[str, Any]] = (),
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The zoo of a folder as JSON values.

    Args:
        folder: of .onnx files with manifests.
        reports: of `evaluate --json`; the last that measured a model with a provider counts.
        earlier: a zoo whose figures stay where no report has newer ones of the same graph.

    Raises:
        ZooError: no model, one without a manifest, or a report that measured none of them.
        ModelError: a file is damaged.
    """
    models = [_describe(path) for path in sorted(Path(folder).glob('*.onnx'))]
    if not models:
        raise ZooError(f'{folder} holds no .onnx file')
    peers: dict[str, Any] = dict((earlier or {}).get('peers', {}))
    known = {model['graph_sha256']: model for model in (earlier or {}).get('models', ())}
    for model in models:
        old = known.get(model['graph_sha256'])
        if old:
            model.update({key: old[key] for key in ('accuracy', 'latency')})
    for report in reports:
        _merge(models, peers, report)
    return {'format': FORMAT, 'models': models, 'peers': peers}


def write_figures(folder: str | Path, zoo: dict[str, Any]) -> None:
    """Put each model's accuracy into the manifest in its file, and its new digest into `zoo`.

    What a file computes, and so its `graph_sha256`, stays as it is.

    Raises:
        ModelError: a file is damaged.
    """
    for model in zoo['models']:
        path = Path(folder) / model['file']
        manifest = read_manifest(path)
        figures = _rounded(model['accuracy'])
        if manifest is None or figures is None or manifest.metrics == figures:
            continue
        write_manifest(path, dataclasses.replace(manifest, metrics=figures))
        model.update(sha256=file_sha256(path), bytes=path.stat().st_size)


def _describe(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path)
    if manifest is None:
        raise ZooError(f'{path} carries no manifest; export it with `stereo-kd-train export`')
    return {
        'name': path.stem,
        'file': path.name,
        'sha256': file_sha256(path),
        'graph_sha256': graph_sha256(path),
        'bytes': path.stat().st_size,
        'version': manifest.version,
        'network': manifest.network,
        'parameters': manifest.parameters,
        'macs_640x480': manifest.macs_640x480,
        'max_disparity_px': manifest.max_disparity_px,
        'licence': manifest.licence,
        'teacher': manifest.teacher,
        'pruning_steps': len(manifest.pruning),
        'joined_with': joined_with(manifest),
        'training_data': [
            {key: entry.get(key) for key in ('name', 'licence')}
            for entry in manifest.training_data
        ],
        'accuracy': None,
        'latency': [],
    }


def _merge(
    models: Iterable[dict[str, Any]], peers: dict[str, Any], report: Mapping[str, Any]
) -> None:
    by_graph = {model['graph_sha256']: model for model in models}
    found = 0
    for name, of in report['methods'].items():
        details = of.get('details', {})
        figures = {
            'summary': {key: of['summary'].get(key) for key in _SUMMARY},
            'sets': {
                set_name: {'pairs': own['pairs'], **{key: own.get(key) for key in _FIGURES}}
                for set_name, own in of['sets'].items()
            },
        }
        timing = _timing(of, report)
        if of['kind'] != 'model':
            earlier = peers.get(name, {}).get('latency', [])
            peers[name] = {'accuracy': figures, 'latency': _with_timing(earlier, timing)}
            continue
        model = by_graph.get(details.get('graph_sha256'))
        if model is None:
            continue
        found += 1
        # Accuracy is that of the CPU in float32; other providers only add their time.
        if details.get('provider') == 'cpu' or model['accuracy'] is None:
            model['accuracy'] = figures
        model['latency'] = _with_timing(model['latency'], timing)
    if not found and any(of['kind'] == 'model' for of in report['methods'].values()):
        raise ZooError(
            'a report measured models, but none that lies in the folder now: evaluate those files '
            'again (`stereo-kd-train evaluate --model FILE --json REPORT`)'
        )


def _with_timing(
    earlier: Sequence[dict[str, Any]], timing: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Both, but of `earlier` only what no newer one measured in the same way."""
    same = {_way(entry) for entry in timing}
    return sorted([*(old for old in earlier if _way(old) not in same), *timing], key=_way)


def _way(entry: Mapping[str, Any]) -> tuple[str, str, int]:
    """Kind of processor, provider and threads."""
    return _kind(entry['machine']), entry['provider'], entry['threads'] or 0


def _kind(machine: Mapping[str, Any]) -> str:
    """Maker and vector instructions of a processor: neither tells alone how fast it computes."""
    maker = maker_of(machine.get('processor') or '')
    return f'{maker} {machine.get("vectors") or ""}'.strip()


def _timing(of: Mapping[str, Any], report: Mapping[str, Any]) -> list[dict[str, Any]]:
    if 'latency_ms' not in of:
        return []
    details = of.get('details', {})
    return [
        {
            'provider': details.get('provider', 'cpu'),
            'precision': details.get('precision', 'fp32'),
            'threads': report.get('threads'),
            'min_ms': of['latency_ms']['min'],
            'median_ms': of['latency_ms']['median'],
            'machine': report.get('machine', {}),
        }
    ]


def as_json(zoo: Mapping[str, Any]) -> str:
    """The text of zoo.json: rounded, NaN as null, ending with a newline."""
    return json.dumps(_rounded(zoo), indent=1, sort_keys=True) + '\n'


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


def as_markdown(zoo: Mapping[str, Any]) -> str:
    """The zoo's README, from what zoo.json holds and nothing else."""
    zoo = json.loads(as_json(zoo))
    lines = [
        '# Models',
        '',
        'Made by `stereo-kd-train zoo`; edit `zoo.json` by measuring, not by hand. Launch picks',
        'one by name or size: `model:=kestrel_small` or `model:=small`.',
        '',
        *_table(
            (
                'model',
                'parameters',
                'GMAC at 640x480',
                'MB',
                'range px',
                'EPE px',
                'bad-3 %',
                'D1 %',
                'edge EPE px',
                'AUSE',
                'licence',
            ),
            [_model_row(model) for model in zoo['models']]
            + [_peer_row(name, peer) for name, peer in sorted(zoo['peers'].items())],
        ),
        '',
        'Over all labelled sets: geometric mean of EPE and edge EPE, mean of the others; every',
        'ground-truth pixel counts. AUSE: how far the confidence is from sorting pixels by their',
        'error (0) on the scale of one that says nothing (1).',
        '',
        '## Latency',
        '',
        '640x480, milliseconds, minimum / median, on processors with those vector instructions,',
        'and how many processes wanted the processor meanwhile; the machines are in `zoo.json`.',
        '',
        *_table(
            ('model', 'processor', 'provider', 'precision', 'threads', 'load', 'ms'),
            [row for model in zoo['models'] for row in _latency_rows(model['name'], model)]
            + [
                row
                for name, peer in sorted(zoo['peers'].items())
                for row in _latency_rows(name, peer)
            ],
        ),
        '',
        '## By set',
        '',
        'EPE px / bad-3 % / D1 %.',
        '',
        *_by_set(zoo),
        '',
        '## Useful depth',
        '',
        f'Nearest: the largest disparity. Farthest: where the mean error makes {DEPTH_ERROR:.0%}',
        'of depth, as `stereo-kd models --rig FOCAL_PX*BASELINE_M` tells for any rig. Metres.',
        '',
        *_table(
            ('model', *(f'{label}: f·B {product:g} px·m' for label, product in RIGS)),
            [_depth_row(model) for model in zoo['models']],
        ),
        '',
        '## Training data and licences',
        '',
    ]
    for model in zoo['models']:
        taught = f', taught by {model["teacher"]}' if model['teacher'] else ''
        pruned = f', pruned in {model["pruning_steps"]} steps' if model['pruning_steps'] else ''
        joined = f', with {model["joined_with"]} in its file' if model.get('joined_with') else ''
        made = f'{model["network"]}{taught}{pruned}{joined}'
        lines.append(
            f'- **{model["name"]}** {model["version"]} ({made}), '
            f'weights {model["licence"] or "without a licence"}'
        )
    lines += ['', *_table(('learnt from', 'licences', 'by'), _source_rows(zoo['models']))]
    return '\n'.join(lines) + '\n'


def _source_rows(models: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """What was learnt from, all licences of one source together, and by which models."""
    licences: dict[tuple[str, str], list[str]] = {}
    for model in models:
        stated: dict[str, list[str]] = {}
        for entry in model['training_data']:
            licence = str(entry['licence'])
            source = str(entry['name']).removesuffix(f', {licence}')
            if licence not in stated.setdefault(source, []):
                stated[source].append(licence)
        for source, found in stated.items():
            licences.setdefault((source, ', '.join(sorted(found))), []).append(model['name'])
    everyone = [model['name'] for model in models]
    return [
        (source, found, 'all' if names == everyone and len(names) > 1 else ', '.join(names))
        for (source, found), names in licences.items()
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    return lines + ['| ' + ' | '.join(row) + ' |' for row in rows]


def _number(value: float | None, digits: int) -> str:
    return '-' if value is None else f'{value:.{digits}f}'


def _accuracy_cells(accuracy: Mapping[str, Any] | None) -> list[str]:
    summary = (accuracy or {}).get('summary', {})
    return [
        _number(summary.get(key), digits)
        for key, digits in (
            ('geometric_mean_epe_px', 3),
            ('mean_bad3', 2),
            ('mean_d1', 2),
            ('geometric_mean_edge_epe_px', 2),
            ('mean_confidence_ause', 3),
        )
    ]


def _model_row(model: Mapping[str, Any]) -> list[str]:
    return [
        f'**{model["name"]}**',
        f'{model["parameters"] / 1e6:.3f} M',
        f'{model["macs_640x480"] / 1e9:.2f}',
        f'{model["bytes"] / 1e6:.2f}',
        f'0 .. {model["max_disparity_px"]:g}',
        *_accuracy_cells(model['accuracy']),
        model['licence'] or '-',
    ]


def _peer_row(name: str, peer: Mapping[str, Any]) -> list[str]:
    return [name, *['-'] * 4, *_accuracy_cells(peer['accuracy']), '-']


def _latency_rows(name: str, of: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            _kind(entry['machine']) or '-',
            entry['provider'],
            entry['precision'] or '-',
            str(entry['threads'] or '-'),
            _number(entry['machine'].get('load_1min'), 1),
            f'{entry["min_ms"]:.1f} / {entry["median_ms"]:.1f}',
        ]
        for entry in of['latency']
    ]


def _by_set(zoo: Mapping[str, Any]) -> list[str]:
    columns = [(model['name'], model['accuracy']) for model in zoo['models']]
    columns += [(name, peer['accuracy']) for name, peer in sorted(zoo['peers'].items())]
    columns = [(name, accuracy) for name, accuracy in columns if accuracy]
    sets = sorted({set_name for _, accuracy in columns for set_name in accuracy['sets']})
    rows = []
    for set_name in sets:
        cells = []
        for _, accuracy in columns:
            own = accuracy['sets'].get(set_name)
            cells.append(
                '-'
                if own is None
                else f'{_number(own["epe_px"], 2)} / {_number(own["bad3"], 1)} / '
                f'{_number(own["d1"], 1)}'
            )
        rows.append([set_name, *cells])
    return _table(('set', *(name for name, _ in columns)), rows)


def _depth_row(model: Mapping[str, Any]) -> list[str]:
    accuracy = model['accuracy'] or {}
    epe = accuracy.get('summary', {}).get('geometric_mean_epe_px')
    cells = []
    for _, product in RIGS:
        near, far = useful_depth_m(product, model['max_disparity_px'], epe)
        cells.append(f'{near:.2f} .. {"-" if math.isnan(far) else f"{far:.1f}"}')
    return [model['name'], *cells]


def plot_zoo(zoo: Mapping[str, Any], path: str | Path) -> list[str]:
    """Draw error against time: one panel for each kind of processor that models were timed on.

    Of several providers the quickest counts, by its median.

    Returns:
        the kinds of processors drawn.

    Raises:
        ZooError: no model has both an error and a time.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot, ticker

    models = {model['name'].removeprefix('kestrel_'): model for model in zoo['models']}
    panels: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for group, named in (('models', models), ('peers', zoo['peers'])):
        for name, of in named.items():
            epe = ((of['accuracy'] or {}).get('summary') or {}).get('geometric_mean_epe_px')
            for entry in of['latency'] if epe else ():
                found = panels.setdefault(_kind(entry['machine']), {}).setdefault(group, {})
                quickest = min(entry['median_ms'], found.get(name, (math.inf,))[0])
                found[name] = (quickest, epe)
    kinds = sorted(kind for kind, found in panels.items() if 'models' in found)
    if not kinds:
        raise ZooError('no model has both an error and a time: give a report that measured both')
    figure, axes = pyplot.subplots(
        1, len(kinds), figsize=(4.6 * len(kinds) + 1, 4), sharey=True, squeeze=False,
        layout='constrained',
    )  # fmt: skip
    for axis, kind in zip(axes[0], kinds, strict=True):
        for group, style in (('models', 'o-'), ('peers', 's')):
            points = sorted(panels[kind].get(group, {}).items(), key=lambda item: item[1])
            if points:
                axis.plot(*zip(*(at for _, at in points), strict=True), style)
            for name, at in points:
                axis.annotate(name, at, (5, 5), textcoords='offset points', fontsize=9)
        axis.set_xscale('log')
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter('{x:g}')
        axis.xaxis.set_minor_formatter('')
        axis.margins(x=0.2, y=0.1)
        axis.set_title(kind, fontsize=10)
        axis.set_xlabel('ms a pair at 640x480, quickest provider')
        axis.grid(alpha=0.3, which='both')
    axes[0][0].set_ylabel('EPE px, geometric mean over sets')
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={'Date': None} if Path(path).suffix == '.svg' else None)
    pyplot.close(figure)
    return kinds


def zoo_command(
    folder: Annotated[Path, typer.Argument(help='Folder of shipped .onnx files.')],
    report: Annotated[
        list[Path] | None,
        typer.Option(help='JSON of `evaluate --model FILE --json`; may be repeated.'),
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option('--json', help='Where.', show_default='zoo.json in FOLDER')
    ] = None,
    readme: Annotated[
        Path | None, typer.Option(help='Where.', show_default='README.md in FOLDER')
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help='Draw error against time into this SVG, PNG or PDF.')
    ] = None,
    check: Annotated[
        bool, typer.Option('--check', help='Write nothing; fail when the files are out of date.')
    ] = False,
) -> None:
    """Write what was measured into the zoo.json, README and manifests of a folder of models."""
    if plot is not None:
        check_plot(plot)
    json_path = json_path or folder / 'zoo.json'
    readme = readme or folder / 'README.md'
    earlier = read_zoo(json_path) if json_path.is_file() else None
    reports = [read_report(path) for path in report or []]
    zoo = collect(folder, reports, earlier)
    if not check:
        write_figures(folder, zoo)
    wanted = {json_path: as_json(zoo), readme: as_markdown(zoo)}
    for path, text in wanted.items():
        if check and (not path.is_file() or path.read_text(encoding='utf-8') != text):
            raise ZooError(f'{path} is not what `stereo-kd-train zoo {folder}` would write')
        if not check:
            path.write_text(text, encoding='utf-8')
    if plot is not None and not check:
        kinds = plot_zoo(zoo, plot)
        typer.echo(f'drew {", ".join(kinds)} into {plot}')
    unmeasured = [model['name'] for model in zoo['models'] if model['accuracy'] is None]
    if unmeasured:
        typer.echo(
            f'no figures of {", ".join(unmeasured)}: give the JSON of `evaluate` as --report'
        )
    typer.echo(f'{len(zoo["models"])} models in {json_path} and {readme}')


def read_zoo(path: str | Path) -> dict[str, Any]:
    """A zoo.json.

    Raises:
        ZooError: it is damaged or of another format.
    """
    try:
        zoo = json.loads(Path(path).read_text(encoding='utf-8'))
        if zoo['format'] != FORMAT:
            raise ZooError(f'{path} has the format {zoo["format"]}, expected {FORMAT}')
    except (ValueError, KeyError, TypeError) as error:
        raise ZooError(f'{path} is no zoo.json: {error}; delete it to begin anew') from error
    return zoo
