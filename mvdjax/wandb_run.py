"""A run's page at Weights & Biases (extra `wandb`), the same page after every restart."""

import os
import uuid
from collections.abc import Mapping
from typing import Any

from mvdjax.errors import UserError

ID_FILE = 'wandb_id'


def start(workdir: str, project: str, config: Mapping[str, Any]) -> Any:
    """Starts reporting; the run's name is its folder's, its id is kept in the folder.

    W&B takes no step twice, and a resumed run repeats some: the step is therefore a value of its own that all curves
    are drawn over. WANDB_MODE=offline and the other variables of the package do what they always do.

    Args:
      workdir: the run's.
      project: to report to.
      config: shown as the run's configuration.

    Returns:
      W&B's run, with `log` and `finish`.

    Raises:
      UserError: the package is missing, or cannot start (no login, no network).
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
    name = os.path.basename(os.path.abspath(workdir))
    try:
        run = wandb.init(
            project=project,
            name=name,
            id=identity,
            resume='allow',
            dir=workdir,
            config=dict(config),
            reinit='return_previous',
        )
    except Exception as error:  # its own exceptions and those of its network stack
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f'Weights & Biases did not start ({reason}): run `wandb login`, '
            "set WANDB_MODE=offline, or leave run.wandb ''"
        ) from error
    run.define_metric('step')
    run.define_metric('*', step_metric='step')
    return run
