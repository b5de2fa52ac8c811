"""What can be asked of a quantization, and which group a matrix gets."""

import pytest

from llama2gpu.errors import RequestError
from llama2gpu.quant.spec import METHODS, QuantSpec


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"kind": "int3"}, "int3"),
        ({"kind": "int4"}, "group None"),
        ({"kind": "int4", "group": 48}, "48"),
        ({"kind": "int8", "group": 256}, "256"),
        ({"kind": "int8", "method": "gptq"}, "int4"),
        ({"kind": "int8", "zero_points": True}, "symmetric"),
        ({"kind": "int4", "group": 128, "method": "magic"}, ", ".join(METHODS)),
    ],
)
def test_what_does_not_exist_is_refused(asked: dict[str, object], names: str) -> None:
    with pytest.raises(RequestError, match=names) as caught:
        QuantSpec(**asked)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "rows", "columns", "group"),
    [
        (QuantSpec("int4", 128), [4096], 4096, 128),
        (QuantSpec("int4", 128), [64, 32, 32], 64, 64),
        (QuantSpec("int4", 128), [64], 288, 32),
        (QuantSpec("int4", 32), [64], 256, 32),
        (QuantSpec("int4", 128), [64], 172, None),
        (QuantSpec("int4", 128), [64, 4], 256, None),
        (QuantSpec("int4", 128), [64], 1 << 20, 128),
        (QuantSpec("int8"), [64], 172, 172),
        (QuantSpec("int8"), [64], 256, 256),
        (QuantSpec("int8", 64), [64], 256, 64),
        (QuantSpec("int8", 64), [64], 172, 172),
        (QuantSpec("int8", 64), [4, 4], 256, 64),
        (QuantSpec("int8"), [64], 174, None),
        (QuantSpec("int8"), [6], 256, None),
    ],
)
def test_group_of(spec: QuantSpec, rows: list[int], columns: int, group: int | None) -> None:
    assert spec.group_of(rows, columns) == group
