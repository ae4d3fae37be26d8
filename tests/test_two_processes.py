"""A real run on 2 processes x 4 devices of this machine against the same run in one process."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import small_runs
from multiprocess import Group, executables, executables_folder, together

from mvdjax import config as configs
from mvdjax.checkpoints import read_params
from mvdjax.metric_writer import read_metrics
from mvdjax.train import train

OVERRIDES = ('run.eval_every=4', "run.eval_sets=('val',)", 'run.heartbeat_timeout=60', 'run.init_timeout=120')
ROUNDING = {'rtol': 2e-5, 'atol': 2e-5}


def on_two(data: Path, workdir: Path) -> None:
    """`mvdjax train` on two processes."""
    spec, overrides = small_runs.arguments('finetune', data, *OVERRIDES, 'run.compile_cache=')
    command = ['train', f'--config={spec}', f'--workdir={workdir}', *overrides]
    kept = executables(executables_folder(data))  # what the first start compiles serves the second
    with Group(workdir.with_suffix('.logs'), together(2, command), devices=4, variables=[kept, kept]) as group:
        assert group.wait(600) == [0, 0], group.text()
        assert 'step 8/8' in group.output(0)
        assert 'step 8' not in group.output(1)  # process 0 speaks for all


def on_one(data: Path, workdir: Path) -> None:
    """The same in this process."""
    spec, overrides = small_runs.arguments('finetune', data, *OVERRIDES)
    train(configs.load(spec, overrides), str(workdir))


@pytest.fixture(scope='module')
def runs(demo_data, tmp_path_factory):
    """(workdir of the run on two processes, of that on one)."""
    root = tmp_path_factory.mktemp('runs')
    on_two(demo_data, root / 'two')
    on_one(demo_data, root / 'one')
    return root / 'two', root / 'one'


def cut_back(workdir: Path, copy: Path) -> Path:
    """A copy of a finished run as it was at step 4."""
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / 'checkpoints' / '8')
    return copy


def assert_same_run(found: Path, wanted: Path) -> None:
    """Same losses, norms, scores and parameters."""
    one, two = read_metrics(str(found)), read_metrics(str(wanted))
    assert [(r['step'], r['kind']) for r in one] == [(r['step'], r['kind']) for r in two]
    assert {(r['step'], r['kind']) for r in one} >= {(s, 'train') for s in range(1, 9)} | {(4, 'val'), (8, 'val')}
    for a, b in zip(one, two, strict=True):
        names = ('top1', 'top5', 'scored') if a['kind'] == 'val' else ('loss', 'grad_norm', 'accuracy', 'learning_rate')
        np.testing.assert_allclose([a[n] for n in names], [b[n] for n in names], **ROUNDING)
    params, others = read_params(str(found)), read_params(str(wanted))
    assert params.keys() == others.keys()
    for name, value in params.items():
        # Adam divides by gradients' sizes: what rounding makes of a gradient near 0 is a step, of 0.003 at most here.
        np.testing.assert_allclose(value, others[name], rtol=1e-3, atol=2e-4, err_msg=name)


def test_two_processes_compute_what_one_does(runs):
    assert_same_run(*runs)
    assert (runs[0] / 'checkpoints' / '8' / 'selfcheck.json').exists()
    assert not list(runs[0].glob('.process_*'))


def test_a_run_of_two_processes_goes_on_in_one(runs, demo_data, tmp_path):
    workdir = cut_back(runs[0], tmp_path / 'run')
    on_one(demo_data, workdir)
    assert_same_run(workdir, runs[1])


def test_a_run_of_one_process_goes_on_in_two(runs, demo_data, tmp_path):
    workdir = cut_back(runs[1], tmp_path / 'run')
    on_two(demo_data, workdir)
    assert_same_run(workdir, runs[1])
