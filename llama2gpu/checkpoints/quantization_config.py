"""`quantization_config` of a Hugging Face folder: how its matrices are packed."""

from dataclasses import dataclass

from llama2gpu.checkpoints.fields import Fields
from llama2gpu.errors import CheckpointError, UnsupportedModelError


@dataclass(frozen=True)
class Layout:
    """What `quantization_config` says of a folder.

    group: columns of a group, or −1 for one group a row. offset: what stored zero points lack.
    mixed: some matrices have other bits or groups than these; their shapes tell. awq: words are
    AWQ's, not GPTQ's.
    """

    bits: int
    group: int
    offset: int
    mixed: bool
    awq: bool

    def __str__(self) -> str:
        group = "a scale a row" if self.group < 0 else f"group {self.group}"
        method = "AWQ" if self.awq else "GPTQ"
        others = ", or as each matrix tells" if self.mixed else ""
        return f"{method} int{self.bits}, {group}{others}"

    def groups(self, columns: int) -> int:
        """Groups of a row of so many columns."""
        return 1 if self.group < 0 else -(-columns // self.group)


def read_layout(fields: Fields) -> Layout:
    """The layout in `quantization_config`.

    Raises `UnsupportedModelError` for other methods, formats and bits than are read here.
    """
    method = fields.text("quant_method", "none")
    if method not in ("gptq", "awq"):
        remedy = "give a GPTQ or an AWQ folder, or the dense model"
        _refuse(fields, f"quant_method {method[:40]!r}", remedy)
    awq = method == "awq"
    form = _awq_version(fields) if awq else _gptq_format(fields)
    known = (4,) if awq else (4, 8)
    if (bits := fields.integer("bits")) not in known:
        remedy = f"give one with {' or '.join(map(str, known))}"
        _refuse(fields, f"a quantization to {bits} bits", remedy)
    group = fields.integer("group_size")
    if group != -1 and not 0 < group < 1 << 31:
        raise CheckpointError(f"{fields.where}: group_size is {group}, but must be positive or -1")
    mixed = not awq and bool(fields.nested("dynamic").values)
    return Layout(bits, group, int(form == "gptq"), mixed, awq)


def _gptq_format(fields: Fields) -> str:
    form = fields.text("checkpoint_format", fields.text("format", "gptq"))
    if form not in ("gptq", "gptq_v2") or fields.flag("is_marlin_format", False):
        _refuse(fields, f"checkpoint_format {form[:40]!r}", "give one in gptq or gptq_v2")
    return form


def _awq_version(fields: Fields) -> str:
    version = fields.text("version", fields.text("format", "gemm"))
    if fields.get("backend") == "llm-awq":  # packs otherwise, whatever the version
        version = "llm-awq"
    if version.lower() != "gemm":
        _refuse(fields, f"AWQ's version {version[:40]!r}", "give one in gemm")
    return "gemm"


def _refuse(fields: Fields, what: str, remedy: str) -> None:
    raise UnsupportedModelError(f"{fields.where}: {what} is not supported: {remedy}")
