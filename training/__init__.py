"""Training of the small bundled story model: data, tokenizer, model and fine-tuning."""
