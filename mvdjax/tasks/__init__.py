"""The stages of training: one module each, found by its name."""

import importlib
from typing import Any

from mvdjax.errors import UserError


def task_class(name: str) -> Any:
    """`mvdjax.tasks.<name>.Task`.

    Raises:
      UserError: no such task.
    """
    module = f'mvdjax.tasks.{name}'
    try:
        return importlib.import_module(module).Task
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UserError(f'config.task_name: there is no task {name!r}; see mvdjax/tasks') from error
