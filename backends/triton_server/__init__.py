"""Language models without a model for a real Triton server: its Python backend runs what lies here.

They have the very tensors of TensorRT-LLM's `ensemble` (and of its older versions), of its LLM API model and of vLLM's
backend, and answer with the simulator's words. This package runs inside Triton, in an environment of its own that has
numpy, orjson and nothing else of this project's libraries; it knows nothing of money or of the gateway.
"""
