"""Fixtures of the tests of `mvdjax features`."""

import pytest
from feature_runs import extract, load_config, store


@pytest.fixture(scope='session')
def checkpoint(demo_data, tmp_path_factory):
    """name -> (path, config, parameters), each written once."""
    made = {}

    def get(name):
        if name not in made:
            config, workdir = load_config(name, demo_data), tmp_path_factory.mktemp(name)
            made[name] = str(workdir), config, store(workdir, config)
        return made[name]

    return get


@pytest.fixture(scope='session')
def videos(demo_data, tmp_path_factory):
    """A list of eleven videos with labels, the fourth of which is none."""
    root = tmp_path_factory.mktemp('videos')
    lines = [f'{demo_data}/{line}' for line in (demo_data / 'motion_train.txt').read_text().splitlines()[:11]]
    (root / 'broken.mp4').write_bytes(b'no video' * 99)
    lines[3] = f'{root}/broken.mp4 5'
    (root / 'list.txt').write_text('\n'.join(lines))
    return str(root / 'list.txt')


@pytest.fixture(scope='session')
def whole(checkpoint, videos, tmp_path_factory):
    """The features of the list, computed in one go."""
    output = tmp_path_factory.mktemp('whole')
    return output, *extract(checkpoint('vit')[0], videos, output, batch=4)
