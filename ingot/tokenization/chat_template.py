"""The special tokens and the one chat template (ChatML) that training, evaluation and serving all use."""

import re
from pathlib import Path
from typing import Any

from ingot.files import read_json, write_json, write_text

END_OF_TEXT = "<|endoftext|>"  # ends every document in pretraining: the tokenizer's eos_token
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"  # ends every turn of a chat
PAD = "<|pad|>"  # fills up batches and nothing else, so that no end token is ever masked with it

SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, PAD)  # ids 0 to 3
STOP_TOKENS = (END_OF_TEXT, TURN_END)  # generation stops at either

GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")

# The generation marks enclose what the assistant learns to write, with the end of its turn: TRL's assistant-only loss
# reads them. Content stands exactly as it was given, so that training and serving see the same ids.
CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- if message['role'] not in ('system', 'user', 'assistant') %}
{{- raise_exception("unknown role '" + message['role'] + "'; the roles are system, user and assistant") }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}
{{- message['content'] + '<|im_end|>' }}
{%- endgeneration %}
{{- '\\n' }}
{%- else %}
{{- message['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def stop_token_ids(tokenizer: Any) -> list[int]:
    """The ids at which generation stops, for `generation_config.eos_token_id`; its eos_token comes first."""
    names = dict.fromkeys((tokenizer.eos_token, *STOP_TOKENS))
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[name] for name in names if name in vocabulary]


def set_chat_template(folder: str | Path) -> None:
    """Gives a tokenizer folder from elsewhere the template above, and takes its own out of tokenizer_config.json."""
    config = Path(folder) / "tokenizer_config.json"
    values = read_json(config)
    values.pop("chat_template", None)
    write_json(config, values)
    write_text(Path(folder) / "chat_template.jinja", CHAT_TEMPLATE)
