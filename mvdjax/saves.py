"""Which checkpoints of a workdir a run has made itself: only these it may ever delete."""

import json
import os

FILE = 'saves.jsonl'


class SaveLog:
    """The steps that a run has begun to save, one JSON line each in `saves.jsonl` of its workdir.

    A step that is not in it was put there by a person, or by a version without this record: it stays for good.
    """

    def __init__(self, workdir: str) -> None:
        """Reads what is there."""
        self._path = os.path.join(workdir, FILE)
        self._steps: set[int] = set()
        if os.path.exists(self._path):
            with open(self._path, encoding='utf-8') as file:
                # A kill may have cut the last line short: its save had not begun.
                self._steps = {json.loads(line)['step'] for line in file if line.endswith('}\n')}

    def begin(self, step: int) -> None:
        """Notes a step, before anything of it is written."""
        if step in self._steps:
            return
        with open(self._path, 'a+', encoding='utf-8') as file:
            if file.tell():
                file.seek(file.tell() - 1)
                cut = file.read(1) != '\n'
                file.write('\n' * cut)
            file.write(json.dumps({'step': step}) + '\n')
        self._steps.add(step)

    def __contains__(self, step: int) -> bool:
        """Whether this run has made it."""
        return step in self._steps
