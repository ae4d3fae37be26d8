"""What the quickstart runs: the commands of each method, and which of them wait for which."""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping

from mvdjax import __version__

LABELS = ('motion', 'appearance')


@dataclasses.dataclass(frozen=True)
class Job:
    """Commands run one after the other, once the jobs it needs are done; `alone`, on every core with no job beside."""

    name: str
    needs: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    alone: bool = False

    def key(self) -> str:
        """Changes whenever the commands, a config file that they name, or the version of the project does.

        What a config file shares with others lies beside it under a name that begins with an underscore, and counts.
        """
        parts = [__version__, json.dumps(self.commands)]
        for argument in itertools.chain(*self.commands):
            path = argument.removeprefix('--config=').split(':')[0]
            if argument.startswith('--config=') and os.path.isfile(path):
                folder = os.path.dirname(path)
                shared = sorted(
                    name for name in os.listdir(folder) if name.startswith('_demo') and name.endswith('.py')
                )
                for file_name in (path, *(os.path.join(folder, name) for name in shared)):
                    with open(file_name, encoding='utf-8') as file:
                        parts.append(file.read())
        return hashlib.sha256('\n'.join(parts).encode()).hexdigest()

    def workdirs(self) -> list[str]:
        """Folders that the training commands write."""
        found = itertools.chain(*self.commands)
        return [a.removeprefix('--workdir=') for a in found if a.startswith('--workdir=')]

    def has_output(self) -> bool:
        """Whether those folders are still there."""
        return all(os.path.isdir(folder) for folder in self.workdirs())


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
      source: the job whose weights are fine-tuned; '' starts from scratch.
      text: what the table calls it.
    """

    source: str
    text: str


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to pretrain, and what is fine-tuned after it.

    Attributes:
      name: what --method calls it.
      pretrain: (data folder, runs folder, arguments of every training) -> the jobs of pretraining.
      finetune: config file of the fine-tuning, the same for every row; it takes the labels as its argument.
      rows: of the table, by name.
      suffix: of this method's table and report, so that two methods can share a folder.
    """

    name: str
    pretrain: Callable[[str, str, tuple[str, ...]], list[Job]]
    finetune: str
    rows: Mapping[str, Row]
    suffix: str = ''

    def run(self, row: str, labels: str) -> str:
        """Name of the job, and of the workdir, of a row."""
        return f'{self.name}_{row}_{labels}' if self.suffix else f'{row}_{labels}'


def _train(runs: str, name: str, *arguments: str) -> tuple[str, ...]:
    return ('train', *arguments, f'--workdir={runs}/{name}')


def _mvd(data: str, runs: str, always: tuple[str, ...]) -> list[Job]:
    """Both teachers, and the student of both."""

    def stage(name: str, needs: tuple[str, ...], recipe: str, *arguments: str) -> Job:
        config = f'--config=configs/{recipe}/demo_nano.py'
        return Job(name, needs, (_train(runs, name, config, arguments[0], *always, *arguments[1:]),))

    return [
        stage('video_teacher', ('data',), 'videomae', f'--config.data.files={data}/pretrain.txt'),
        stage('image_teacher', ('data',), 'mae', f'--config.data.files={data}/images.txt'),
        stage(
            'student',
            ('image_teacher', 'video_teacher'),
            'mvd',
            f'--config.data.files={data}/pretrain.txt',
            f'--config.task.teachers.image.checkpoint={runs}/image_teacher',
            f'--config.task.teachers.video.checkpoint={runs}/video_teacher',
        ),
    ]


def _bevt(data: str, runs: str, always: tuple[str, ...]) -> list[Job]:
    """The tokenizer, the image stream, and both streams."""
    tokenizer = f'--config.task.tokenizer.checkpoint={runs}/tokenizer'
    images = f'--config.data.files={data}/images.txt'

    def stage(name: str, needs: str, recipe: str, *arguments: str) -> Job:
        config = f'--config=configs/bevt/{recipe}.py'
        return Job(name, (needs,), (_train(runs, name, config, *arguments, *always),))

    return [
        stage('tokenizer', 'data', 'demo_tokenizer', images),
        stage('image_stream', 'tokenizer', 'demo_images', images, tokenizer),
        stage(
            'two_streams',
            'image_stream',
            'demo_two_streams',
            f'--config.data.files={data}/pretrain.txt',
            f'--config.streams.image.data.files={data}/images.txt',
            tokenizer,
            f'--config.init.checkpoint={runs}/image_stream',
        ),
    ]


METHODS = {
    method.name: method
    for method in (
        Method(
            'mvd',
            _mvd,
            'configs/finetune/demo_nano.py',
            {
                'scratch': Row('', 'trained from scratch'),
                'videomae': Row('video_teacher', 'fine-tuned from the video teacher'),
                'mvd': Row('student', 'fine-tuned from the MVD student'),
            },
        ),
        Method(
            'bevt',
            _bevt,
            'configs/bevt/demo_finetune.py',
            {
                'scratch': Row('', 'trained from scratch'),
                'images': Row('image_stream', 'fine-tuned from the image stream'),
                'streams': Row('two_streams', 'fine-tuned from both streams (BEVT)'),
            },
            suffix='_bevt',
        ),
    )
}


def make_jobs(output: str, seed: int, method: str = 'mvd') -> list[Job]:
    """A method's pipeline, in an order that may be run from top to bottom."""
    chosen = METHODS[method]
    data, runs = f'{output}/data', f'{output}/runs'
    # One folder of executables for all: the rows of the table fine-tune with one and the same step.
    always = (f'--config.run.seed={seed}', '--config.run.compile_cache=../compile_cache')
    jobs = [Job('data', (), (('data', 'demo', f'--output={data}'),), alone=True)]
    jobs += chosen.pretrain(data, runs, always)
    for row, found in chosen.rows.items():
        for labels in LABELS:
            name = chosen.run(row, labels)
            config = (
                f'--config={chosen.finetune}:{labels}',
                f'--config.data.files={data}/{labels}_train.txt',
                f'--config.data.class_file={data}/{labels}_classes.txt',
                f'--config.evals.test.data.files={data}/{labels}_test.txt',
                f'--config.evals.test.data.class_file={data}/{labels}_classes.txt',
                *always,
                f'--config.init.checkpoint={runs}/{found.source}' if found.source else '--config.init.checkpoint=',
            )
            commands = (_train(runs, name, *config), ('evaluate', *config, f'--checkpoint={runs}/{name}'))
            jobs.append(Job(name, (found.source or 'data',), commands))
    everything = tuple(f'{runs}/{job.name}' for job in jobs if job.name != 'data')
    report = ('report', *everything, f'--output={output}/report{chosen.suffix}')
    jobs.append(Job(f'report{chosen.suffix}', tuple(job.name for job in jobs), (report,), alone=True))
    return jobs
