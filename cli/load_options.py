"""The options that say what is loaded, and how: of every command that generates text."""

from typing import Any

from llama2gpu.cli import options, quant_options

#: In the order of the help.
LOADING = (
    options.model,
    options.tokenizer,
    options.backend,
    options.op,
    options.device,
    options.dtype("Type of the weights"),
    quant_options.quantization(default="none"),
    options.context,
    options.rope_theta,
    options.rope_scaling,
    options.norm_eps,
    options.threads,
    options.kv_dtype("; int8 takes about half of the memory of 16 bits"),
    options.no_kv_cache,
    options.prefill,
)


def loading(function: Any) -> Any:
    """Adds them all to a command."""
    for option in reversed(LOADING):
        function = option(function)
    return function
