"""What computes a step: OpenVINO on real weights, or a cost model with deterministic tokens."""
