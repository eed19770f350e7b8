"""The dialogue frames of mllm/conversation.py as Jinja, for tools that render chats with a tokenizer's template.

The text form only: `<image>` stands for a whole image. What the model is trained on and asked with is built by
mllm/sequence.py; a test holds the two together.
"""

from __future__ import annotations

import json

from mllm.conversation import ASSISTANT, USER, VICUNA_SYSTEM
from mllm.vocabulary import IMAGE

WORDS = {"user": USER, "assistant": ASSISTANT, "system": VICUNA_SYSTEM, "image": IMAGE}

EACH_PART = """
{%- set content = message['content'] -%}
{%- if content is string -%}{%- set content = [{'type': 'text', 'text': content}] -%}{%- endif -%}
{%- for part in content -%}"""

NATIVE = """
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ user }}{%- endif -%}
EACH_PART
{%- if part['type'] == 'image' -%}{{ image }}{%- else -%}{{ ' ' + (part['text'] | trim) }}{%- endif -%}
{%- endfor -%}
{{- ' ' + assistant if message['role'] == 'user' else eos_token -}}
{%- endfor -%}"""

UNITOK = """
{{- bos_token + system -}}
{%- for message in messages -%}
{{- user + ' ' if message['role'] == 'user' else ' ' -}}
EACH_PART
{%- if part['type'] == 'image' -%}{{ image + '\\n' }}
{%- else -%}{{ ('' if loop.first or loop.previtem['type'] == 'image' else ' ') + (part['text'] | trim) }}{%- endif -%}
{%- endfor -%}
{{- ' ' + assistant if message['role'] == 'user' else eos_token -}}
{%- endfor -%}"""


PLAIN = """
{{- bos_token -}}
{%- for message in messages -%}
EACH_PART
{%- if part['type'] == 'image' -%}{{ image }}
{%- elif message['role'] == 'assistant' -%}{{ (part['text'] | trim) + '\\n' }}{%- endif -%}
{%- endfor -%}
{%- endfor -%}"""

CLASS = """
{%- for message in messages -%}
EACH_PART
{%- if part['type'] == 'image' -%}{{ image }}
{%- elif part['type'] == 'class' -%}{{ '<class_' ~ part['class'] ~ '>' }}{%- endif -%}
{%- endfor -%}
{%- endfor -%}"""


def chat_template(style: str) -> str:
    """The template of a prompt style; "unitok" is its question and answer form (vicuna_v1)."""
    templates = {"native": NATIVE, "unitok": UNITOK, "vicuna_v1": UNITOK, "plain": PLAIN, "class": CLASS}
    if style not in templates:
        raise ValueError(f"unknown prompt style: found {style!r}; use one of {', '.join(templates)}")
    words = "".join(f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in WORDS.items())
    return words + templates[style].replace("EACH_PART", EACH_PART)
