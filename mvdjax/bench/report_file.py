"""The JSON of a benchmark."""

import json
from collections.abc import Mapping
from typing import Any

from mvdjax.errors import UserError


def write(path: str, content: Mapping[str, Any]) -> None:
    """Writes the JSON. Raises UserError if it cannot be written."""
    try:
        with open(path, 'w', encoding='utf-8') as file:
            json.dump(content, file, indent=2)
            file.write('\n')
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror}); give another --output') from error
