"""`mvdjax bench step`: our step without the data stack, what the peer is asked for, and the report."""

import json
import subprocess
import sys

import pytest

from mvdjax import config_file
from mvdjax.bench import step, swin
from mvdjax.bench.measure import Result
from mvdjax.errors import UserError
from mvdjax.main import main

DISTIL = 'configs/mvd/k400_vit_b_from_b_400.py'
# Imports of these fail in the process and in its children, which start from its sys.path.
BLOCKED = ('av', 'grain', 'tensorflow_datasets', 'array_record')


def config(spec, *overrides):
    _, found = config_file.read(spec)
    for text in overrides:
        config_file.override(found, text)
    return found


def test_needs_no_data_stack(tmp_path):
    """As a machine without these packages runs it: compiled, measured, reported."""
    for name in BLOCKED:
        (tmp_path / f'{name}.py').write_text(f'raise ImportError({name!r})\n')
    program = (
        'import sys; sys.path.insert(0, sys.argv[1])\n'
        'from mvdjax.main import main\n'
        "if __name__ == '__main__':\n"
        '    sys.exit(main(sys.argv[2:]))\n'
    )
    (tmp_path / 'program.py').write_text(program)
    output = tmp_path / 'step.json'
    command = ['bench', 'step', f'--config={DISTIL}:debug', '--dtype=float32', '--repeats=1', f'--output={output}']
    done = subprocess.run(
        [sys.executable, str(tmp_path / 'program.py'), str(tmp_path), *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert '| ours |' in done.stdout
    report = json.loads(output.read_text())
    ours = next(row for row in report['rows'] if row['way'] == 'ours')
    assert ours['ms_per_clip'] > 0
    assert report['settings']['dtype'] == 'float32'


def test_the_peer_does_the_same_job():
    assert step.peer_models(config(DISTIL)) == {
        'student': 'B',
        'teachers': 'B',
        'teacher_width': 768,
        'drop_path': 0.1,
        'width': 768,
        'depth': 2,
        'heads': 12,
    }
    finetune = config('configs/finetune/k400_vit_l.py')
    assert step.peer_models(finetune) == {'model': 'L', 'classes': 400, 'drop_path': finetune.task.model.drop_path}
    with pytest.raises(UserError, match='another mvd run'):
        step.peer_models(config(f'{DISTIL}:debug'))
    with pytest.raises(UserError, match='another mae run'):
        step.peer_models(config('configs/mae/in1k_vit_b.py'))


def test_one_compute_type_for_all_models():
    mixed = config(DISTIL, '--config.task.student.dtype=float32')
    with pytest.raises(UserError, match='bfloat16 and float32: give --dtype'):
        step._dtypes(mixed, None)
    assert step._dtypes(mixed, 'bfloat16') == 'bfloat16'
    assert mixed.task.teachers.image.model.dtype == 'bfloat16'
    assert step._dtypes(config(DISTIL), None) == 'bfloat16'


def test_report_compares_with_the_matrix_rate_and_round_by_round():
    results = {
        'ours': Result('ours', 2, (9.0,) * 3, (10.0, 10.0, 30.0), {'flops_per_clip': 4e9, 'peak_rss_mib': 5.0}),
        'matrix products': Result(
            'matrix products', 1, (1.0,) * 3, (1.0,) * 3, {'flops_per_clip': 1e9, 'peak_rss_mib': 1.0}
        ),
        'published, float32': Result('published, float32', 2, (9.0,) * 3, (30.0, 20.0, 60.0), {'peak_rss_mib': 7.0}),
    }
    ours, _, peer = rows = [step.row(name, results) for name in results]
    assert ours['clips_per_second'] == 100.0
    assert ours['share_of_matrix_rate'] == pytest.approx(0.4)
    assert peer['times_faster_than_this'] == 2.0  # of 3, 2, 2: noise hits a round as a whole
    assert '| published, float32 | 30.0 | 33.3 | 0.133 | 0.13 | 7 | 2.00 |' in step.table(rows)


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['--batch=0'], '--batch must be at least 1'),
        (['--peer=/nowhere'], 'is no folder'),
        (['--config.task.student.widht=3'], 'widht'),
    ],
)
def test_errors(arguments, says, capsys):
    assert main(['bench', 'step', f'--config={DISTIL}', '--dtype=float32', *arguments]) == 1
    assert says in capsys.readouterr().err


def test_swin_compares_steps_round_by_round(monkeypatch, capsys, tmp_path):
    def measured(ways, repeats, progress, environment, settle):
        assert settle
        assert [way.name for way in ways] == ['ours', 'published']
        assert ways[0].arguments['variant'] == 'debug'
        return {
            'ours': Result('ours', 2, (9.0,) * 3, (10.0, 10.0, 30.0), {}),
            'published': Result('published', 2, (12.0,) * 3, (30.0, 20.0, 60.0), {}),
        }

    monkeypatch.setattr(swin, 'interleaved', measured)
    arguments = [
        '--variant=debug',
        '--clips=2',
        '--images=1',
        f'--peer={tmp_path}',
        f'--output={tmp_path / "swin.json"}',
    ]
    assert main(['bench', 'swin', *arguments]) == 0
    assert '| published | 60 | 24 | 2.00 |' in capsys.readouterr().out
    assert json.loads((tmp_path / 'swin.json').read_text())['rows'][1]['times_slower_than_ours'] == 2.0
    assert main(['bench', 'swin', '--images=0']) == 1
    assert '--images must be at least 1' in capsys.readouterr().err
