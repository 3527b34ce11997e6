"""How good a model is: perplexity, the distance between two models, and what the evaluation harness asks
for."""
