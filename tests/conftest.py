"""Every test runs on the CPU with 8 simulated devices (MVDJAX_TEST_DEVICES=1 for one) and exact matrix products."""

import os
import sys
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import jax
import pytest
from absl import flags

jax.config.update('jax_num_cpu_devices', int(os.environ.get('MVDJAX_TEST_DEVICES', '8')))
jax.config.update('jax_default_matmul_precision', 'highest')
jax.config.update('jax_disable_most_optimizations', True)  # compiling is most of what these tests do
jax.config.update('jax_numpy_rank_promotion', 'allow')
flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags


# Files that take longest, the longest first: where files are handed out one by one, no core waits for one at the end.
LONG = (
    *('test_train', 'test_bevt_runs', 'test_golden_bevt', 'test_plan', 'test_sharding', 'test_two_processes'),
    *('test_rollback', 'test_processes', 'test_levers', 'test_quickstart', 'test_saving', 'test_pack', 'test_cli'),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the long files first, all else as it was."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope='session')
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo data set, written once for all tests of a worker. Read only."""
    from mvdjax.data.demo import DemoSpec, write_demo

    root = tmp_path_factory.mktemp('demo')
    write_demo(root, DemoSpec(pretrain=32, labelled=16, val=8, test=16, images=32, workers=1), progress=False)
    return root
