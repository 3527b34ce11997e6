"""Small language models on the CPU you have."""
