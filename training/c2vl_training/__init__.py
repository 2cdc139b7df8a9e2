"""Pre-training of skeleton encoders on packed arrays, and the supervised control."""
