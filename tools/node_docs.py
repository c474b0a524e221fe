# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/node.md, the page of topics, parameters and diagnostics, from the code's own tables.

python tools/node_docs.py            writes the page
python tools/node_docs.py --check    exits 1 when the page is not what the code says
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterable
from pathlib import Path

from stereo_kd_ros.doctor_checks import CHECKS
from stereo_kd_ros.node import calibration_watch, diagnostics, inputs, outputs, silence
from stereo_kd_ros.node.parameters import PARAMETERS, ParameterSpec

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'node.md'
TEXT = """\
<!-- Written by tools/node_docs.py from the code; change the tables there. -->
# The stereo node

`stereo_node` turns two rectified image topics and their camera_info into depth. It is a lifecycle
node that configures and activates itself unless `autostart` is false:

    ros2 launch stereo_kd_ros stereo.launch.py model:=small     # in a ROS 2 distribution
    stereo-kd run                                               # without one

The newest complete pair wins: while the model works on one pair, later pairs replace each other,
and what is replaced is counted. All names are relative and can be remapped, camera_info apart from
its image.

## Launch

`ros2 launch stereo_kd_ros stereo.launch.py` takes these arguments but for the last three;
`replay.launch.py` takes all. Two cameras: include `stereo.launch.py` twice under two namespaces.

{arguments}

A rig is a file in `config/rigs` with the topics of a known camera and a few parameters.

`launch_image_proc` needs the package image_proc, `rviz` needs rviz2 (without it the node starts
all the same and says how to install it). The layouts are `config/rviz/stereo.rviz` and
`config/foxglove/stereo.json`; they show the frame of our own bags, `left_camera_optical_frame`:
give `rviz_frame`, or choose it in Foxglove's 3D panel, when your camera's is another.

Fast DDS as it comes loses most best-effort images above half a megabyte between two processes.
The launch files and `stereo-kd` therefore give the node `config/fastdds.xml`, unless
`FASTDDS_DEFAULT_PROFILES_FILE` or `FASTRTPS_DEFAULT_PROFILES_FILE` is set. What counts is the
process that writes: give the camera driver the same file.

NumPy has one thread in the node, for more of them go on spinning on the processors that inference
wants; set `OPENBLAS_NUM_THREADS` if something else in its process needs more. Who takes
`StereoNode` into a process of their own imports `stereo_kd_ros.node` before NumPy, or sets it.

## Subscribed topics

Best effort, volatile, five deep. With `image_transport: compressed` the images are
`sensor_msgs/CompressedImage` on `<topic>/compressed`.

{inputs}

## Published topics

Reliable, volatile, five deep. Each is lazy: when nobody listens it is not computed. Every message
carries the header of the left image, stamp and frame untouched, and every image has the size of
the left image.

{outputs}

The QoS of every topic can be changed with `qos_overrides.<resolved topic>.subscription.*` and
`qos_overrides.<resolved topic>.publisher.*`: `history`, `depth` and `reliability`.

## Parameters

A parameter that is not dynamic takes effect when the node is configured; a later change is refused
with that reason. `config/stereo.yaml` has them all at their defaults.

{parameters}

## Diagnostics

`/diagnostics` (`diagnostic_msgs/DiagnosticArray`) once a second, four statuses named
`<node>: <part>`. Keys are stable, values are strings, counts run from the start of the process.

{keys}

### Drops by cause

In `pipeline`, as `dropped_<cause>`.

{drop_causes}

### Stages

In `pipeline`, as `<stage>_ms_p50`, `_p95`, `_p99` and `_max` over the last 300 pairs.

{stages}

## Why is nothing published?

After `silence_timeout` seconds without output the node names the cause, once per change, in the
log and as `silence_cause` in diagnostics.

{silence_causes}

## Is the camera right?

While somebody listens the node looks at one pair every two seconds for what is wrong with the
cameras: the checks below, of `stereo-kd doctor`. It logs each change once, with what it does to
depth and what mends it, and warns in the diagnostics of `calibration`; depth goes on, as pictures
can mislead. What pictures show counts when two looks running agree; a blocked lens takes four
pairs between which the scene changed. A cx offset is only told, as depth here allows for it.
`calibration_check: false` ends it, while running too.

{checks}

A model whose manifest names the camera it was adapted to is compared with the camera at hand:
`model_calibration`, a warning there and one line in the log.
"""


def page() -> str:
    """Returns the page's text."""
    argument_head = ('Argument', 'Default', 'Choices', 'Meaning')
    topic_head = ('Topic', 'Type', 'What it is')
    parameter_head = ('Name', 'Default', 'Unit', 'Range', 'Dynamic', 'Meaning')
    return TEXT.format(
        arguments=table(argument_head, argument_rows()),
        inputs=table(topic_head, input_rows()),
        outputs=table(topic_head, output_rows()),
        parameters=table(parameter_head, parameter_rows()),
        keys='\n\n'.join(
            f'### `{part}`\n\n' + table(('Key', 'Meaning'), code_rows(keys))
            for part, keys in diagnostics.KEYS.items()
        ),
        drop_causes=table(('Cause', 'What was dropped'), code_rows(diagnostics.DROP_CAUSES)),
        stages=table(('Stage', 'What it spans'), code_rows(diagnostics.STAGES)),
        silence_causes=table(('Cause', 'What it means'), code_rows(silence.CAUSES)),
        checks=table(('Check', 'What it looks at', 'What a bad value does'), check_rows()),
    )


def argument_rows() -> Iterable[tuple[str, ...]]:
    """Returns a row per launch argument, read from the source: launch need not be installed."""
    names = {'RIGS': [path.stem for path in sorted((ROOT / 'config/rigs').glob('*.yaml'))]}
    for file in ('stereo.launch.py', 'replay.launch.py'):
        tree = ast.parse((ROOT / 'launch' / file).read_text(encoding='utf-8'))
        names |= {
            node.targets[0].id: [element.value for element in node.value.elts]
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("['")
        }
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call) or ast.unparse(call.func) != 'DeclareLaunchArgument':
                continue
            options = {keyword.arg: keyword.value for keyword in call.keywords}
            yield (
                f'`{call.args[0].value}`',
                launch_default(options.get('default_value')),
                ', '.join(f'`{choice}`' for choice in launch_choices(options, names)),
                options['description'].value,
            )


def launch_default(value: ast.expr | None) -> str:
    """Returns the default of a launch argument as the page shows it."""
    if value is None:
        return 'required'
    if isinstance(value, ast.Constant):
        return f'`{value.value}`' if value.value else ''
    return '`config/stereo.yaml`'


def launch_choices(options: dict[str | None, ast.expr], names: dict[str, list[str]]) -> list[str]:
    """Returns the choices of a launch argument, without the empty one."""
    choices = options.get('choices')
    if isinstance(choices, ast.Name):
        return names[choices.id]
    found: list[str] = []
    for element in getattr(choices, 'elts', ()):
        if isinstance(element, ast.Starred):
            found += names[element.value.id]
        elif element.value:
            found.append(element.value)
    return found


def input_rows() -> Iterable[tuple[str, ...]]:
    """Returns a row per subscribed topic."""
    for name, topic in inputs.TOPICS.items():
        kind = 'CameraInfo' if name.endswith('info') else 'Image'
        yield f'`{topic}`', f'`sensor_msgs/{kind}`', inputs.DESCRIPTIONS[name]


def output_rows() -> Iterable[tuple[str, ...]]:
    """Returns a row per published topic."""
    for output in outputs.TOPICS.values():
        package = output.message_type.__module__.split('.')[0]
        kind = f'`{package}/{output.message_type.__name__}`'
        yield f'`{output.topic}`', kind, output.description


def check_rows() -> Iterable[tuple[str, ...]]:
    """Returns a row per check of the cameras."""
    for name in calibration_watch.CHECKS:
        yield f'`{name}`', CHECKS[name].title, CHECKS[name].meaning


def parameter_rows() -> Iterable[tuple[str, ...]]:
    """Returns a row per parameter."""
    for spec in PARAMETERS:
        default = f'`{spec.default!r}`'.replace('True', 'true').replace('False', 'false')
        dynamic = 'yes' if spec.dynamic else ''
        yield f'`{spec.name}`', default, spec.unit, span(spec), dynamic, spec.description


def span(spec: ParameterSpec) -> str:
    """Returns the range or the choices of a parameter."""
    if spec.choices:
        return ', '.join(f'`{choice}`' for choice in spec.choices)
    if spec.minimum is None or spec.maximum is None:
        return ''
    return f'{spec.minimum:g} .. {spec.maximum:g}'


def code_rows(meanings: dict[str, str]) -> Iterable[tuple[str, ...]]:
    """Returns a row per name, the name as code."""
    return ((f'`{name}`', meaning) for name, meaning in meanings.items())


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Returns a Markdown table."""
    lines = [head, tuple('---' for _ in head), *rows]
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in lines)


def main() -> int:
    """Writes or checks the page."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--check', action='store_true', help='only compare')
    check = parser.parse_args().check
    if not check:
        PAGE.write_text(page(), encoding='utf-8')
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding='utf-8') == page():
        return 0
    print(f'{PAGE} is not what the code says; run python tools/node_docs.py', file=sys.stderr)
    return 1


if __name__ == '__main__':
    sys.exit(main())
