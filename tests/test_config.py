"""Loading and overriding configs: every mistake is one sentence that names the key, its section and the nearest one."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from mvdjax import config as configs
from mvdjax.errors import UserError
from mvdjax.settings import Run

FILE = '''
"""A config."""
from ml_collections import ConfigDict


def get_config(arg=''):
    c = ConfigDict()
    c.task_name = 'classify'
    c.task = {'model': {'variant': 'nano', 'patch': (2, 8, 8)}, 'num_classes': 8, 'mix': {'group': 4}}
    c.data = {'files': 'list.txt', 'recipe': 'finetune', 'options': {'size': 48, 'scale': (0.5, 1.0)}}
    views = {'recipe': 'views', 'options': {'size': 48}}
    c.evals = {n: {'data': {'files': f'{n}.txt', **views}, 'batch': 4} for n in ('val', 'test')}
    c.optim = {'warmup_epochs': 1, 'peak_rate': 1e-3}
    c.init = {'checkpoint': ''}
    c.run = {'global_batch': 8, 'steps': 2}
    c.mesh = {}
    if arg == 'long':
        c.run.steps = 100
    return c
'''


@pytest.fixture
def write(tmp_path):
    def make(*changes, name='my.py'):
        """The file above with lines added before its return."""
        path = tmp_path / name
        path.write_text(FILE.replace('    return c\n', ''.join(f'    {line}\n' for line in changes) + '    return c\n'))
        return str(path)

    return make


def refused(message, spec, *overrides):
    with pytest.raises(UserError, match=message) as found:
        configs.load(spec, overrides)
    return str(found.value)


def test_loading_locks_and_fills_in_every_default(write):
    config = configs.load(write())
    assert config.is_locked
    assert config.run.seed == 0
    assert config.optim.betas == (0.9, 0.999)
    assert config.mesh.data == -1
    assert config.data.workers == 0
    assert config.data.options.flip == 0.5
    assert config.evals.test.data.options.clips == 5
    assert config.task.label_smoothing == 0.1
    assert config.init.use_ema is False


def test_the_argument_reaches_the_file(write):
    assert configs.load(write() + ':long').run.steps == 100
    assert configs.load(write()).run.steps == 2
    assert configs.load(write(name='odd:name.py')).run.steps == 2  # a colon in an existing path is the path's


def test_a_loaded_config_survives_json(write):
    config = configs.load(write())
    again = configs.from_meta({'config': json.loads(json.dumps(config.to_dict()))})
    assert again.task.model.variant == 'nano'
    assert configs.make_task(again) is not None
    configs.build(Run, configs.section(again, 'run'), 'run')


SECTIONS = {
    'task': ('num_clases', 'num_classes'),
    'data': ('file', 'files'),
    'data.options': ('szie', 'size'),
    'evals.test.data': ('worker', 'workers'),
    'evals.val.data.options': ('clip', 'clips'),
    'optim': ('layer_dcay', 'layer_decay'),
    'init': ('chekpoint', 'checkpoint'),
    'run': ('golbal_batch', 'global_batch'),
    'mesh': ('tensr', 'tensor'),
}


@pytest.mark.parametrize('section', SECTIONS)
def test_a_misspelt_key_in_a_file_names_key_section_and_nearest(write, section):
    wrong, right = SECTIONS[section]
    name = section.replace('evals.val', 'evals.(val|test)')  # the file makes both from one dict
    message = rf"config\.{name} has no key '{wrong}'; did you mean '{right}'\? it takes .*{right}"
    refused(message, write(f'c.{section}.{wrong} = 3'))


@pytest.mark.parametrize('section', [*SECTIONS, 'task.model', 'task.mix', 'evals.test', 'evals'])
def test_a_misspelt_override_names_key_section_and_nearest(write, section):
    nested = {
        'task.model': ('varant', 'variant'),
        'task.mix': ('goup', 'group'),
        'evals.test': ('bach', 'batch'),
        'evals': ('tst', 'test'),
    }
    wrong, right = {**SECTIONS, **nested}[section]
    message = rf"config\.{section} has no key '{wrong}'; did you mean '{right}'\? it has .*{right}"
    text = refused(message, write(), f'--config.{section}.{wrong}=3')
    assert text.startswith(f'--config.{section}.{wrong}=3: ')
    assert '\n' not in text


def test_misspelt_sections(write):
    refused("unknown section 'optimm'; did you mean 'optim'", write('c.optimm = {}'))
    refused("config has no key 'rum'; did you mean 'run'", write(), '--config.rum.seed=3')
    refused(r"config\.run\.seed has no key 'x'; it has no keys", write(), '--config.run.seed.x=3')


@pytest.mark.parametrize('name', configs.SECTIONS)
def test_a_missing_section_is_named(write, name):
    assert 'my.py' in refused(f"has no section '{name}'; a config has task_name, task", write(f'del c.{name}'))


def test_a_section_that_is_none(write):
    refused(r'config\.optim must be a section of keys, not None', write('c.optim = None'))
    refused(r'config\.optim must be a section of keys, not None', write(), '--config.optim=None')
    refused(r'config\.evals must be a section of keys', write(), '--config.evals=None')
    refused(r"config\.evals\.test must be \{'data'", write(), '--config.evals.test=None')
    refused(r'config\.data\.options must be a section of keys, not None', write(), '--config.data.options=None')


def test_a_missing_key_is_named(write):
    refused(r'config\.run lacks global_batch', write('del c.run.global_batch'))
    refused(r'config\.optim lacks warmup_epochs', write('del c.optim.warmup_epochs'))
    refused(r'config\.data\.options lacks size', write('del c.data.options.size'))


@pytest.mark.parametrize(
    ('text', 'path', 'value'),
    [
        ('run.steps=7', 'run.steps', 7),
        ('run.seed=3', 'run.seed', 3),  # a default that the file does not state
        ('task.dropout=0.5', 'task.dropout', 0.5),
        ('data.options.flip=0', 'data.options.flip', 0.0),
        ('evals.test.data.workers=2', 'evals.test.data.workers', 2),
        ('evals.test.batch=2', 'evals.test.batch', 2),
        ('optim.peak_rate=1', 'optim.peak_rate', 1.0),  # a whole number where a float was
        ('optim.warmup_epochs=0.5', 'optim.warmup_epochs', 0.5),  # and a float where a whole number was
        ('optim.peak_rate=1e-4', 'optim.peak_rate', 1e-4),
        ('optim.clip_norm=0.02', 'optim.clip_norm', 0.02),  # None before
        ('optim.clip_norm=None', 'optim.clip_norm', None),
        ('run.epochs=1.5', 'run.epochs', 1.5),
        ('run.steps=None', 'run.steps', None),
        ('init.use_ema=True', 'init.use_ema', True),
        ('init.use_ema=true', 'init.use_ema', True),
        ('init.use_ema=False', 'init.use_ema', False),
        ('optim.betas=(0.9, 0.95)', 'optim.betas', (0.9, 0.95)),
        ('optim.betas=[0.9, 0.95]', 'optim.betas', (0.9, 0.95)),
        ("run.eval_sets=('val',)", 'run.eval_sets', ('val',)),
        ('task.model.variant=B', 'task.model.variant', 'B'),
        ('task.model.patch=(2, 16, 16)', 'task.model.patch', (2, 16, 16)),
        ('task.mix.group=2', 'task.mix.group', 2),
        ('task.mix=None', 'task.mix', None),
        ('init.checkpoint=/some where/x=1', 'init.checkpoint', '/some where/x=1'),
        ('data.files=7', 'data.files', '7'),  # a string stays one
        ('init.checkpoint=', 'init.checkpoint', ''),
    ],
)
def test_overrides(write, text, path, value):
    node = configs.load(write(), [f'--config.{text}'])
    for key in path.split('.'):
        node = node[key]
    assert node == value
    assert type(node) is type(value)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('run.global_batch=big', "'big' is not of type int, like 8"),
        ('run.global_batch=8.5', r'config\.run\.global_batch must be a whole number, not 8\.5'),
        ('mesh.data=1.0', r'config\.mesh\.data must be a whole number, not 1\.0'),
        ('run.global_batch=True', "'True' is not of type int"),
        ('run.global_batch=None', r'config\.run\.global_batch must be a whole number, not None'),
        ('optim.peak_rate=fast', "'fast' is not of type float"),
        ('optim.clip_norm=low', r"config\.optim\.clip_norm must be a number or None, not 'low'"),
        ('run.epochs=many', r"config\.run\.epochs must be a number or None, not 'many'"),
        ('init.use_ema=yes', "'yes' is not of type bool"),
        ('init.use_ema=1', "'1' is not of type bool"),
        ('optim.betas=0.9', "'0.9' is not of type tuple"),
        ('optim.betas=(0.9,)', r'config\.optim\.betas must be a tuple of 2 values, not \(0\.9,\)'),
        ('task=3', 'that is a section; change one of its keys, .*num_classes'),
        ('task.mix=3', 'that is a section; change one of its keys, group'),
        ('run.seed', 'is not an override; write --config.section.key=value'),
        ('data.recipe=fintune', "no data recipe 'fintune'; did you mean 'finetune'"),
        ('task_name=clasify', "no task 'clasify'"),
    ],
)
def test_refused_overrides(write, text, message):
    found = refused(message, write(), f'--config.{text}')
    assert text.split('=')[0].split('.')[-1] in found or text.split('=')[1] in found
    assert '\n' not in found


def test_an_override_of_one_evaluation_set_leaves_the_others_alone(write):
    config = configs.load(write(), ['--config.evals.val.data.options.clips=1'])
    assert config.evals.val.data.options.clips == 1
    assert config.evals.test.data.options.clips == 5


def test_another_recipe_brings_its_own_options(write):
    images = "c.data.options = {'size': 48, 'patch': (1, 8, 8), 'mask': {'kind': 'random', 'ratio': 0.5}}"
    config = configs.load(write(images), ['--config.data.options.flip=0', '--config.data.recipe=images'])
    assert 'views' not in config.data.options
    assert config.data.options.flip == 0


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ("c.run = {'global_batch': 8, 'steps': '5'}", r"config\.run\.steps must be a whole number or None, not '5'"),
        ("c.run = {'global_batch': 8, 'steps': 2.0}", r'config\.run\.steps must be a whole number or None, not 2\.0'),
        ("c.init.allow_fresh = '^head/'", r"config\.init\.allow_fresh must be a tuple, not '\^head/'"),
        ("c.task = {'model': 'B', 'num_classes': 3}", r"config\.task\.model must be a section of keys, not 'B'"),
        ('c.data.files = None', r'config\.data\.files must be a string, not None'),
        ("c.mesh.devices = '8'", r'config\.mesh\.devices must be a whole number or None'),
        ("c.optim.betas = '0.9'", r'config\.optim\.betas must be a tuple'),
    ],
)
def test_values_of_a_wrong_type_in_a_file(write, line, message):
    refused(message, write(line))


def test_files_that_are_no_configs(write, tmp_path):
    refused(r'config file .*none\.py does not exist', str(tmp_path / 'none.py'))
    refused(r'config file .*none\.py does not exist', str(tmp_path / 'none.py:debug'))
    refused('does not exist', str(tmp_path))
    path = tmp_path / 'odd.py'
    for text, message in (
        ('x = 1', r'odd\.py must define get_config'),
        ('def get_config():\n    pass\n', r'odd\.py must define get_config\(arg\), which returns'),
        ('import nothing_of_this_name', r'odd\.py:1 failed with ModuleNotFoundError: No module named'),
        ('def get_config():\n    return 1 / 0\n', r'odd\.py:2 failed with ZeroDivisionError: division by zero'),
        ('def get_config(:\n', r'odd\.py failed with SyntaxError'),
    ):
        path.write_text(text)
        refused(message, str(path))
    path.write_text('def get_config():\n    return None\n')
    refused(r'odd\.py failed with TypeError', f'{path}:debug')  # takes no argument


def test_a_file_may_import_what_lies_beside_it(write, tmp_path, monkeypatch):
    helper = 'STEPS = {}'
    before = sys.path[:], set(sys.modules)
    for folder, steps in (('one', 3), ('two', 44)):
        path = tmp_path / folder / 'my.py'
        path.parent.mkdir()
        (path.parent / '_shared.py').write_text(helper.format(steps))
        path.write_text(Path(write('from _shared import STEPS', 'c.run.steps = STEPS')).read_text())
        monkeypatch.chdir(tmp_path)
        assert configs.load(f'{folder}/my.py').run.steps == steps  # each its own, imported while get_config runs
        assert configs.load(str(path)).run.steps == steps
        assert (sys.path, set(sys.modules)) == before
    assert importlib.util.find_spec('_shared') is None


def test_imports_are_put_back_whatever_a_file_does(write, tmp_path, monkeypatch):
    other = types.ModuleType('_shared')
    monkeypatch.setitem(sys.modules, '_shared', other)
    (tmp_path / '_shared.py').write_text('STEPS = 5')
    before = sys.path[:]
    assert configs.load(write('from _shared import STEPS', 'c.run.steps = STEPS')).run.steps == 5
    refused('ZeroDivisionError', write('import sys, _shared', 'sys.path.append("x")', 'sys.modules["my"] = 1 / 0'))
    assert sys.path == before
    assert sys.modules['_shared'] is other


def run_section(**values):
    return configs.build(Run, {'global_batch': 8, **values}, 'run')


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'epochs': 1, 'steps': 1}, r'config\.run: give the length either as epochs or as steps'),
        ({}, r'config\.run: give the length either as epochs or as steps'),
        ({'steps': 0}, r'config\.run\.steps must be at least 1, not 0'),
        ({'epochs': 0}, r'config\.run\.epochs must be above 0'),
        ({'epochs': -1}, r'config\.run\.epochs must be above 0'),
        ({'steps': 1, 'schedule_epochs': 0}, r'config\.run\.schedule_epochs must be above 0'),
        ({'steps': 1, 'global_batch': 0}, r'config\.run\.global_batch must be at least 1'),
        ({'steps': 1, 'accumulate': 0}, r'config\.run\.accumulate must be at least 1'),
        ({'steps': 1, 'save_every': 0}, r'config\.run\.save_every must be at least 1'),
        ({'steps': 1, 'ema_decay': 1.0}, r'config\.run\.ema_decay must lie in \[0, 1\)'),
        ({'steps': 1, 'seed': -1}, r'config\.run\.seed must be at least 0'),
        ({'steps': 1, 'eval_every': -1}, r'config\.run\.eval_every must be at least 0'),
    ],
)
def test_lengths_and_counts_that_cannot_be(values, message):
    with pytest.raises(UserError, match=message):
        run_section(**values)


def test_lengths():
    assert run_section(steps=5).total_steps(100) == 5
    run = run_section(epochs=2.5, schedule_epochs=5)
    assert (run.steps_per_epoch(100), run.total_steps(100), run.schedule_steps(100)) == (12, 30, 60)
    assert run_section(epochs=2).schedule_steps(100) == 24
    with pytest.raises(UserError, match=r'has 7 files, fewer than run\.global_batch 8'):
        run.steps_per_epoch(7)


def test_a_task_whose_own_import_fails_is_not_called_unknown(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mvdjax.tasks.mixup', None)
    monkeypatch.delitem(sys.modules, 'mvdjax.tasks.classify', raising=False)
    with pytest.raises(ImportError, match=r'mvdjax\.tasks\.mixup'):
        configs.make_task(ConfigDict({'task_name': 'classify', 'task': {}}))
