"""Settings in a JSON or YAML file."""

from __future__ import annotations

from typing import Any

from datasync.errors import InvalidArgumentError, MissingExtraError
from datasync.runtime.files import read_file


def load_settings(kind: str, extra: str, path: str) -> dict[str, Any]:
    """Return the unconverted values of the file *path* by their names, as the file has them.

    Args:
      kind: The driver, for messages.
      extra: The extra that installs PyYAML.

    Raises:
      InvalidArgumentError: The file cannot be read, or does not contain a mapping.
      MissingExtraError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:  # pragma: no cover - the extra installs it
        raise MissingExtraError(extra, "PyYAML") from error
    text = read_file(f"the {kind} configuration", path)
    try:
        content = yaml.safe_load(text.decode())  # YAML includes the JSON of a configuration
        if content is None:
            return {}
        if isinstance(content, dict):
            return {str(name): value for name, value in content.items()}
    except Exception:  # the parser also raises foreign errors, for an invalid date or for endless nesting
        pass
    # Outside the except block: the parser's message quotes the file, which may contain a password.
    raise InvalidArgumentError(f"the {kind} configuration {path} is not a JSON or YAML mapping")
