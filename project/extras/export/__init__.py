"""A trained network as one file for other programs, and the proof that the file computes what the network computes."""
