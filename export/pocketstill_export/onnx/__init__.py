"""A checkpoint as ONNX files: the builder's graph, mended, its matrices rounded to few bits, adapters."""
