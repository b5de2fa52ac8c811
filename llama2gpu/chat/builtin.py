"""Chat templates of models whose checkpoints often bring none, by name.

Sources: Meta's llama (generation.py) and llama-models (prompt_format.md), FastChat
(conversation.py: vicuna v1.1), Stanford Alpaca (train.py), mistral-common (instruct v1).
"""

from typing import NamedTuple


class Format(NamedTuple):
    """A template, and texts that only the user's next turn starts with."""

    template: str
    stops: tuple[str, ...] = ()


#: The system prompt, if there is one, as `system`, and the other messages as `turns`, which must
#: be a user's and a model's in turn.
_TURNS = """\
{%- set system = namespace(text=none) -%}
{%- set turns = messages -%}
{%- if messages and messages[0].role == 'system' -%}
    {%- set system.text = messages[0].content | trim -%}
    {%- set turns = messages[1:] -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if message.role != ('user' if loop.index0 is even else 'assistant') -%}
        {{- raise_exception('after a system prompt, user and assistant must take turns') -}}
    {%- endif -%}
{%- endfor -%}
"""

_LLAMA_2 = """\
{%- for message in turns -%}
    {%- if message.role == 'user' -%}
        {{- bos_token + '[INST] ' -}}
        {%- if loop.first and system.text is not none -%}
            {{- '<<SYS>>\\n' + system.text + '\\n<</SYS>>\\n\\n' -}}
        {%- endif -%}
        {{- message.content | trim + ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + message.content | trim + ' ' + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""

_LLAMA_3 = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' -}}
    {{- message.content | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

_VICUNA = """\
{{- bos_token -}}
{%- if system.text is none -%}
    {{- "A chat between a curious user and an artificial intelligence assistant. " -}}
    {{- "The assistant gives helpful, detailed, and polite answers to the user's questions. " -}}
{%- elif system.text -%}
    {{- system.text + ' ' -}}
{%- endif -%}
{%- for message in turns -%}
    {%- if message.role == 'user' -%}
        {{- 'USER: ' + message.content | trim + ' ' -}}
    {%- else -%}
        {{- 'ASSISTANT: ' + message.content | trim + eos_token -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'ASSISTANT:' -}}
{%- endif -%}
"""

_ALPACA = """\
{{- bos_token -}}
{%- if system.text is none -%}
    {{- 'Below is an instruction that describes a task. ' -}}
    {{- 'Write a response that appropriately completes the request.\\n\\n' -}}
{%- elif system.text -%}
    {{- system.text + '\\n\\n' -}}
{%- endif -%}
{%- for message in turns -%}
    {%- if message.role == 'user' -%}
        {{- '### Instruction:\\n' + message.content | trim + '\\n\\n' -}}
    {%- else -%}
        {{- '### Response:\\n' + message.content | trim + eos_token + '\\n\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '### Response:\\n' -}}
{%- endif -%}
"""

_MISTRAL = """\
{{- bos_token -}}
{%- for message in turns -%}
    {%- if message.role == 'user' -%}
        {{- '[INST] ' -}}
        {%- if loop.first and system.text -%}
            {{- system.text + '\\n\\n' -}}
        {%- endif -%}
        {{- message.content | trim + ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + message.content | trim + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""

#: The conversation as one text, a line for each turn, which a base model goes on with.
_PLAIN = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if not loop.first and message.role != 'assistant' -%}
        {{- '\\n' -}}
    {%- endif -%}
    {{- message.content -}}
{%- endfor -%}
"""

FORMATS = {
    "llama2": Format(_TURNS + _LLAMA_2, ("[INST]",)),
    "llama3": Format(_LLAMA_3),
    "vicuna": Format(_TURNS + _VICUNA, ("USER:",)),
    "alpaca": Format(_TURNS + _ALPACA, ("### Instruction:",)),
    "mistral": Format(_TURNS + _MISTRAL, ("[INST]",)),
    "plain": Format(_PLAIN),
}
