"""A bundle served as a teacher: the student itself, for routes that learn from what it says."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

import pocketstill
from pocketstill.errors import UserError

from .answerers import Answered
from .protocol import ChatRequest, Choice, ProtocolError, called

# Engines take 32 bits of a seed, and some of them a sign.
_SEED_BITS = 31


class Student:
    """A loaded bundle that answers requests one at a time, in a thread of its own.

    Raises:
        UserError: the folder is no bundle, or its engine is not installed.
    """

    def __init__(self, folder: str, variant: str | None) -> None:
        self._model = pocketstill.load(folder, variant)
        self._vocabulary = _Vocabulary(self._model)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="student")

    async def answer(self, request: ChatRequest) -> Answered:
        """The choices that the model samples, each from the request's seed and its index.

        Raises:
            ProtocolError: 400, when the prompt does not fit into the context or the template refuses it.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, request)

    def _answer(self, request: ChatRequest) -> Answered:
        messages = [{"role": role, "content": text} for role, text in request.messages]
        seed = random.getrandbits(_SEED_BITS) if request.seed is None else request.seed
        try:
            prompt = self._model.prompt_ids(messages, tools=list(request.tools) or None)
            choices = [called(self._choice(request, prompt, seed + index), request) for index in range(request.n)]
        except UserError as error:
            raise ProtocolError(400, str(error), code="context_length_exceeded", param="messages") from None
        return Answered(choices, len(prompt))

    def _choice(self, request: ChatRequest, prompt: list[int], seed: int) -> Choice:
        model = self._model
        most = request.max_tokens or int(model.bundle.generation.get("max_new_tokens", 256))
        ids: list[int] = []
        stopped: str | None = None
        for token in model.engine.generate(
            prompt,
            max_new_tokens=most,
            stop_ids=model.bundle.stop_ids,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=seed & ((1 << _SEED_BITS) - 1),
        ):
            ids.append(token)
            stopped = _before(model.decode(ids), request.stop) if request.stop else None
            if stopped is not None:
                break
        full = len(ids) >= most or len(prompt) + len(ids) >= model.engine.context_length
        text = model.decode(ids) if stopped is None else stopped
        count = len(ids)
        while stopped is not None and ids and len(model.decode(ids[:-1])) >= len(stopped):
            ids.pop()
        logprobs = None if request.top_logprobs is None else self._logprobs(prompt, ids, request.top_logprobs)
        return Choice(text, "length" if full and stopped is None else "stop", count, logprobs=logprobs)

    def _logprobs(self, prompt: list[int], ids: list[int], top: int) -> tuple[dict[str, Any], ...]:
        """OpenAI's `logprobs.content` of the ids, of the model's own distribution (temperature 1)."""
        if not ids:
            return ()
        rows = self._model.engine.logits([*prompt, *ids[:-1]])[len(prompt) - 1 :]
        entries = []
        for token, row in zip(ids, rows, strict=True):
            log_p = _log_softmax(row)
            best = np.argsort(-log_p, kind="stable")[:top]
            entry = self._vocabulary.entry(token, float(log_p[token]))
            entries.append(entry | {"top_logprobs": [self._vocabulary.entry(int(i), float(log_p[i])) for i in best]})
        return tuple(entries)


def _before(text: str, stops: Sequence[str]) -> str | None:
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return text[: min(found)] if found else None


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted: npt.NDArray[np.float64] = logits.astype(np.float64) - float(logits.max())
    return shifted - float(np.log(np.exp(shifted).sum()))


class _Vocabulary:
    """What each id of a tokenizer writes, in bytes: pieces may end inside of a character."""

    def __init__(self, model: Any) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(model.bundle.tokenizer))
        decoder = json.dumps(json.loads(tokenizer.to_str()).get("decoder"))
        self._by_bytes = _letters() if '"ByteLevel"' in decoder else None
        self._fallback = '"ByteFallback"' in decoder
        self._tokenizer, self._model = tokenizer, model
        self._added = set(tokenizer.get_added_tokens_decoder())
        self._entries: dict[int, tuple[str, list[int]]] = {}

    def entry(self, token: int, logprob: float) -> dict[str, Any]:
        """OpenAI's object of one token."""
        if token not in self._entries:
            written = self._bytes(token)
            self._entries[token] = (written.decode("utf-8", "replace"), list(written))
        text, written_bytes = self._entries[token]
        return {"token": text, "logprob": logprob, "bytes": written_bytes}

    def _bytes(self, token: int) -> bytes:
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if token in self._added:
            return str(piece).encode()
        if self._by_bytes is not None and all(letter in self._by_bytes for letter in piece):
            return bytes(self._by_bytes[letter] for letter in piece)
        if self._fallback and len(piece) == 6 and piece.startswith("<0x"):
            return bytes([int(piece[3:5], 16)])
        # The mark that sentencepiece writes for a space.
        return str(piece).replace("\u2581", " ").encode()


@lru_cache(maxsize=1)
def _letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for (GPT-2): printable ones for themselves."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + n): byte for n, byte in enumerate(others)}
