"""To look at data, weights, activations and mistakes (advice A7, A15, A24, A25): figures, hooks, Grad-CAM. Plain tensors in."""
