"""Samples from workers through memory that both processes keep: never mixed up, never lost, nothing left behind."""

import os

import fakes
import numpy as np
import pytest
from fakes import echo, same

from mvdjax.data import slots, workers
from mvdjax.data.pipeline import BadFiles, train_batches
from mvdjax.errors import UserError

LARGE = slots.LEAST_BYTES


@pytest.fixture
def memory():
    found = slots.Memory(2, 3)
    yield found
    found.close()


@pytest.fixture
def writers(memory):
    found = [slots.Writer(place, worker, memory.slots) for worker, place in enumerate(memory.places)]
    yield found
    for writer in found:
        writer.close()


def got(memory, samples):
    return {name: memory.stack([one[name] for one in samples]) for name in samples[0]}


def stacked(*samples):
    return {name: np.stack([one[name] for one in samples]) for name in samples[0]}


def sample(value, size=LARGE):
    video = np.full((3, size), value, np.uint8)
    return {'video': video, 'flow': video[:, ::2].astype(np.float32), 'label': np.int32(value), 'mask': video[0, :9]}


def held():
    """The memory that this process has not let go of."""
    links = [f'/proc/self/fd/{file}' for file in os.listdir('/proc/self/fd')]
    return [link for link in links if os.path.lexists(link) and 'mvdjax-worker' in os.readlink(link)]


def test_a_sample_comes_out_as_it_went_in_and_small_arrays_go_along(memory, writers):
    sent = [writer.put(sample(7 + worker)) for worker, writer in enumerate(writers)]
    for one in sent:
        assert [type(one[name]) for name in ('video', 'flow', 'mask')] == [slots.Stored, slots.Stored, np.ndarray]
        assert slots.kind(one['flow']) == ((3, LARGE // 2), np.float32)
    found = got(memory, sent)
    same([found], [stacked(sample(7), sample(8))])
    assert found['flow'].dtype == np.float32


def test_a_slot_is_written_again_only_after_it_was_given_back(memory, writers):
    kept = [writers[0].put(sample(i)) for i in range(3)]
    passed_on = writers[0].put(sample(9))  # no room: by Grain
    assert isinstance(passed_on['video'], np.ndarray)
    same([got(memory, [*kept, passed_on])], [stacked(*map(sample, (0, 1, 2, 9)))])
    memory.free(kept[1])
    kept[1] = writers[0].put(sample(4))
    assert kept[1]['video'].slot == 1
    same([got(memory, kept)], [stacked(*map(sample, (0, 4, 2)))])


def test_slots_that_nobody_needed_take_no_memory(memory, writers):
    for i in range(20):
        memory.free(writers[1].put(sample(i)))
    assert os.stat(memory.places[1].path).st_blocks * 512 < 10 * LARGE  # one of 9


def test_what_does_not_fit_is_passed_on(memory, writers, monkeypatch):
    writers[0].put(sample(1))
    large = sample(2, LARGE + 4096)
    assert writers[0].put(large) is large
    usual = sample(3)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'pwrite', refuse)
        assert writers[0].put(usual) is usual
    assert writers[0].put(usual)['video'].slot == 1


def refuse(*_):
    raise PermissionError


@pytest.mark.parametrize('without', [False, True])
def test_batches_are_the_same_however_samples_come_and_all_slots_come_back(without, monkeypatch):
    freed = []
    if without:  # as on a system that has no memory without a name
        monkeypatch.delattr(os, 'memfd_create')
    else:
        free = slots.Memory.free
        monkeypatch.setattr(slots.Memory, 'free', lambda self, one: (freed.append(one['wide']), free(self, one)))
    found = {}
    for count in (0, 2):
        data, files = echo(24, fakes.Recipe(LARGE), workers=count, threads=2, prefetch=2)
        stream = train_batches(data, files, seed=0, global_batch=8, start_step=0, steps=30, bad=BadFiles(None))
        found[count] = list(stream)
    same(found[2], found[0])
    assert [type(one) for one in freed] == ([] if without else [slots.Stored] * 240)
    assert workers.worker_processes() == []
    assert not held()


def test_memory_without_paths_is_none(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, 'open', refuse)
        assert slots.memory(2, 3) is None
    assert not held()


def test_another_file_at_the_path_is_left_alone(memory, tmp_path, monkeypatch):
    other = tmp_path / 'other'
    other.write_bytes(b'precious')
    with pytest.raises(FileNotFoundError):
        slots.Writer(memory.places[0]._replace(path=str(other)), 0, 3)
    monkeypatch.setattr(os, 'getpid', lambda: 1)  # as under a /proc of other processes
    assert slots.memory(2, 3) is None
    assert other.read_bytes() == b'precious'


def test_where_workers_may_not_open_it_shared_memory_is_checked(monkeypatch):
    monkeypatch.setattr(slots, 'memory', lambda workers, rows: locked(slots.Memory(workers, rows)))
    monkeypatch.setattr(os, 'statvfs', lambda path: os.statvfs_result((4096, 4096, 16, 0, 0, 0, 0, 0, 0, 0)))
    data, files = echo(24, fakes.Recipe(LARGE), workers=1)
    stream = train_batches(data, files, seed=0, global_batch=8, start_step=0, steps=3, bad=BadFiles(None))
    with pytest.raises(UserError, match='shared memory'):
        next(stream)


def locked(memory):
    memory.places = [place._replace(inode=0) for place in memory.places]
    return memory
