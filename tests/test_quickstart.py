"""The quickstart: its graph of commands, and the runner on a small one."""

import json
import time

import pytest
import small_runs

from mvdjax import config as configs
from mvdjax import quickstart
from mvdjax.errors import UserError

METHODS = list(quickstart.METHODS)


@pytest.mark.parametrize('method', METHODS)
def test_every_command_of_the_graph_fits_its_config(method, monkeypatch):
    monkeypatch.chdir(small_runs.CONFIGS.parent)
    seen = set()
    for job in quickstart.make_jobs('out', 3, method):
        assert set(job.needs) <= seen
        seen.add(job.name)
        for command in job.commands:
            if command[0] in ('train', 'evaluate'):
                spec = command[1].removeprefix('--config=')
                config = configs.load(spec, [c for c in command if c.startswith('--config.')])
                assert config.run.seed == 3
                # What a stage reads was written by one that it waits for.
                for argument in command:
                    name = argument.rpartition('checkpoint=')[2].removeprefix('out/runs/')
                    assert 'checkpoint=' not in argument or name in ('', job.name, *job.needs, 'tokenizer')
    chosen = quickstart.METHODS[method]
    assert {chosen.run(row, labels) for row in chosen.rows for labels in quickstart.LABELS} < seen


@pytest.mark.parametrize('method', METHODS)
def test_all_rows_share_one_recipe(method):
    commands = {j.name: j.commands[0] for j in quickstart.make_jobs('out', 0, method)}
    chosen = quickstart.METHODS[method]
    assert chosen.rows['scratch'].source == ''
    for labels in quickstart.LABELS:
        recipes = {
            tuple(c for c in commands[chosen.run(row, labels)] if 'init.checkpoint' not in c and 'workdir' not in c)
            for row in chosen.rows
        }
        assert len(recipes) == 1


def test_methods_share_a_folder():
    jobs = [{job.name: job.key() for job in quickstart.make_jobs('out', 0, method)} for method in METHODS]
    both = set(jobs[0]) & set(jobs[1])
    assert both == {'data'}  # all else has its own name, and its own place
    assert jobs[0]['data'] == jobs[1]['data']


def test_what_configs_share_counts_as_theirs(tmp_path):
    for name in ('demo_a.py', '_demo.py', 'demo_b.py'):
        (tmp_path / name).write_text('')
    job = quickstart.Job('a', (), (('train', f'--config={tmp_path}/demo_a.py:motion'),))
    key = job.key()
    (tmp_path / 'demo_b.py').write_text('other = 1')
    assert job.key() == key
    (tmp_path / '_demo.py').write_text('shared = 1')
    assert job.key() != key


def test_runner_runs_in_order_remembers_and_stops_at_a_failure(tmp_path, capsys):
    data = str(tmp_path / 'data')
    sizes = [f'--{name}={n}' for name, n in (('pretrain', 16), ('labelled', 8), ('val', 8), ('test', 8), ('images', 8))]
    spec, overrides = small_runs.arguments('mae', tmp_path / 'data', 'run.steps=1', 'optim.warmup_epochs=0')
    train = ('train', f'--config={spec}', *overrides, f'--workdir={tmp_path}/run')
    jobs = [
        quickstart.Job('data', (), (('data', 'demo', f'--output={data}', '--workers=1', *sizes),)),
        quickstart.Job('teacher', ('data',), (train,)),
    ]
    runner = quickstart.Runner(str(tmp_path))
    runner.run(jobs)
    assert (tmp_path / 'run' / 'metrics.jsonl').exists()
    assert runner.peak_rss > 50 * 2**20
    assert sorted(json.loads((tmp_path / 'done.json').read_text())) == ['data', 'teacher']
    capsys.readouterr()

    bad = quickstart.Job('bad', ('teacher',), (('train', '--config=missing.py', f'--workdir={tmp_path}/bad'),))
    after = quickstart.Job('after', ('bad',), (('train', '--config=missing.py', f'--workdir={tmp_path}/bad'),))
    with pytest.raises(UserError, match=r'\[bad\] failed: error: config file missing.py does not exist; .*bad\.log'):
        quickstart.Runner(str(tmp_path)).run([*jobs, bad, after])
    out = capsys.readouterr().out
    assert '[data] done before' in out
    assert '[teacher] done before' in out
    assert '[after]' not in out


def test_a_job_that_runs_alone_has_every_core_and_no_job_beside_it(tmp_path, monkeypatch):
    running, beside = [], {}

    def record(self, job, cores):
        running.append(job.name)
        time.sleep(0.05)
        beside[job.name] = (set(running), cores)
        running.remove(job.name)
        self._done[job.name] = {}
        return ''

    monkeypatch.setattr(quickstart.Runner, '_run_job', record)
    jobs = [quickstart.Job(name, (), ()) for name in 'ab']
    jobs += [quickstart.Job('alone', ('a',), (), alone=True), *(quickstart.Job(name, (), ()) for name in 'cde')]
    runner = quickstart.Runner(str(tmp_path))
    runner._slots = [[0], [1]]
    runner.run(jobs)
    assert beside['alone'] == ({'alone'}, [])
    assert set(beside) == {'a', 'b', 'alone', 'c', 'd', 'e'}


@pytest.mark.parametrize(('method', 'file'), [('mvd', 'summary.json'), ('bevt', 'summary_bevt.json')])
def test_table_and_summary(method, file, tmp_path, monkeypatch, capsys):
    chosen = quickstart.METHODS[method]
    for row in chosen.rows:
        for labels in quickstart.LABELS:
            folder = tmp_path / 'runs' / chosen.run(row, labels)
            folder.mkdir(parents=True)
            (folder / 'results.json').write_text(json.dumps({'top1': 10.0 + len(row) + len(labels)}))
    monkeypatch.setattr(quickstart.Runner, 'run', lambda self, jobs: None)
    assert quickstart.main([f'--method={method}', f'--output={tmp_path}', '--started=0']) == 0
    summary = json.loads((tmp_path / file).read_text())
    assert [r['name'] for r in summary['rows']] == list(chosen.rows)
    assert summary['rows'][0] == {'name': 'scratch', 'motion': 23.0, 'appearance': 27.0}
    assert summary['chance'] == {'motion': 12.5, 'appearance': 12.5}
    assert summary['seconds'] > 0
    out = capsys.readouterr().out
    assert 'trained from scratch' in out
    assert '23.0' in out
