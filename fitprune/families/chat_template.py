"""LLaVA's conversation templates as Jinja chat templates, for everybody who asks by messages: pipelines, servers, other libraries.

transformers reads `chat_template.jinja` beside a checkpoint's processor. What is written here renders a list of messages to the very text
of `build_prompt`, from the same pieces (conversation.py): images first, each `<image>` and a line break, then the texts, by line; a system
message in place of the template's system text; users and assistants in turn. Anything else is refused where it is rendered, since a
conversation in a form that was not trained is answered worse without a word. The BOS token is the tokenizer's, as in `build_prompt`: a
processor adds it, while a tokenizer's own `apply_chat_template(tokenize=True)` adds none.

Left out: tools, and `plain`, which has no dialogue.

    python -c "from fitprune.families.chat_template import *; print(chat_template('vicuna_v1'))"
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any

from ..checkpoints.tokenize import IMAGE
from .conversation import names, pieces

_WRITTEN = re.compile(r"{#- (\w+) of LLaVA, by fitprune -#}")  # how a template says by itself which it is
_JINJA = """\
{#- NAME of LLaVA, by fitprune -#}
{%- set chat = namespace(system=SYSTEM, turn='user', begun=false) -%}
{%- for message in messages -%}
    {%- set said = namespace(images='', text='', parts=0) -%}
    {%- if message['content'] is string -%}
        {%- set said.text = message['content'] -%}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' -%}
                {%- set said.images = said.images + IMAGE -%}
            {%- elif part['type'] == 'text' -%}
                {%- set said.text = said.text + ('\\n' if said.parts else '') + part['text'] -%}
                {%- set said.parts = said.parts + 1 -%}
            {%- else -%}
                {{- raise_exception('only text and images can be asked about, not ' + part['type']) -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {%- if said.images and message['role'] != 'user' -%}
        {{- raise_exception('only users show images') -}}
    {%- endif -%}
    {%- if message['role'] == 'system' and loop.first -%}
        {%- set chat.system = said.text -%}
    {%- elif message['role'] != chat.turn -%}
        {{- raise_exception('messages must be user, assistant, user and so on in turn, after at most one of the system') -}}
    {%- elif message['role'] == 'user' -%}
        {%- if not chat.begun -%}
            {{- BEGIN -}}
            {%- if chat.system -%}
                {{- BEFORE_SYSTEM + chat.system + AFTER_SYSTEM -}}
            {%- endif -%}
        {%- endif -%}
        {{- (BEFORE if chat.begun else FIRST) + said.images + said.text + AFTER -}}
        {%- set chat.begun = true -%}
        {%- set chat.turn = 'assistant' -%}
    {%- else -%}
        {{- BEFORE_ANSWER + said.text + AFTER_ANSWER -}}
        {%- set chat.turn = 'user' -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if chat.turn == 'user' -%}
        {{- raise_exception('the last message must be the user\\'s: there is nothing to answer') -}}
    {%- endif -%}
    {{- CUE -}}
{%- endif -%}
"""


def chat_template(name: str) -> str:
    """The Jinja template that renders messages as `build_prompt` does turns.

    Args:
        name: One of conversation.py's `names()`.
    Raises:
        FitPruneError: for an unknown template, or one without dialogue.
    """
    texts = {field.upper(): json.dumps(text) for field, text in asdict(pieces(name)).items()}
    texts |= {"IMAGE": json.dumps(f"{IMAGE}\n"), "NAME": name}
    return re.sub(r"\b[A-Z_]{3,}\b", lambda found: texts[found[0]], _JINJA)


def written_as(tokenizer: Any) -> str | None:
    """The name of the template that a checkpoint's chat template was written from here; None for somebody else's, or none."""
    found = _WRITTEN.match(getattr(tokenizer, "chat_template", None) or "")
    return found[1] if found and found[1] in names() else None
