"""Fields of a header, checked for type as they are taken, and the `Config` made of them."""

import json
import reprlib
from pathlib import Path
from typing import Any, NoReturn

from llama2gpu.checkpoints.files import HEADER_LIMIT, blamed_on, read_start
from llama2gpu.config import Config
from llama2gpu.errors import CheckpointError


class Fields:
    """One JSON object; `where` names it in errors. A null counts as absent.

    Every getter raises `CheckpointError` where the value has another type, or where it is absent
    and there is no default.
    """

    def __init__(self, where: str, values: object) -> None:
        self.where = where
        if not isinstance(values, dict):
            raise CheckpointError(f"{where} must be a JSON object, not {reprlib.repr(values)}")
        self.values: dict[str, object] = values

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get(self, key: str) -> object:
        """The value as it stands, or None."""
        return self.values.get(key)

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self._refuse(key, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse(key, "a number")
        if not abs(value) <= 1e30:
            self._refuse(key, "a finite number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A finite number, or None where there is none."""
        return self.number(key) if key in self else None

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            self._refuse(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            self._refuse(key, "a string")
        return value

    def nested(self, key: str) -> "Fields":
        """A nested object; empty where absent."""
        return Fields(f"{self.where}: {key}", self._value(key, {}))

    def _value(self, key: str, default: object) -> object:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise CheckpointError(f"{self.where} lacks {key}: take the file from the model's page")
        return default

    def _refuse(self, key: str, wanted: str) -> NoReturn:
        value = reprlib.repr(self.values.get(key))
        raise CheckpointError(f"{self.where}: {key} must be {wanted}, not {value}")


def read_json(path: Path) -> Fields:
    """The object in a JSON file of at most `HEADER_LIMIT` bytes, UTF-8."""
    data = read_start(path, HEADER_LIMIT + 1)
    if len(data) > HEADER_LIMIT:
        raise CheckpointError(f"{path} is larger than {HEADER_LIMIT} bytes: it is no model's JSON")
    with blamed_on(path, "it is damaged; download it again"):
        values = json.loads(data.decode(), parse_constant=_no_constant)
    return Fields(str(path), values)


def config_from(where: object, **values: Any) -> Config:
    """The `Config` of these fields; whatever it refuses is said of `where`."""
    try:
        return Config(**values)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
