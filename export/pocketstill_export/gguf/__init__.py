"""A checkpoint as GGUF files: tensors, tokenizer, importance matrix, quantized types, adapters."""
