# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the pages say exists: every command and option, every example's options, every link.

No command is run here; its options are compared with what its parser knows.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text

from stereo_kd_ros.commands.main import app as runtime
from stereo_kd_training.main import app as training

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ('*.md', 'docs/*.md', 'training/*.md', 'models/*.md', 'config/**/*.md')
    for path in REPOSITORY.glob(pattern)
)
COMMANDS: dict[str, dict[str, Any]] = {
    name: dict(typer.main.get_command(app).commands)
    for name, app in (('stereo-kd', runtime), ('stereo-kd-train', training))
}
EVERY_COMMAND = [(program, name) for program in COMMANDS for name in COMMANDS[program]]

FENCE = re.compile(r'^```(?:bash|sh|console)\n(.*?)^```', re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r'(?:^ {4}\S.*\n)+', re.MULTILINE)
CALL = re.compile(r'(?:^|[\s/])(stereo-kd(?:-train)?)\)? +([^;|&\n]+)', re.MULTILINE)
LINK = re.compile(r'(?<!`)\[[^\]\n]*\]\(([^)\s]+)\)')
HEADING = re.compile(r'^#+ +(.+?) *$', re.MULTILINE)


def relative(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def examples(text: str) -> list[tuple[str, list[str]]]:
    """Calls of our commands in the code blocks of a page, as (program, words)."""
    found = []
    for block in [*FENCE.findall(text), *INDENTED.findall(text)]:
        for program, words in CALL.findall(block.replace('\\\n', ' ')):
            try:
                found.append((program, shlex.split(words, comments=True)))
            except ValueError:  # Prose beside a command, with an apostrophe.
                found.append((program, words.split()))
    return found


def mistakes(program: str, words: list[str]) -> list[str]:
    """What the parser of `program` would not take, or would miss."""
    if words[0].startswith('-'):
        return []
    if words[0] not in COMMANDS[program]:
        return [f'{program} has no command {words[0]}']
    parameters = COMMANDS[program][words[0]].params
    options = {
        name: parameter
        for parameter in parameters
        if parameter.param_type_name == 'option'
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    wrong, given, values = [], set(), 0
    rest = iter(words[1:])
    for word in rest:
        name, _, value = word.partition('=')
        if word in ('-h', '--help'):
            return []
        if word in ('--ros-args', '...'):
            break
        if not word.startswith('-'):
            values += 1
        elif name not in options:
            wrong.append(f'{program} {words[0]} has no option {name}')
        else:
            given.add(options[name].name)
            if not options[name].is_flag and not value and next(rest, None) is None:
                wrong.append(f'{program} {words[0]}: {name} needs a value')
    if '...' in words:
        return wrong
    for parameter in parameters:
        needed_option = parameter.required and parameter.param_type_name == 'option'
        if needed_option and parameter.name not in given and not parameter.envvar:
            wrong.append(f'{program} {words[0]} misses {parameter.opts[0]}')
    needed = sum(p.required for p in parameters if p.param_type_name == 'argument')
    if values < needed:
        wrong.append(f'{program} {words[0]} takes {needed} arguments, not {values}')
    return wrong


def anchors(text: str) -> set[str]:
    """How the headings of a page can be linked to."""
    return {
        re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
        for heading in HEADING.findall(text)
    }


@pytest.mark.parametrize(
    ('program', 'name'), EVERY_COMMAND, ids=[' '.join(words) for words in EVERY_COMMAND]
)
def test_every_command_has_its_row_options_and_example(program: str, name: str) -> None:
    page = (REPOSITORY / 'docs/commands.md').read_text()
    section = re.split(rf'^## `{program}`\n', page, maxsplit=1, flags=re.MULTILINE)[1]
    assert re.search(rf'^\| `{name}[ `]', section, re.MULTILINE), 'no row in the table'
    assert name in [words[0] for called, words in examples(page) if called == program]
    for parameter in COMMANDS[program][name].params:
        if parameter.param_type_name == 'option' and not parameter.hidden:
            names = [*parameter.opts, *parameter.secondary_opts]
            assert any(re.search(rf'{re.escape(text)}(?![\w-])', page) for text in names), names


@pytest.mark.parametrize(
    ('program', 'name'), EVERY_COMMAND, ids=[' '.join(words) for words in EVERY_COMMAND]
)
def test_help_shows_all_that_is_written_there(program: str, name: str) -> None:
    command = COMMANDS[program][name]
    for text in (command.help, *(parameter.help for parameter in command.params)):
        if text:  # Words in brackets would be taken for a style.
            assert Text.from_markup(text).plain == re.sub(r'\[/?bold\]', '', text)


@pytest.mark.parametrize('page', PAGES, ids=relative)
def test_examples_are_taken_by_their_commands(page: Path) -> None:
    found = examples(page.read_text())
    assert [wrong for program, words in found for wrong in mistakes(program, words)] == []


@pytest.mark.parametrize('page', PAGES, ids=relative)
def test_links_within_the_repository_resolve(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if re.match(r'[a-z]+:', link):
            continue
        name, _, anchor = link.partition('#')
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(REPOSITORY), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def test_every_page_is_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [REPOSITORY / 'README.md']
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            links = (link.partition('#')[0] for link in LINK.findall(page.read_text()))
            targets = ((page.parent / link).resolve() for link in links)
            waiting += [target for target in targets if target in PAGES]
    assert [relative(page) for page in PAGES if page not in reached] == []


def test_the_examples_of_the_readme_are_found() -> None:
    called = {words[0] for _, words in examples((REPOSITORY / 'README.md').read_text())}
    assert {'infer', 'evaluate', 'generate', 'train', 'adapt'} <= called


@pytest.mark.parametrize(
    ('words', 'mistake'),
    [
        ('stereo-kd infer l.png r.png', 'misses --output'),
        ('stereo-kd infer l.png -o out', 'takes 2 arguments, not 1'),
        ('stereo-kd evaluate bag -o out --gait p95_ms<33', 'no option --gait'),
        ('stereo-kd demo --frames', '--frames needs a value'),
        ('stereo-kd-train distil pool', 'no command distil'),
    ],
)
def test_a_wrong_example_is_found(words: str, mistake: str) -> None:
    ((program, call),) = examples(f'```bash\n{words}\n```\n')
    (wrong,) = mistakes(program, call)
    assert mistake in wrong
