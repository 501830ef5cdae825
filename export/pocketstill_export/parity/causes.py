"""The likely cause of a difference between a variant and its checkpoint, in plain words.

Each fault that the field knows leaves its own trace: which character the first other token stands at, what the other
ids spell, which positions are off. The words are a guess to look at first; the difference itself is the fact.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_SPACES = " \u2581"
_REPLACED = "the pre-tokenizer was replaced (tokenizer.ggml.pre in GGUF, pre_tokenizer in tokenizer.json)"
WEIGHTS = "wrong, permuted or transposed weights, a lost bias or another norm"
ROPE = "the order of the rows of q and k, the rope base, or the attention's heads"
# A mean KL that rounding to 8 bits or so stays below, and a wrong tensor does not (see logits.compare_logits).
_COARSE = 0.05
CACHE = "the KV cache: one pass over the same tokens gives other logits than a token at a time"


def ids_cause(text: str, wanted: Sequence[int], found: Sequence[int], tokenizer: Any) -> str:
    """Why `found` may not be the ids `wanted` of `text`.

    Args:
        text: what was tokenized.
        wanted: the student's ids.
        found: those of the engine.
        tokenizer: the student's `tokenizers.Tokenizer`.
    """
    wanted, found = list(wanted), list(found)
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    if found[1:] == wanted and found[0] in special:
        return "a begin token was added (add_bos_token, or the post-processor)"
    if found[:-1] == wanted and found[-1] in special:
        return "an end token was added (add_eos_token, or the post-processor)"
    out_of_range = [i for i in found if not 0 <= i < tokenizer.get_vocab_size()]
    if out_of_range:
        return f"the vocabularies differ: {out_of_range[0]} is no id of this tokenizer"
    added = set(tokenizer.get_added_tokens_decoder())
    if lost := sorted((added & set(wanted)) - set(found)):
        return f"the added token {tokenizer.id_to_token(lost[0])!r} was read as plain text (its type or flag is lost)"
    if (gained := sorted((added & set(found)) - set(wanted))) and not _is_unknown(tokenizer, gained):
        return f"plain text was read as the added token {tokenizer.id_to_token(gained[0])!r}"
    names = {"wanted": _names(tokenizer, wanted), "found": _names(tokenizer, found)}
    if any(map(_BYTE_TOKEN.fullmatch, names["wanted"])) != any(map(_BYTE_TOKEN.fullmatch, names["found"])):
        return "byte fallback: a character without a token is spelt in bytes by one side only (byte_fallback)"
    return _spelling_cause(text, names["wanted"], names["found"], tokenizer)


def _is_unknown(tokenizer: Any, ids: Sequence[int]) -> bool:
    return tokenizer.model.unk_token is not None and tokenizer.token_to_id(tokenizer.model.unk_token) in ids


def _names(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    return [tokenizer.id_to_token(i) or "" for i in ids]


def _spelling_cause(text: str, wanted: list[str], found: list[str], tokenizer: Any) -> str:
    """By what both sides spell: other letters mean a normalizer, the same letters cut otherwise a splitting rule."""
    byte_level = _is_byte_level(tokenizer)
    ours, theirs = _spelt(wanted, byte_level), _spelt(found, byte_level)
    if ours != theirs:
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            if unicodedata.normalize(form, theirs) == ours:
                return f"{form} normalization is missing (the normalizer of tokenizer.json)"
            if unicodedata.normalize(form, ours) == theirs:
                return f"{form} normalization was added (the normalizer of tokenizer.json)"
        if ours.lower() == theirs.lower():
            return "casing differs: a lowercase normalizer is missing or was added"
        if ours.lstrip(_SPACES) == theirs.lstrip(_SPACES):
            lost = len(theirs) < len(ours)
            return f"the leading space was {'lost' if lost else 'added'} (add_space_prefix, prefix space)"
        if "".join(ours.split()) == "".join(theirs.split()):
            return "blanks are dropped or merged (remove_extra_whitespaces, or a stripping normalizer)"
        if len(wanted) == len(found) and theirs and sorted(wanted) != sorted(found):
            return "the vocabularies differ: the same places hold other tokens (the ids are shifted or permuted)"
        return "one side loses or changes characters (normalizer, unknown token, or damaged vocabulary)"
    if tokenizer.pre_tokenizer is None:
        return "pieces are merged otherwise: merges or scores differ, or one side splits the text before it merges"
    at = len(_spelt(_common(wanted, found), byte_level))
    return _split_cause(ours, at)


def _is_byte_level(tokenizer: Any) -> bool:
    return "ByteLevel" in str(tokenizer.pre_tokenizer) or "ByteLevel" in str(tokenizer.decoder)


def _common(wanted: list[str], found: list[str]) -> list[str]:
    pairs = zip(wanted, found, strict=False)
    return wanted[: next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(found)))]


def _spelt(names: list[str], byte_level: bool) -> str:
    """What tokens spell, without the decoder, which may strip or add a space."""
    if not byte_level:
        return "".join(names).replace("\u2581", " ")
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    data = b"".join(
        bytes(letters[c] for c in name) if all(c in letters for c in name) else name.encode("utf-8") for name in names
    )
    return data.decode("utf-8", "replace")


def _split_cause(text: str, at: int) -> str:
    """The same text cut otherwise; by the characters about the place where the first other token begins."""
    here = text[at : at + 3]
    near = text[max(0, at - 1) : at + 3]
    if any(c.isnumeric() for c in here[:2]):
        return f"digits are grouped otherwise: {_REPLACED}"
    if "'" in near or "\u2019" in near:
        return f"contractions are split otherwise: {_REPLACED}"
    if any(c.isspace() for c in here[:2]):
        return f"blanks are split otherwise: {_REPLACED}"
    if any(unicodedata.category(c).startswith("M") for c in near):
        return f"combining marks are split otherwise: {_REPLACED}"
    if any(unicodedata.category(c)[0] in "PS" for c in here[:2]):
        return f"punctuation is split otherwise: {_REPLACED}"
    return f"words are merged otherwise: merges or ignore_merges differ, or {_REPLACED}"


def template_cause(wanted: str | None, found: str | None) -> str:
    """Why a rendered prompt may differ; None stands for a refusal."""
    if found is None or wanted is None:
        refuses, accepts = ("the bundle", "transformers") if found is None else ("transformers", "the bundle")
        return f"{refuses} refuses these messages and {accepts} does not: the templates differ, or what they may use"
    if "".join(wanted.split()) == "".join(found.split()):
        return "only blanks differ: blocks are trimmed otherwise, or the file's line ends were changed"
    if found.endswith(wanted) or wanted.endswith(found):
        return "the beginning differs: a begin token or the default system message was lost or added"
    if found.startswith(wanted) or wanted.startswith(found):
        return "the end differs: the generation prompt or an end token was lost or added"
    return "the template is another one"


def no_numbers_cause(shape: bool) -> str:
    """Why logits may be of another shape, or no numbers at all."""
    if shape:
        return "the vocabulary was cut or padded, or only the last token's logits are given"
    return "damaged weights, or numbers beyond half precision's 65,504"


def logits_cause(
    divergences: Sequence[npt.NDArray[np.float64]],
    sequences: Sequence[Sequence[int]],
    limit: float,
    config: Any = None,
) -> str:
    """Why some KL divergences exceed `limit`, by the positions that they stand at.

    The first token of a text sees only itself: neither rope nor the order of the rows of q and k can touch it.
    """
    off = [kl >= limit for kl in divergences]
    if (token := _only_after(off, sequences)) is not None:
        return f"only what follows token {token} is off: its row of the embedding"
    values = np.concatenate(divergences)
    typical = float(np.median(values[values >= limit])) if (values >= limit).any() else 0.0
    if 30 * max(float(kl[0]) for kl in divergences) >= typical:
        if values.mean() < _COARSE:
            return "rounding: the numbers are coarser than the variant's name says"
        return f"the distribution is off from the first token on: {WEIGHTS}"
    first = min((int(rows.argmax()) for rows in off if rows.any()), default=0)
    if near := _limit_at(first, config):
        return f"only positions from {first} on differ, and {near}: rope scaling, sliding window or context"
    if first > 8:
        return f"only positions from {first} on differ: rope scaling, sliding window or context"
    return f"the first token is right and later ones are off: {ROPE}"


def _only_after(off: Sequence[npt.NDArray[np.bool_]], sequences: Sequence[Sequence[int]]) -> int | None:
    """The token without which no text is off from there on, when others are right."""
    starts = {ids[int(rows.argmax())] for rows, ids in zip(off, sequences, strict=True) if rows.any()}
    untouched = [ids for rows, ids in zip(off, sequences, strict=True) if not rows.any()]
    if len(starts) != 1:
        return None
    token = next(iter(starts))
    before = sum(int(rows.argmax()) for rows in off if rows.any()) + sum(map(len, untouched))
    return token if before >= 8 and not any(token in ids for ids in untouched) else None


def _limit_at(first: int, config: Any) -> str | None:
    """The setting of the checkpoint that begins to act at about this position."""
    rope: Mapping[str, Any] = dict(getattr(config, "rope_parameters", None) or {})
    settings = {
        "sliding_window": getattr(config, "sliding_window", None),
        "original_max_position_embeddings": rope.get("original_max_position_embeddings"),
    }
    for name, value in settings.items():
        if isinstance(value, int) and value > 1 and abs(first - value) <= max(2, value // 64):
            return f"{name} is {value}"
    return None
