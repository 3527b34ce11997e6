"""Low-rank adapters (LoRA, arXiv 2106.09685): files in PEFT's form, attached to a model's graph."""
