"""The packing, and what a weight stands for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2gpu.quant import Dense, Int4, Int8, Weight, int4, join_rows
from llama2gpu.quant.pack import UNIT, pack_int4, unpack_int4


def sized(rows: int, columns: int, high: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, high, (rows, columns), generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(1, 6), st.integers(0, 2**32))
def test_packing_comes_back(rows: int, units: int, seed: int) -> None:
    values = sized(rows, units * UNIT, 16, seed).to(torch.uint8)
    packed = pack_int4(values)
    assert packed.dtype == torch.int32
    assert packed.shape == (rows, units * 4)
    assert torch.equal(unpack_int4(packed), values)


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 7), st.integers(1, 15))
def test_nibble_lies_where_the_packing_says(unit: int, word: int, i: int, value: int) -> None:
    values = torch.zeros(1, 4 * UNIT, dtype=torch.uint8)
    values[0, 32 * unit + 4 * i + word] = value
    words = pack_int4(values)[0].tolist()
    assert [w & 0xFFFFFFFF for w in words] == [
        value << 4 * i if at == 4 * unit + word else 0 for at in range(16)
    ]


def an_int4(
    rows: int = 5, columns: int = 128, group: int = 32, zeros: bool = True, order: bool = False
) -> Int4:
    scales = torch.rand(rows, columns // group, generator=torch.Generator().manual_seed(1)).half()
    own = sized(rows, columns // group, 15, seed=2) + 1 if zeros else None
    weight = int4(sized(rows, columns, 16), scales, own)
    permutation = torch.randperm(columns, generator=torch.Generator().manual_seed(3))
    return Int4(weight.packed, weight.scales, weight.zeros, permutation if order else None)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_is_its_definition(group: int, zeros: bool, order: bool) -> None:
    weight = an_int4(group=group, zeros=zeros, order=order)
    q = unpack_int4(weight.packed).tolist()
    expected = torch.zeros(weight.shape, dtype=torch.float64)
    for n in range(5):
        for j in range(128):
            k = j if weight.order is None else int(weight.order[j])
            zero = 8 if weight.zeros is None else int(weight.zeros[n, j // group])
            expected[n, k] = (q[n][j] - zero) * float(weight.scales[n, j // group])
    assert weight.group == group
    assert torch.equal(weight.dequantize(torch.float64), expected)
    assert torch.equal(weight.dequantize(torch.float32).double(), expected)


@pytest.mark.parametrize("groups", [1, 4])
def test_int8_is_its_definition(groups: int) -> None:
    data = (sized(5, 128, 255) - 127).to(torch.int8)
    scales = torch.rand(5, groups, generator=torch.Generator().manual_seed(1)).half()
    weight = Int8(data, scales)
    expected = data.double() * scales.double().repeat_interleave(128 // groups, dim=1)
    assert weight.group == 128 // groups
    assert torch.equal(weight.dequantize(torch.float64), expected)
    assert torch.equal(weight.dequantize(torch.bfloat16), expected.float().bfloat16())


def kinds() -> list[Weight]:
    int8 = Int8((sized(5, 128, 255) - 127).to(torch.int8), torch.rand(5, 2).half())
    plain, zeros, order = an_int4(zeros=False), an_int4(), an_int4(order=True)
    return [Dense(torch.randn(5, 128)), int8, plain, zeros, order, an_int4(group=64)]


@pytest.mark.parametrize("weight", kinds(), ids=lambda weight: type(weight).__name__)
def test_rows_are_rows(weight: Weight) -> None:
    whole = weight.dequantize(torch.float32)
    index = torch.tensor([4, 0, 0])
    assert torch.equal(weight.rows(index).dequantize(torch.float32), whole[index])
    assert torch.equal(weight.rows(slice(1, 3)).dequantize(torch.float32), whole[1:3])


@pytest.mark.parametrize("first", range(6))
@pytest.mark.parametrize("second", range(6))
def test_joined_rows_are_those_of_the_parts(first: int, second: int) -> None:
    a, b = kinds()[first], kinds()[second]
    joined = join_rows([a, b, a])
    expected = torch.cat([part.dequantize(torch.float32) for part in (a, b, a)])
    assert torch.equal(joined.dequantize(torch.float32), expected)
    alike = first == second or {first, second} == {2, 3}
    assert isinstance(joined, type(a) if alike else Dense)
