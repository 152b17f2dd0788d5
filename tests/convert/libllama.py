"""What llama.cpp computes: logits of a GGUF model with a LoRA, by the libllama of `llama-cpp-py-sync`."""

from contextlib import contextmanager

import pytest
import torch

bindings = pytest.importorskip("llama_cpp_py_sync._cffi_bindings")
F32, NO_FLASH = 0, 0


class Llama:
    """A model and a context, in float32 throughout."""

    def __init__(self, path):
        self.ffi, self.lib = bindings.get_ffi(), bindings.get_lib()
        self._silent = self.ffi.callback("void(enum ggml_log_level, const char *, void *)", _ignore)
        self.lib.llama_log_set(self._silent, self.ffi.NULL)
        self.lib.llama_backend_init()
        options = self.lib.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), options)
        assert self.model, f"llama.cpp does not load {path}"
        options = self.lib.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = 64
        options.n_threads = options.n_threads_batch = 1
        options.type_k = options.type_v = F32
        options.flash_attn_type = NO_FLASH
        self.context = self.lib.llama_init_from_model(self.model, options)
        assert self.context

    def use(self, lora):
        """Let a LoRA run, at scale 1."""
        adapter = self.lib.llama_adapter_lora_init(self.model, str(lora).encode())
        assert adapter, f"llama.cpp does not load {lora}"
        adapters = self.ffi.new("struct llama_adapter_lora *[1]", [adapter])
        scales = self.ffi.new("float[1]", [1.0])
        assert self.lib.llama_set_adapters_lora(self.context, adapters, 1, scales) == 0

    def logits(self, ids):
        """Logits ``(tokens, vocabulary)`` of one sequence."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        batch = self.lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, True
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        assert self.lib.llama_decode(self.context, batch) == 0
        size = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))
        floats = self.lib.llama_get_logits(self.context)
        found = torch.frombuffer(self.ffi.buffer(floats, 4 * len(ids) * size), dtype=torch.float32)
        found = found.clone().view(len(ids), size)
        self.lib.llama_batch_free(batch)
        return found

    def close(self):
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)


@contextmanager
def llama(path):
    """A model in libllama, for a block."""
    model = Llama(path)
    try:
        yield model
    finally:
        model.close()


def _ignore(level, text, data):
    pass
