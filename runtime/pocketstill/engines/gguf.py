"""llama.cpp behind the engine interface, through the low-level API of llama-cpp-python.

The high-level `Llama` class cannot switch off the extra buffer types, and costs more than the model does when
the model is small.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketstill.bundle import Variant
from pocketstill.engines.prompt import room_for
from pocketstill.errors import EngineError

_MOST_CONTEXT = 4096  # llama.cpp allocates its context whole, whatever the prompt
_LOGITS_BATCH = 64
_LOG_ERROR = 4
_last_error = ""
_log_callback: Any = None  # llama.cpp keeps the pointer, so the object must live on


def _import_llama() -> Any:
    global _log_callback
    try:
        import llama_cpp
    except ImportError as error:
        raise EngineError("GGUF variants need llama-cpp-python: pip install 'pocketstill[gguf]'") from error
    except (OSError, RuntimeError) as error:
        raise EngineError(
            f"llama-cpp-python is broken ({error}): pip install --force-reinstall 'pocketstill[gguf]'"
        ) from error
    if _log_callback is None:
        _log_callback = llama_cpp.llama_log_callback(_remember_errors)
        llama_cpp.llama_backend_init()
    # Each time, because whoever else uses llama.cpp in this process may have set another.
    llama_cpp.llama_log_set(_log_callback, None)
    return llama_cpp


def _remember_errors(level: int, text: bytes, user_data: Any) -> None:
    global _last_error
    if level == _LOG_ERROR:
        _last_error = text.decode("utf-8", "replace").strip()


def _reason() -> str:
    return _last_error or "no reason given"


def crashes_on_amx(system_info: str) -> bool:
    """Whether this build of llama.cpp would crash on its extra (repacked) buffers.

    Builds that use AMX die of SIGSEGV in `ggml_backend_amx_mul_mat` at the first decode of a small quantized
    model. AMX shows in `llama_print_system_info` when it was compiled in.
    """
    return "AMX" in system_info


def _free(llama: Any, context: Any, model: Any) -> None:
    llama.llama_free(context)
    llama.llama_model_free(model)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class GgufEngine:
    """A GGUF variant of a bundle; see `pocketstill.engines.Engine`."""

    def __init__(
        self,
        folder: Path,
        variant: Variant,
        *,
        threads: int | None = None,
        context_length: int | None = None,
        adapter: Path | None = None,
    ) -> None:
        llama = self._llama = _import_llama()
        path = folder / variant.file
        if not path.is_file():
            raise EngineError(f"{path} is missing; export it again")
        parameters = llama.llama_model_default_params()
        if crashes_on_amx(llama.llama_print_system_info().decode()):
            parameters.use_extra_bufts = False
        self._model: Any = llama.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise EngineError(f"llama.cpp cannot load {path}: {_reason()}; export it again")
        # It is freed with the model.
        self._adapter: Any = llama.llama_adapter_lora_init(self._model, os.fsencode(adapter)) if adapter else None
        if adapter and not self._adapter:
            reason = _reason()
            llama.llama_model_free(self._model)
            raise EngineError(f"llama.cpp cannot load the adapter {adapter}: {reason}; export it again")
        trained = int(llama.llama_model_n_ctx_train(self._model))
        self.context_length = min(trained, context_length or _MOST_CONTEXT)
        self._threads = threads or _cores()
        self._vocab: Any = llama.llama_model_get_vocab(self._model)
        self._context: Any = self._new_context(self.context_length, 1)
        self._turn = 0
        self._finalizer = weakref.finalize(self, _free, llama, self._context, self._model)

    def _new_context(self, batch: int, outputs: int) -> Any:
        llama = self._llama
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = self.context_length
        parameters.n_batch = min(batch, 2048)
        parameters.n_ubatch = min(batch, 512)
        parameters.n_outputs_max = parameters.n_outputs_max_per_seq = outputs
        parameters.n_threads = parameters.n_threads_batch = self._threads
        context = llama.llama_init_from_model(self._model, parameters)
        if not context:
            raise EngineError(f"llama.cpp cannot make a context of {self.context_length} tokens: {_reason()}")
        if self._adapter:
            one = (llama.llama_adapter_lora_p_ctypes * 1)(self._adapter)
            if llama.llama_set_adapters_lora(context, one, 1, (ctypes.c_float * 1)(1.0)) != 0:
                raise EngineError(f"llama.cpp cannot apply the adapter: {_reason()}")
        return context

    def generate(
        self,
        ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """See `pocketstill.engines.Engine.generate`."""
        self._check_open()
        room = room_for(ids, max_new_tokens, self.context_length)
        self._turn += 1
        return self._steps(ids, room, frozenset(stop_ids), (temperature, top_p, seed), self._turn)

    def _steps(
        self,
        ids: Sequence[int],
        room: int,
        stops: frozenset[int],
        sampling: tuple[float, float, int],
        turn: int,
    ) -> Iterator[int]:
        if room < 1 or turn != self._turn:
            return
        llama, context = self._llama, self._context
        decode, sample = llama.llama_decode, llama.llama_sampler_sample
        sampler = self._sampler(*sampling)
        try:
            self._prefill(ids)
            one = (llama.llama_token * 1)()
            batch = llama.llama_batch_get_one(one, 1)
            for left in range(room - 1, -1, -1):
                token = sample(sampler, context, -1)
                if token in stops:
                    return
                yield token
                # The context is one: a later call of generate has taken it over.
                if not left or turn != self._turn:
                    return
                one[0] = token
                if decode(context, batch) != 0:
                    raise EngineError(f"llama.cpp failed to decode: {_reason()}")
        finally:
            llama.llama_sampler_free(sampler)

    def _prefill(self, ids: Sequence[int]) -> None:
        llama, context = self._llama, self._context
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        size = int(llama.llama_n_batch(context))
        for start in range(0, len(ids), size):
            chunk = ids[start : start + size]
            tokens = (llama.llama_token * len(chunk))(*chunk)
            if llama.llama_decode(context, llama.llama_batch_get_one(tokens, len(chunk))) != 0:
                raise EngineError(f"llama.cpp failed on the prompt: {_reason()}")

    def _sampler(self, temperature: float, top_p: float, seed: int) -> Any:
        llama = self._llama
        if temperature <= 0:
            return llama.llama_sampler_init_greedy()
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        # Temperature before top-p: the order of onnxruntime-genai and of transformers.
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_temp(temperature))
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_top_p(top_p, 1))
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_dist(seed))
        return chain

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """See `pocketstill.engines.Engine.logits`."""
        self._check_open()
        room_for(ids, 1, self.context_length)
        llama = self._llama
        width = int(llama.llama_vocab_n_tokens(self._vocab))
        output = np.empty((len(ids), width), dtype=np.float32)
        # A context of its own: one that gives the logits of every token holds room for them from the start.
        context = self._new_context(_LOGITS_BATCH, _LOGITS_BATCH)
        batch = llama.llama_batch_init(_LOGITS_BATCH, 0, 1)
        try:
            for start in range(0, len(ids), _LOGITS_BATCH):
                chunk = ids[start : start + _LOGITS_BATCH]
                batch.n_tokens = len(chunk)
                for i, token in enumerate(chunk):
                    batch.token[i], batch.pos[i] = token, start + i
                    batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
                if llama.llama_decode(context, batch) != 0:
                    raise EngineError(f"llama.cpp failed to decode: {_reason()}")
                flat = np.ctypeslib.as_array(llama.llama_get_logits(context), shape=(len(chunk) * width,))
                output[start : start + len(chunk)] = flat.reshape(len(chunk), width)
        finally:
            llama.llama_batch_free(batch)
            llama.llama_free(context)
        return output

    def native_encode(self, text: str) -> list[int]:
        """See `pocketstill.engines.Engine.native_encode`."""
        self._check_open()
        llama = self._llama
        data = text.encode("utf-8")
        room = len(data) + 8
        buffer = (llama.llama_token * room)()
        count = llama.llama_tokenize(self._vocab, data, len(data), buffer, room, False, True)
        if count < 0:
            raise EngineError(f"llama.cpp cannot tokenize a text of {len(data)} bytes into {room} tokens")
        return list(buffer[:count])

    def _check_open(self) -> None:
        # llama.cpp would follow a pointer to memory that is gone.
        if not self._finalizer.alive:
            raise EngineError("this engine was closed; load the bundle again")

    def close(self) -> None:
        """See `pocketstill.engines.Engine.close`."""
        self._turn += 1
        self._finalizer()
