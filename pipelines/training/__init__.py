"""Two-stage training of any compressor on Ray Train with DeepSpeed ZeRO."""
