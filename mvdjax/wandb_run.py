"""A run's page at Weights & Biases (extra `wandb`), the same page after every restart."""

import os
import uuid
from collections.abc import Mapping
from typing import Any

from mvdjax.console import say
from mvdjax.errors import UserError

ID_FILE = 'wandb_id'


class Page:
    """The page of a run; what goes wrong with it is told once, and costs no more than the page."""

    def __init__(self, run: Any) -> None:
        """`run` is W&B's."""
        self._run = run
        run.define_metric('step')
        run.define_metric('*', step_metric='step')

    def log(self, values: Mapping[str, float]) -> None:
        """Sends values; 'step' is one of them."""
        self._try('log', dict(values))

    def finish(self) -> None:
        """Ends the connection."""
        self._try('finish')

    def _try(self, method: str, *args: Any) -> None:
        if self._run is None:
            return
        try:
            getattr(self._run, method)(*args)
        except Exception as error:  # its own exceptions and those of its network stack  # noqa: BLE001
            self._run = None
            say(f'warning: Weights & Biases failed ({_first_line(error)}): the run goes on without it')


def start(workdir: str, project: str, config: Mapping[str, Any], resumed: bool) -> Page | None:
    """Starts reporting; the run's name is its folder's, its id is kept in the folder.

    W&B takes no step twice, and a resumed run repeats some: the step is therefore a value of its own that all curves
    are drawn over. WANDB_MODE=offline and the other variables of the package do what they always do.

    Args:
      workdir: the run's.
      project: to report to.
      config: shown as the run's configuration.
      resumed: the run goes on: it does so without W&B rather than not at all.

    Raises:
      UserError: the package is missing, or a new run's page cannot be had (no login, no network).
    """
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f'run.wandb={project!r} needs the package wandb ({error}): '
            "pip install 'mvdjax[wandb]', or leave run.wandb ''"
        ) from error
    path = os.path.join(workdir, ID_FILE)
    if not os.path.exists(path):
        with open(path, 'w', encoding='utf-8') as file:
            file.write(uuid.uuid4().hex)
    with open(path, encoding='utf-8') as file:
        identity = file.read().strip()
    options = {'project': project, 'name': os.path.basename(os.path.abspath(workdir)), 'id': identity, 'dir': workdir}
    try:
        return Page(wandb.init(**options, resume='allow', config=dict(config), reinit='return_previous'))
    except Exception as error:  # as above
        if resumed:
            say(f'warning: Weights & Biases did not start ({_first_line(error)}): the run goes on without it')
            return None
        raise UserError(
            f'Weights & Biases did not start ({_first_line(error)}): run `wandb login`, '
            "set WANDB_MODE=offline, or leave run.wandb ''"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
