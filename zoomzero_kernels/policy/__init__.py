"""What the losses on log-probabilities of tokens share: options, weights, passes over rows of logits, the head."""
