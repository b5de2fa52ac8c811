"""What can be asked of a quantization, and which group a matrix gets."""

import pytest

from llama2gpu.errors import RequestError
from llama2gpu.quant.spec import METHODS, QuantSpec, parse_spec


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


@pytest.mark.parametrize(
    ("spec", "rows", "columns", "told"),
    [
        (QuantSpec("int4", 128), [64, 64], 64, None),
        (QuantSpec("int4", 128), [64, 4], 256, "4 rows are no multiple of 8"),
        (QuantSpec("int4", 64), [64], 172, "172 columns are no multiple of 8"),
        (QuantSpec("int4", 64), [64], 176, "176 columns are no multiple of 32"),
        (QuantSpec("int8"), [64], 176, None),
        (QuantSpec("int8"), [97], 64, "97 rows are no multiple of 4"),
    ],
)
def test_misfit(spec: QuantSpec, rows: list[int], columns: int, told: str | None) -> None:
    assert spec.misfit(rows, columns) == told


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("int8", QuantSpec("int8")),
        ("int8:32", QuantSpec("int8", 32)),
        ("int8:rtn+head", QuantSpec("int8", head=True)),
        ("int4", QuantSpec("int4", 128)),
        ("int4:gptq", QuantSpec("int4", 128, "gptq")),
        ("int4:32:rtn", QuantSpec("int4", 32)),
        ("int4:64:awq+zeros", QuantSpec("int4", 64, "awq", zero_points=True)),
        ("int4:32:hqq+zeros+head", QuantSpec("int4", 32, "hqq", True, True)),
    ],
)
def test_parse_spec(text: str, spec: QuantSpec) -> None:
    assert parse_spec(text) == spec


@pytest.mark.parametrize(
    ("text", "names"),
    [
        *((text, "is not of the form") for text in ("", "int4:", "int4:32:", "int4:rtn:32")),
        *((text, "is not of the form") for text in ("int4+", "int4+heads", "int4+head+zeros")),
        ("int4:" + "9" * 5000, "is not of the form"),
        ("int2", "int2"),
        ("int4:48", "48"),
        ("int4:0", "group 0"),
        ("int4:best", "best"),
        ("int8:gptq", "int4"),
        ("int8+zeros", "symmetric"),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_spec_is_refused(text: str, names: str) -> None:
    with pytest.raises(RequestError, match=names) as caught:
        parse_spec(text)
    assert "\n" not in str(caught.value)
