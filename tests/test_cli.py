"""The command line: help, exit codes, and one sentence on stderr for every kind of bad input."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mvdjax import checkpoints, saving
from mvdjax import config as configs
from mvdjax import main as cli
from mvdjax.tasks.base import describe
from mvdjax.train_state import TrainState

ROOT = Path(__file__).parent.parent
FINETUNE = str(ROOT / 'configs/finetune/demo_nano.py')
MVD = str(ROOT / 'configs/mvd/demo_nano.py')


def write_checkpoint(workdir, spec, *overrides):
    """An untrained checkpoint of a config's model, for 8 frames of 40 x 40: zeros, but whole."""
    config = configs.load(spec, overrides)
    task = configs.make_task(config)
    batch = {'video': np.zeros((1, 8, 40, 40, 3), np.uint8)}
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(task.init, jax.random.key(0), batch))
    meta = {
        'schema_version': checkpoints.SCHEMA_VERSION,
        'config': json.loads(json.dumps(config.to_dict())),
        'class_names': [],
        'backbone': describe(task.backbone()),
        'sources': [],
        'licence': '',
    }
    step = np.int32(1)
    with saving.Checkpoints(str(workdir), 1) as saved:
        saved.save(TrainState(step, np.int32(0), params, {}, None), meta)
    return workdir


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp('classifier'), FINETUNE, '--config.task.model.variant=debug')


def error_of(capsys, *argv):
    """Runs a command that must fail; its one line on stderr."""
    capsys.readouterr()
    assert cli.main(list(argv)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith('error: ')
    return lines[0]


@pytest.fixture
def train_error(capsys, demo_data, tmp_path):
    """error of `mvdjax train` on the smallest fine-tuning, with some overrides."""

    def run(*overrides, workdir=None):
        settings = (
            f'data.files={demo_data}/motion_train.txt',
            f'data.class_file={demo_data}/motion_classes.txt',
            'task.model.variant=debug',
            *overrides,
        )
        argv = [f'--config={FINETUNE}:debug', f'--workdir={workdir or tmp_path / "run"}']
        return error_of(capsys, 'train', *argv, *(f'--config.{o}' for o in settings))

    return run


@pytest.mark.parametrize('command', [*([c] for c in cli.COMMANDS), ['data', 'demo']])
def test_help_of_every_command_has_an_example_that_names_files_that_exist(capsys, command):
    with pytest.raises(SystemExit) as exit_:
        cli.main([*command, '--help'])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert re.search(rf'examples?:\n +mvdjax {" ".join(command)}', text)
    assert '--debug' in text
    for file in re.findall(r'configs/[\w/]+\.py', text):
        assert (ROOT / file).is_file()


def test_the_general_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(['--help'])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert all(re.search(rf'^ +{command}\s', text, re.M) for command in cli.COMMANDS)


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ([], 'required: COMMAND'),
        (['trian'], "invalid choice: 'trian'"),
        (['train', '--workdir=x'], 'required: --config'),
        (['train', '--config=x', '--workdir=x', '--sed=1'], 'train does not take --sed=1'),
        (['train', '--config=x', '--workdir=x', 'more'], 'train does not take more'),
        (['train', '--config=x', '--workdir=x', '--config.run.seed', '1'], 'an override is one word, --config.sec'),
        (['predict', '--checkpoint=x', 'a.mp4', '--config.run.seed=1'], 'predict does not take --config.run.seed=1'),
        (['predict', '--checkpoint=x'], 'required: VIDEO'),
        (['predict', '--checkpoint=x', '--top=many', 'a.mp4'], "invalid int value: 'many'"),
        (['data'], 'required: TOOL'),
        (['data', 'dmo'], "invalid choice: 'dmo'"),
    ],
)
def test_bad_usage_exits_with_2(capsys, argv, message):
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def process(*argv):
    """(exit code, stdout, stderr) of `python -m mvdjax`."""
    command = [sys.executable, '-m', 'mvdjax', *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_exit_codes_of_the_process(tmp_path):
    code, out, err = process('--help')
    assert (code, err) == (0, '')
    assert 'usage: mvdjax' in out
    code, out, err = process('train', '--config=none.py', f'--workdir={tmp_path}')
    assert (code, out) == (1, '')
    assert err == 'error: config file none.py does not exist; the configs that come with mvdjax are in configs/\n'
    code, out, err = process('train')
    assert (code, out) == (2, '')
    assert 'Traceback' not in err


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, r'list .*list\.txt does not exist'),
        ('', r'list\.txt lists no files'),
        ('a.mp4\n', r'list\.txt:1: .* has no label; a line is "path label"'),
        ('a.mp4 0\nb.mp4 growing\n', r"list\.txt:2: .*classes\.txt has no class 'growing'; did you mean 'grow'\?"),
        ('a.mp4 0\nb.mp4 8\n', r'list\.txt:2: label 8 is out of range; there are classes 0 to 7'),
        ('a.mp4 0\n', r'list has 1 files, fewer than run\.global_batch 8'),
    ],
)
def test_bad_lists(train_error, tmp_path, content, message):
    path = tmp_path / 'list.txt'
    if content is not None:
        path.write_text(content)
    assert re.search(message, train_error(f'data.files={path}'))


def test_bad_class_files_and_labels_beyond_the_model(train_error, tmp_path):
    (tmp_path / 'classes.txt').write_text('a\nb\na\n')
    assert 'classes.txt:3:' in train_error(f'data.class_file={tmp_path}/classes.txt')
    error = train_error('data.class_file=', 'task.num_classes=2')
    assert re.search(r'motion_train\.txt:\d+: label [2-7], but task\.num_classes is 2', error)


@pytest.mark.parametrize('kind', ['truncated', 'empty', 'text', 'missing'])
def test_no_readable_file(train_error, demo_data, tmp_path, kind):
    whole = next((demo_data / 'videos/train').glob('*.mp4')).read_bytes()
    content = {'truncated': whole[: len(whole) // 3], 'empty': b'', 'text': b'no video\n' * 100}.get(kind)
    for i in range(8):
        if content is not None:
            (tmp_path / f'{i}.mp4').write_bytes(content)
    (tmp_path / 'list.txt').write_text(''.join(f'{i}.mp4 {i}\n' for i in range(8)))
    error = train_error(f'data.files={tmp_path}/list.txt')
    assert re.search(r'20 files of .*list\.txt in a row could not be read.*\d\.mp4; check data\.root', error)
    bad = [json.loads(line) for line in (tmp_path / 'run/bad_videos.jsonl').read_text().splitlines()]
    assert len(bad) > 1
    assert all(entry['reason'] for entry in bad)


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('run.golbal_batch=8', "config.run has no key 'golbal_batch'; did you mean 'global_batch'?"),
        ('run.global_batch=many', "'many' is not of type int"),
        ('run.epochs=3', 'config.run: give the length either as epochs or as steps'),
        ('task_name=clasify', "there is no task 'clasify'"),
        ('data.recipe=finetun', "there is no data recipe 'finetun'; did you mean 'finetune'?"),
        ('data.options.size=0', 'data options: size must be at least 1, not 0'),
        ('task.model.variant=huge', "no ViT variant 'huge'"),
        ('optim.base_rate=0.1', 'give either base_rate'),
        ('mesh.tensor=5', 'must multiply to that number'),
        ('run.eval_every=1', ''),
    ],
)
def test_bad_values(train_error, override, message):
    if override == 'run.eval_every=1':
        assert "has no set 'tst'; it has test, val" in train_error(override, "run.eval_sets=('tst',)")
    else:
        assert message in train_error(override)


def test_a_batch_that_does_not_divide(train_error):
    error = train_error('run.global_batch=8', 'run.accumulate=3')
    assert re.search(r'global_batch 8 does not divide by \d batch shards .* x 3 accumulation steps.*nearest', error)
    if jax.device_count() > 1:
        error = train_error(f'run.global_batch={jax.device_count() + 1}')
        assert re.search(rf'does not divide by {jax.device_count()} batch shards.*nearest batch that fits is', error)


def test_a_folder_that_cannot_be_written(capsys, train_error, classifier, tmp_path):
    (tmp_path / 'file').write_text('')
    below = tmp_path / 'file/below'  # works for root too, who may write everywhere
    assert re.search(r'below cannot be written \(Not a directory\)', train_error(workdir=below))
    argv = ['evaluate', f'--config={FINETUNE}', f'--checkpoint={classifier}', f'--output={below}']
    assert re.search(r'below cannot be written', error_of(capsys, *argv))
    assert 'Cannot write the demo data set' in error_of(
        capsys, 'data', 'demo', f'--output={below}', '--pretrain=1', '--labelled=1'
    )


def test_a_path_without_a_checkpoint(capsys, train_error, demo_data, tmp_path):
    message = r'no checkpoint in .*none: give a workdir of a finished stage'
    assert re.search(message, train_error(f'init.checkpoint={tmp_path}/none'))
    assert re.search(message, error_of(capsys, 'predict', f'--checkpoint={tmp_path}/none', 'a.mp4'))
    evaluated = [f'--config.evals.test.data.{k}={demo_data}/motion_{v}.txt' for k, v in SETS]
    argv = ['evaluate', f'--config={FINETUNE}', f'--checkpoint={tmp_path}/none', f'--output={tmp_path}']
    assert re.search(message, error_of(capsys, *argv, *evaluated))


SETS = (('files', 'test'), ('class_file', 'classes'))


def test_a_checkpoint_of_another_size(capsys, train_error, classifier, demo_data, tmp_path):
    message = r'does not fit the .*: \S+ is \(.*\), expected \(.*\).*Give the config the model size that wrote'
    evaluated = [f'--config.evals.test.data.{k}={demo_data}/motion_{v}.txt' for k, v in SETS]
    argv = ['evaluate', f'--config={FINETUNE}', f'--checkpoint={classifier}', f'--output={tmp_path}']
    assert re.search(message, error_of(capsys, *argv, *evaluated))
    nine = (f'init.checkpoint={classifier}', 'task.num_classes=9', 'data.class_file=', 'init.allow_fresh=()')
    assert re.search(message, train_error(*nine))


def test_a_workdir_of_another_model(classifier, demo_data, tmp_path):
    workdir = shutil.copytree(classifier, tmp_path / 'copy')
    lists = [f'--config.data.files={demo_data}/motion_train.txt', '--config.data.class_file=']
    code, _, error = process('train', f'--config={FINETUNE}:debug', f'--workdir={workdir}', *lists)
    assert code == 1
    (error,) = (line for line in error.splitlines() if line.startswith('error: '))
    assert re.search(r'the run in .*copy cannot be resumed with this config: .* the run had .* or a new workdir', error)


def test_an_unknown_evaluation_set(capsys, classifier, tmp_path):
    argv = ['evaluate', f'--config={FINETUNE}', f'--checkpoint={classifier}', f'--output={tmp_path}', '--set=tset']
    assert "has no set 'tset'; it has test, val" in error_of(capsys, *argv)


def test_debug_shows_the_traceback(capsys):
    assert cli.main(['train', '--config=none.py', '--workdir=x', '--debug']) == 1
    error = capsys.readouterr().err
    assert 'Traceback (most recent call last)' in error
    assert error.splitlines()[-1].startswith('error: config file none.py')
    assert cli.main(['data', 'demo', '--output=x', '--pretrain=-1', '--debug']) == 1
    assert 'Traceback (most recent call last)' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('raised', 'message', 'code'),
    [
        (KeyboardInterrupt(), 'interrupted; start the same command again to go on from what was saved', 130),
        (OSError(28, 'No space left on device', '/x'), 'error: No space left on device (/x)', 1),
        (
            RuntimeError("Unable to initialize backend 'tpu'\nmore"),
            "error: Unable to initialize backend 'tpu' more. Un",
            1,
        ),
    ],
)
def test_interruption_and_trouble_outside(capsys, monkeypatch, raised, message, code):
    def run(args):
        raise raised

    monkeypatch.setattr('mvdjax.data.cli.run', run)
    assert cli.main(['data', 'demo', '--output=x']) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(message)


def test_a_bug_is_not_dressed_up_as_a_mistake_of_the_user(monkeypatch):
    def run(args):
        raise RuntimeError('a bug')

    monkeypatch.setattr('mvdjax.data.cli.run', run)
    with pytest.raises(RuntimeError, match='a bug'):
        cli.main(['data', 'demo', '--output=x'])


def test_data_demo_writes_a_set(capsys, tmp_path):
    sizes = ['--pretrain=2', '--labelled=1', '--val=1', '--test=1', '--images=1', '--workers=1']
    assert cli.main(['data', 'demo', f'--output={tmp_path}/demo', *sizes]) == 0
    out, err = capsys.readouterr()
    assert '5 files' in out
    assert 'error' not in err
    assert len((tmp_path / 'demo/pretrain.txt').read_text().splitlines()) == 2
