"""Conversation templates, to the character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitprune.errors import FitPruneError
from fitprune.families.conversation import build_prompt, names, stop_string, template_for

Q = "<image>\nWhat is it?"
USER_CHAT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
HUMAN_CHAT = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
CHATML = "<|im_start|>system\nAnswer the questions.<|im_end|>"
MPT = (
    "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. "
    "The assistant gives helpful and honest answers.<|im_end|>"
)
HELPFUL = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)
LLAMA = f"<<SYS>>\n{HELPFUL}\n<</SYS>>\n\n"
LLAMA_3 = f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{HELPFUL}<|eot_id|>"
USER_3, ASSISTANT_3 = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))
QWEN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
SINGLE_TURN = {
    "vicuna_v1": f"{USER_CHAT} USER: {Q} ASSISTANT:",
    "v1": f"{USER_CHAT} USER: {Q} ASSISTANT:",
    "llava_v1": f"{HUMAN_CHAT} USER: {Q} ASSISTANT:",
    "llava_v0": f"{HUMAN_CHAT}###Human: {Q}###Assistant:",
    "mistral_instruct": f"[INST] {Q} [/INST]",
    "chatml_direct": f"{CHATML}<|im_start|>user\n{Q}<|im_end|><|im_start|>assistant\n",
    "mistral_direct": f"{CHATML}<|im_start|>user\n{Q}<|im_end|><|im_start|>assistant\n",
    "mpt": f"{MPT}<|im_start|>user\n{Q}<|im_end|><|im_start|>assistant\n",
    "llava_llama_2": f"[INST] {LLAMA}{Q} [/INST]",
    "llava_llama_3": f"{LLAMA_3}{USER_3}{Q}<|eot_id|>{ASSISTANT_3}",
    "qwen_1_5": f"{QWEN}<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n",
    "plain": f"{Q}\n",
    "v0_plain": f"{Q}\n",
}
TURNS = [(Q, "A cat."), ("Sure?", "Yes"), ("Why?", None)]
THREE_TURNS = {
    "vicuna_v1": f"{USER_CHAT} USER: {Q} ASSISTANT: A cat.</s>USER: Sure? ASSISTANT: Yes</s>USER: Why? ASSISTANT:",
    "llava_v1": f"{HUMAN_CHAT} USER: {Q} ASSISTANT: A cat.</s>USER: Sure? ASSISTANT: Yes</s>USER: Why? ASSISTANT:",
    "llava_v0": (f"{HUMAN_CHAT}###Human: {Q}###Assistant: A cat.###Human: Sure?###Assistant: Yes###Human: Why?###Assistant:"),
    "mpt": (
        f"{MPT}<|im_start|>user\n{Q}<|im_end|><|im_start|>assistant\nA cat.<|im_end|><|im_start|>user\nSure?<|im_end|>"
        "<|im_start|>assistant\nYes<|im_end|><|im_start|>user\nWhy?<|im_end|><|im_start|>assistant\n"
    ),
    "chatml_direct": (
        f"{CHATML}<|im_start|>user\n{Q}<|im_end|><|im_start|>assistant\nA cat.<|im_end|><|im_start|>user\nSure?"
        "<|im_end|><|im_start|>assistant\nYes<|im_end|><|im_start|>user\nWhy?<|im_end|><|im_start|>assistant\n"
    ),
    "llava_llama_2": (f"[INST] {LLAMA}{Q} [/INST] A cat. </s><s>[INST] Sure? [/INST] Yes </s><s>[INST] Why? [/INST]"),
    "mistral_instruct": f"[INST] {Q} [/INST] A cat. </s>[INST] Sure? [/INST] Yes </s>[INST] Why? [/INST]",
    "llava_llama_3": (
        f"{LLAMA_3}{USER_3}{Q}<|eot_id|>{ASSISTANT_3}A cat.<|eot_id|>{USER_3}Sure?<|eot_id|>{ASSISTANT_3}Yes<|eot_id|>"
        f"{USER_3}Why?<|eot_id|>{ASSISTANT_3}"
    ),
    "qwen_1_5": (
        f"{QWEN}<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nSure?"
        "<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    ),
}
DIALOGUE = sorted(set(SINGLE_TURN) - {"plain", "v0_plain"})


@pytest.mark.parametrize("name", sorted(SINGLE_TURN))
def test_single_turn(name):
    assert build_prompt(name, [(Q, None)]) == SINGLE_TURN[name]


@pytest.mark.parametrize("name", sorted(THREE_TURNS))
def test_several_turns(name):
    assert build_prompt(name, TURNS) == THREE_TURNS[name]


def test_names_are_all_of_them():
    assert names() == sorted(SINGLE_TURN)


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        ("vicuna_v1", "</s>"),
        ("v1", "</s>"),
        ("llava_v1", "</s>"),
        ("llava_v0", "###"),
        ("mpt", "<|im_end|>"),
        ("chatml_direct", "<|im_end|>"),
        ("mistral_direct", "<|im_end|>"),
        ("plain", "\n"),
        ("llava_llama_2", "<s>"),
        ("mistral_instruct", ""),
        ("llava_llama_3", "<|eot_id|>"),
        ("qwen_1_5", "<|im_end|>"),
    ],
)
def test_stop_strings(name, stop):
    assert stop_string(name) == stop


@pytest.mark.parametrize("call", [stop_string, lambda name: build_prompt(name, [("q", None)])])
def test_an_unknown_name_lists_the_known_ones(call):
    with pytest.raises(FitPruneError, match="vicuna_v2") as caught:
        call("vicuna_v2")
    assert all(name in str(caught.value) for name in names())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", DIALOGUE)
def test_turns_that_make_no_prompt(name):
    with pytest.raises(FitPruneError, match="at least one turn"):
        build_prompt(name, [])
    with pytest.raises(FitPruneError, match="only the last turn"):
        build_prompt(name, [("q", None), ("r", None)])


@pytest.mark.parametrize("turns", [[("q", "a")], [("q", "a"), ("r", None)]])
def test_plain_has_no_dialogue(turns):
    with pytest.raises(FitPruneError, match="not for dialogue"):
        build_prompt("plain", turns)


def test_an_empty_answer_is_an_answer():
    assert build_prompt("vicuna_v1", [("q", ""), ("r", None)]).endswith("USER: q ASSISTANT: </s>USER: r ASSISTANT:")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(st.sampled_from(DIALOGUE), st.lists(st.tuples(TEXT, TEXT), max_size=3), TEXT, TEXT)
def test_a_conversation_only_grows(name, earlier, question, answer):
    """What was sent is a prefix of what is sent after it was answered, so that a cache can be kept."""
    asked = build_prompt(name, [*earlier, (question, None)])
    answered = build_prompt(name, [*earlier, (question, answer)])
    later = build_prompt(name, [*earlier, (question, answer), ("more", None)])
    assert answered.startswith(asked)
    assert later.startswith(answered)
    assert answered[len(asked) :].strip().startswith(answer.strip())
    assert not asked.endswith(" ")


class Vocabulary:
    def __init__(self, *tokens):
        self.tokens = {token: at for at, token in enumerate(("<s>", "</s>", *tokens))}

    def get_vocab(self):
        return self.tokens


@pytest.mark.parametrize(
    ("text_model", "tokens", "name", "template"),
    [
        ("llama", [], "liuhaotian/llava-v1.5-7b", "vicuna_v1"),
        ("llama", [], "llava-hf/llava-v1.6-vicuna-13b-hf", "vicuna_v1"),
        ("llama", [], "liuhaotian/llava-llama-2-13b-chat-lightning-preview", "llava_llama_2"),
        ("llama", [], "models/LLaVA-Llama-2-7b/", "llava_llama_2"),
        ("llama", [], "models/llama-2-based/llava-v1.5-7b", "vicuna_v1"),
        ("llama", [], "hub/models--liuhaotian--llava-llama-2-13b-chat-lightning-preview/snapshots/0a1b2c", "llava_llama_2"),
        ("mistral", [], "liuhaotian/llava-v1.6-mistral-7b", "mistral_instruct"),
        ("mistral", [], "renamed", "mistral_instruct"),
        ("llama", [], "mistral-is-only-its-name", "vicuna_v1"),
        ("llama", ["<|im_start|>"], "liuhaotian/llava-v1.6-34b", "chatml_direct"),
        ("mistral", ["<|im_start|>"], "renamed", "chatml_direct"),
        ("qwen2", ["<|im_start|>"], "lmms-lab/llava-next-72b", "qwen_1_5"),
        ("llama", ["<|start_header_id|>"], "lmms-lab/llama3-llava-next-8b", "llava_llama_3"),
        ("llama", ["<|start_header_id|>", "<|im_start|>"], "llama-2", "llava_llama_3"),
    ],
)
def test_the_template_is_read_from_the_checkpoint(text_model, tokens, name, template):
    assert template_for(text_model, Vocabulary(*tokens), name) == template
    assert template in names()
