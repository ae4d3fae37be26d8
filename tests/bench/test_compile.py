"""What `mvdjax bench compile` compiles, and how it shows it."""

import pytest
import small_runs

from mvdjax.bench import compile as bench_compile
from mvdjax.bench.measure import Cost, result


@pytest.mark.parametrize(
    ('way', 'scan', 'remat'), [('cache', True, 'none'), ('unrolled', False, 'none'), ('dots', True, 'dots')]
)
def test_every_model_of_the_step_goes_the_way(demo_data, way, scan, remat):
    config = small_runs.load('mvd', demo_data, 'run.accumulate=4')
    with config.unlocked():
        bench_compile.shorten(config, 2, 'bfloat16', way)
    sections = [config.task.student]
    sections += [part for teacher in config.task.teachers.values() for part in (teacher.model, teacher.decoder)]
    for node in sections:
        assert (node.scan, node.dtype, node.get('remat', 'none')) == (scan, 'bfloat16', remat)
    assert (config.run.global_batch, config.run.accumulate, config.mesh.devices) == (2, 1, 1)


def test_the_table_compares_with_the_first_row():
    sizes = {'arguments_mib': 512.0, 'temporaries_mib': 2048.0}
    costs = {'a scan': 20.0, 'a cache': 5.0}
    results = {
        name: result(name, [Cost(1, 99.0, 99.0, sizes), Cost(1, cpu, 2 * cpu, sizes)]) for name, cpu in costs.items()
    }
    assert bench_compile.table(results).splitlines()[2:] == [
        '| a scan | 20.0 | 40.0 | 1.00 | 0.50 | 2.00 |',
        '| a cache | 5.0 | 10.0 | 0.25 | 0.50 | 2.00 |',
    ]
