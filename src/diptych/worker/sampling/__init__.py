"""From a step's logits to the next tokens: what rules tokens out or shifts them, the draw itself, log-probabilities."""
