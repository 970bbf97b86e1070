"""The embedded model's tokenizer: one token for each word of the generated worlds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, END, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
WHOLE = (
    *("<search>", " </search>", "<answer>", " </answer>"),
    *("<information>\n", "\n</information>", "(1)", "(2)", "(3)", "(4)", "(5)", "\nQuestion:"),
)
"""What the Search environment writes around words; each is one token."""
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_WORD = re.compile(r" ?[A-Za-z]+")


def make_tokenizer(texts: Iterable[str], *, size: int) -> Any:
    """A byte-level Unigram tokenizer of at most `size` tokens: control tokens, bytes, words.

    Any text round-trips exactly, since every byte has a token. A word is one token with its
    leading space, so that a name costs one token wherever it stands. (BPE would spend merges,
    and so embeddings, on the beginnings of words.)
    """
    counts = Counter(w for text in texts for w in _WORD.findall(text))
    control = [PAD, END, USER, ASSISTANT, SYSTEM]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = size - len(control) - len(WHOLE) - len(alphabet)
    words = [w for w, _ in sorted(counts.items(), key=lambda wc: (-wc[1], wc[0])) if len(w) > 1]
    # A word's score beats any spelling of it in bytes; among words all are equal.
    pieces = [(p, -20.0) for p in alphabet] + [(_visible(w), -8.0) for w in words[:room]]
    tokenizer = Tokenizer(
        models.Unigram([(c, 0.0) for c in (*control, *WHOLE)] + pieces, None, False)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(c, special=True, normalized=False) for c in control])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in WHOLE])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _visible(word: str) -> str:
    """The word in the byte-level alphabet, where a space is a visible letter."""
    return word.replace(" ", "Ġ")
