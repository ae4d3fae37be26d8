"""metrics.jsonl: JSON whatever the numbers, and read back as written."""

import json
import math

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
