"""metrics.jsonl: JSON whatever the numbers, and read back as written."""

import json
import math
import resource

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mvdjax.errors import UserError
from mvdjax.event_file import FOLDER
from mvdjax.metric_writer import FILE, MetricWriter, read_metrics


def refuse(name):
    raise AssertionError(f'{name} is not JSON')


def test_numbers_that_are_not_finite_are_written_as_strings_and_read_back(tmp_path):
    with MetricWriter(str(tmp_path), 0) as writer:
        writer.write(1, 'train', {'loss': math.nan, 'norm': math.inf, 'low': -math.inf, 'rate': 0.5})
        writer.write(2, 'train', {'loss': 1.0})
    lines = (tmp_path / FILE).read_text().splitlines()
    first = json.loads(lines[0], parse_constant=refuse)
    assert first == {'step': 1, 'kind': 'train', 'loss': 'NaN', 'norm': 'Infinity', 'low': '-Infinity', 'rate': 0.5}
    with MetricWriter(str(tmp_path), 1):  # a resumed run writes the kept records anew
        assert (tmp_path / FILE).read_text().splitlines() == lines[:1]
    (record,) = read_metrics(str(tmp_path))
    assert math.isnan(record['loss'])
    assert (record['norm'], record['low'], record['rate']) == (math.inf, -math.inf, 0.5)
    (tmp_path / FILE).write_text('{"step": 1, "kind": "train", "loss": NaN}\n')  # as earlier versions wrote them
    assert math.isnan(read_metrics(str(tmp_path))[0]['loss'])


def test_tensorboard_reads_every_step_once_after_a_rewind(tmp_path):
    with MetricWriter(str(tmp_path), 0) as writer:
        for step in (1, 2, 3):
            writer.write(step, 'train', {'loss': float(step)})
        writer.rewind(1)
        writer.write(2, 'train', {'loss': 20.0})
    events = EventAccumulator(str(tmp_path / FOLDER)).Reload()
    assert [(e.step, e.value) for e in events.Scalars('train/loss')] == [(1, 1.0), (2, 20.0)]


@pytest.fixture
def files_are_limited():
    """No file of this process grows beyond 64 KiB: writing on fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_tensorboard_with_a_warning_and_then_the_run(tmp_path, files_are_limited, capsys):
    names = [f'n{i}' for i in range(100)]  # an event takes more bytes than a number in JSON
    written = []

    def log():
        with MetricWriter(str(tmp_path), 0) as writer:
            for step in range(1, 1000):
                writer.write(step, 'train', dict.fromkeys(names, 0.5))
                written.append(step)

    with pytest.raises(UserError, match=r'metrics\.jsonl cannot be written \(File too large\)'):
        log()
    said = capsys.readouterr().out
    assert said.count('WARNING: no more events for TensorBoard') == 1
    assert [r['step'] for r in read_metrics(str(tmp_path))] == written
    assert len(written) > 20


def test_a_folder_for_tensorboard_that_cannot_be_made_costs_no_run(tmp_path, capsys):
    (tmp_path / FOLDER).write_text('in the way')
    with MetricWriter(str(tmp_path), 0) as writer:
        writer.write(1, 'train', {'loss': 1.0})
    assert 'no more events for TensorBoard' in capsys.readouterr().out
    assert len(read_metrics(str(tmp_path))) == 1
