"""What a run tells of itself: rates, goodput, device idle time, profiles, Weights & Biases."""

import json
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import pytest

from mvdjax import metrics, processes, wandb_run
from mvdjax.device_memory import device_memory
from mvdjax.errors import UserError
from mvdjax.goodput import Goodput
from mvdjax.metric_writer import MetricWriter, read_metrics
from mvdjax.profiler import FOLDER, Profiler
from mvdjax.step_clock import StepClock
from mvdjax.window import Window


def step_values(loss=1.0, skipped=0.0):
    values = {'loss': loss, 'skipped': skipped, 'not_finite': 0.0}
    return {name: metrics.scalar(jnp.float32(value)) for name, value in values.items()}


class FakeClock:
    def __init__(self, idle):
        self.idle = idle

    def idle_since(self):
        return self.idle


@pytest.fixture
def frozen_time(monkeypatch):
    """`time.perf_counter` as this test sets it."""
    now = [100.0]
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])
    return now


def test_a_window_counts_rates_and_losses(frozen_time):
    counted = Window(start=100.0)
    with counted.losing('compile'):
        frozen_time[0] = 110.0
    with counted.losing('data'):
        frozen_time[0] = 111.0
    for _ in range(4):
        counted.values.append(step_values())
    counted.records = 32
    frozen_time[0] = 114.0
    numbers = counted.close(flops=5.0, peak=10.0)
    assert numbers['clips_per_second'] == 32 / 4  # compilation is in no rate
    assert numbers['steps_per_second'] == 1.0
    assert numbers['mfu'] == 4 * 5.0 / 4 / 10.0
    assert numbers['data_wait'] == 1 / 4
    assert numbers['useful_seconds'] == 3.0
    assert 'mfu' not in counted.close(flops=5.0, peak=None)


def test_an_evaluation_amid_a_window_is_in_no_rate(frozen_time):
    counted = Window(start=100.0)
    counted.values += [step_values()] * 4
    counted.records = 32
    frozen_time[0] = 104.0
    with counted.losing('evaluate'):
        frozen_time[0] = 204.0
    numbers = counted.close(flops=5.0, peak=10.0)
    assert (numbers['clips_per_second'], numbers['mfu'], numbers['useful_seconds']) == (8.0, 0.5, 4.0)


@pytest.mark.parametrize(('idle', 'lost'), [(None, 0.0), (90.0, 5.0), (103.0, 2.0)])
def test_only_idle_devices_lose_time(frozen_time, idle, lost):
    """Data that arrives while the devices are busy costs nothing; devices idle before the wait lose all of it."""
    counted = Window(start=100.0, clock=FakeClock(idle))
    with counted.losing('data'):
        frozen_time[0] = 105.0
    assert counted.lost.get('data', 0.0) == lost


def test_device_memory_is_that_of_the_fullest_device(monkeypatch):
    class Device:
        def __init__(self, used):
            self.used = used

        def memory_stats(self):
            return self.used and {'bytes_in_use': self.used, 'peak_bytes_in_use': 2 * self.used}

    monkeypatch.setattr(jax, 'local_devices', lambda: [Device(2**20), Device(3 * 2**20)])
    assert device_memory() == {'device_memory_mib': 3.0, 'device_memory_peak_mib': 6.0}
    monkeypatch.setattr(jax, 'local_devices', lambda: [Device(None)])
    assert device_memory() == {}


def test_step_clock_knows_when_the_devices_are_done():
    class Slow:
        """Stands for an array that is computed until `done` is set."""

        def __init__(self):
            self.done = threading.Event()

        def block_until_ready(self):
            self.done.wait()
            return self

    with StepClock() as clock:
        assert clock.idle_since() is not None
        first, second = Slow(), Slow()
        clock.started(first)
        clock.started(second)
        assert clock.idle_since() is None
        first.done.set()
        assert clock.idle_since() is None
        before = time.perf_counter()
        second.done.set()
        while clock.idle_since() is None:
            time.sleep(0.001)
        assert clock.idle_since() >= before


def test_goodput_counts_lost_steps_and_pauses(tmp_path):
    now = [1000.0]
    first = Goodput(str(tmp_path), 0, lambda: now[0])
    with MetricWriter(str(tmp_path), 0) as writer:
        now[0] += 100
        writer.write(10, 'train', first.add(80.0))
        now[0] += 100
        writer.write(20, 'train', first.add(90.0))
    assert [r['goodput'] for r in read_metrics(str(tmp_path))] == [0.8, 170 / 200]

    now[0] += 200  # killed; started again from the checkpoint at step 10
    with MetricWriter(str(tmp_path), 10):
        again = Goodput(str(tmp_path), 10, lambda: now[0])
        now[0] += 100
        numbers = again.add(100.0)
    assert numbers == {'useful_seconds': 100.0, 'goodput': 180 / 500, 'starts': 2.0}


def test_goodput_survives_a_cut_line_and_a_clock_set_back(tmp_path):
    (tmp_path / 'starts.jsonl').write_text(json.dumps({'time': 50.0, 'step': 0}) + '\n{"time": 5')
    for start in (2.0, 3.0):
        numbers = Goodput(str(tmp_path), 0, lambda: 10.0).add(5.0)
        assert (numbers['goodput'], numbers['starts']) == (1.0, start)


@pytest.mark.parametrize('steps', ['20', 'a:b', '0:3', '3:0', '2:3:4'])
def test_profile_refuses_what_is_no_range(tmp_path, steps):
    with pytest.raises(UserError, match='FIRST:STEPS'):
        Profiler(str(tmp_path), steps)


def test_profile_traces_the_steps_asked_for(tmp_path, capsys):
    with Profiler(str(tmp_path), '2:2') as profiler:
        for step in range(1, 6):
            profiler.before(step)
            assert (tmp_path / FOLDER).exists() == (step >= 2)
            with profiler.step(step):
                jnp.sum(jnp.ones(8)).block_until_ready()
            if step == 4:
                assert list((tmp_path / FOLDER).rglob('*.xplane.pb'))
    assert str(tmp_path / FOLDER) in capsys.readouterr().out


def test_profile_ends_with_the_run(tmp_path):
    with Profiler(str(tmp_path), '1:100') as profiler:
        profiler.before(1)
    assert list((tmp_path / FOLDER).rglob('*.xplane.pb'))


def test_profiles_of_several_processes_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, 'count', lambda: 2)
    for process in (0, 1):
        monkeypatch.setattr(processes, 'index', lambda process=process: process)
        with Profiler(str(tmp_path), '1:1') as profiler:
            profiler.before(1)
    found = [path.relative_to(tmp_path / FOLDER).parts[0] for path in (tmp_path / FOLDER).rglob('*.xplane.pb')]
    assert sorted(found) == ['process_0', 'process_1']


class FakeWandb(types.ModuleType):
    """Records what the package is told."""

    def __init__(self, error=None):
        super().__init__('wandb')
        self.error, self.calls = error, []

    def init(self, **options):
        if self.error:
            raise self.error
        self.calls.append(('init', options))
        return self

    def define_metric(self, name, **options):
        self.calls.append(('define_metric', name, options))

    def log(self, values):
        self.calls.append(('log', values))

    def finish(self):
        self.calls.append(('finish',))


def test_wandb_gets_the_metrics_and_one_page_per_workdir(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    workdir = str(tmp_path / 'run')
    for start in (0, 1):
        (tmp_path / 'run').mkdir(exist_ok=True)
        with MetricWriter(workdir, start, 'videos', {'a': 1}) as writer:
            writer.write(start + 1, 'train', {'loss': 2.0})
    first, second = (call[1] for call in fake.calls if call[0] == 'init')
    assert (first['project'], first['name'], first['config']) == ('videos', 'run', {'a': 1})
    assert len(first['id']) == 32
    assert first['id'] == second['id']
    assert ('log', {'step': 2, 'train/loss': 2.0}) in fake.calls
    assert fake.calls.count(('finish',)) == 2


def test_wandb_is_missing_or_does_not_start(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(UserError, match=r'mvdjax\[wandb\]'):
        wandb_run.start(str(tmp_path), 'videos', {}, resumed=False)
    monkeypatch.setitem(sys.modules, 'wandb', FakeWandb(RuntimeError('no api key\nmore')))
    with pytest.raises(UserError, match='no api key\\): run `wandb login`'):
        wandb_run.start(str(tmp_path), 'videos', {}, resumed=False)


def test_wandb_never_costs_a_run_that_is_under_way(tmp_path, monkeypatch, capsys):
    fake = FakeWandb(RuntimeError('no network'))
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    assert wandb_run.start(str(tmp_path), 'videos', {}, resumed=True) is None
    assert 'no network): the run goes on without it' in capsys.readouterr().out
    fake.error = None
    page = wandb_run.start(str(tmp_path), 'videos', {}, resumed=False)

    def fail(values):
        raise OSError('broken pipe')

    monkeypatch.setattr(fake, 'log', fail)
    for step in (1, 2):
        page.log({'step': step})
    page.finish()
    assert capsys.readouterr().out.count('broken pipe') == 1
    assert ('finish',) not in fake.calls
