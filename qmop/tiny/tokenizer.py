"""The tiny tokenizer: one token for each word of the rendered world, single characters for any other text."""

from __future__ import annotations

import string

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from qmop.vtcbench.words import COLOURS, FEELINGS, INKS, KINDS, MARKS, MOODS, NUMBERS, PLACES, SIDES, TEXTURES

PAD, BOS, UNK, EOS, IMAGE, USER, ASSISTANT = "<pad>", "<s>", "<unk>", "</s>", "<image>", "<user>", "<assistant>"
SPECIAL = (PAD, BOS, UNK, EOS, IMAGE, USER, ASSISTANT)
"""EOS has id 3: CLIP's text tower pools the largest id instead of the end token when that id is 2."""

_WORDS = """
a above all an and answer any are at background behind below big bottom by caption cars coat colour come common count
describe different digit dim do does each feel fewer for from front go has have here how image in is it its kind lamp
large largest left less letter light like long many mark may middle mood more most near need no not number object
objects of on one or other photo picture place right round same shape shown side sign small smallest style text
texture than that the there these thing this to top traffic two under up what where which who why with word words
would yes you
""".split()  # noqa: SIM905 - a list of a hundred quoted words would hide the words

CHAT_TEMPLATE = (
    "{{ '" + BOS + "' }}"
    "{% for message in messages %}"
    "{{ '" + USER + "' if message['role'] == 'user' else"
    " '" + ASSISTANT + "' if message['role'] == 'assistant' else '' }}"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{{ '" + IMAGE + "' if part['type'] == 'image' else ' ' + part['text'] if part['type'] == 'text' else '' }}"
    "{% endfor %}{% endif %}"
    "{{ ' " + EOS + "' if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{{ '" + ASSISTANT + "' if add_generation_prompt else '' }}"
)


def _vocabulary() -> dict[str, int]:
    world = [*KINDS, *COLOURS, *MARKS, *INKS, *FEELINGS, *MOODS, *TEXTURES, *SIDES, *NUMBERS]
    words = sorted({*_WORDS, *world, *" ".join(PLACES).split()})
    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*SPECIAL, *characters, *("##" + c for c in characters), *(w for w in words if len(w) > 1)]
    return {piece: index for index, piece in enumerate(pieces)}


def _core() -> Tokenizer:
    """WordPiece over lower-case words; an unknown word falls apart into characters, so no text is lost."""
    core = Tokenizer(models.WordPiece(vocab=_vocabulary(), unk_token=UNK, max_input_chars_per_word=200))
    core.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^\w\s]"), "isolated")]
    )
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return core


def language_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the language model, with its chat template; adds no special tokens by itself."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_core(),
        pad_token=PAD,
        bos_token=BOS,
        unk_token=UNK,
        eos_token=EOS,
        additional_special_tokens=[IMAGE, USER, ASSISTANT],
        padding_side="left",
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def query_tokenizer(max_length: int = 77) -> PreTrainedTokenizerFast:
    """The same vocabulary for the text tower: begin token, question, end token, padded on the right."""
    core = _core()
    vocabulary = core.get_vocab()
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, vocabulary[BOS]), (EOS, vocabulary[EOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        unk_token=UNK,
        eos_token=EOS,
        padding_side="right",
        truncation_side="right",
        model_max_length=max_length,
    )
